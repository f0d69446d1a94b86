"""Fixtures: one embedded Kafka for each process of the run, a prefix and settings of its own for each test."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import tempfile
import uuid
from collections.abc import Generator, Iterator
from functools import cache
from pathlib import Path

import platformdirs
import pytest
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from streams.embedded import BrokerConfig, EmbeddedBroker, EmbeddedKafkaError, state
from streams.provision import provision
from streams.settings import Settings, load_settings
from streams.settings_sources import APP_NAME, FILE_NAME
from tests.support.memory_directory import memory_directory
from tests.support.ports import ports_of_its_own
from tests.support.quick_start import rehearsed, use


@pytest.fixture(scope="session", autouse=True)
def _clean_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The developer's own settings must not reach the tests, nor tests the developer's Kafka."""
    patch = pytest.MonkeyPatch()
    # Where a settings file is looked for; jgo's, which may name a mirror, stays. As do the caches: Kafka is downloaded once.
    config = tmp_path_factory.mktemp("no-settings")
    theirs = platformdirs.user_config_path()
    for path in theirs.iterdir() if theirs.is_dir() else ():
        if path.name != APP_NAME:
            (config / path.name).symlink_to(path)
    patch.setenv("XDG_CONFIG_HOME", str(config))
    # Where the address of a Kafka that runs here would be.
    patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("no-kafka")))
    for name in list(os.environ):
        if name.startswith(("RUSTFS_WORKERS_", "KAFKA_", "SCHEMA_REGISTRY_")):
            patch.delenv(name)
    yield
    patch.undo()


@pytest.fixture(scope="session", autouse=True)
def _ports_of_its_own() -> Iterator[None]:
    """A broker that a test kills comes back to its port: no other process, of this run or another, may have taken it meanwhile."""
    with ports_of_its_own() as ports, pytest.MonkeyPatch.context() as patch:
        patch.setattr(state, "_PORTS", ports)
        yield


def pytest_configure(config: pytest.Config) -> None:
    """No settings of the developer's; and whoever wants no bytecode beside the sources gets it elsewhere.

    Without any, each of the processes that tests start would compile all that it imports, a second of it.
    """
    in_the_way = Path.cwd() / FILE_NAME
    if in_the_way.exists():
        raise pytest.UsageError(f"{in_the_way} would be read by every test; move it away while they run")
    cache: pytest.Cache | None = getattr(config, "cache", None)  # not there with -p no:cacheprovider
    if not sys.dont_write_bytecode or "PYTHONPYCACHEPREFIX" in os.environ or cache is None:
        return
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix = str(cache.mkdir("bytecode"))
    sys.dont_write_bytecode = False


#: Files that take more than half a minute each, the longest first.
_LONG_FILES = (
    "test_worker_deaths", "test_worker_outages", "test_forgotten_transactions", "test_seeds", "test_three_brokers",
    "test_lost_commits", "test_commands", "test_worker_results", "test_embedded_kafka",
    "test_last_words", "test_broker_outages", "test_torn_transactions", "test_dead_letters", "test_killers", "test_benches",
)  # fmt: skip


#: Tests with these marks run only if ``-m`` names them, or their file is named: minutes of it, whatever other mark was asked for.
_ONLY_IF_ASKED_FOR = ("thorough",)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Files of long tests come first, and short ones fill up what is left: no process works on alone in the end.

    But what is to run alone comes last: it would wait for the others all the time.
    """
    asked = str(config.getoption("markexpr") or "")
    named = {Path(str(argument).partition("::")[0]).resolve() for argument in config.args}
    unasked = [
        item
        for item in items
        if item.path not in named
        and any(item.get_closest_marker(name) and name not in asked for name in _ONLY_IF_ASKED_FOR)
    ]
    if unasked:
        config.hook.pytest_deselected(items=unasked)
        items[:] = [item for item in items if item not in unasked]
    alone = {item.path for item in items if item.get_closest_marker("alone") is not None}

    def place(item: pytest.Item) -> tuple[bool, int]:
        path = item.path
        if path.parent.name in ("simulation", "integration") and path.stem in _LONG_FILES:
            return path in alone, _LONG_FILES.index(path.stem)
        # Then the others of those, and then the rest, as they came.
        return path in alone, len(_LONG_FILES) + (path.parent.name != "integration")

    items.sort(key=place)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """A test that is marked `alone` waits until no other process runs one, and the others wait for it.

    Around everything else: the time that a test waits here is none of its own, nor is that of the rehearsal.
    """
    if isinstance(item, pytest.Function) and "quick_start" in item.fixturenames:
        # Without jars or Java the fixture says so.
        with contextlib.suppress(EmbeddedKafkaError):
            _rehearsed()
    if "PYTEST_XDIST_TESTRUNUID" not in os.environ:
        return (yield)
    with _running_lock().open("a") as lock:
        alone = item.get_closest_marker("alone") is not None
        fcntl.flock(lock, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        return (yield)


def pytest_unconfigure() -> None:
    """A process that has ended waits for nobody: whoever is left makes a new one."""
    if "PYTEST_XDIST_TESTRUNUID" in os.environ:
        _running_lock().unlink(missing_ok=True)


@cache
def _rehearsed() -> Path:
    """Once in each process; the first of them makes it, and the others wait."""
    with tempfile.TemporaryDirectory() as directory:
        return rehearsed(Path(directory))


def _running_lock() -> Path:
    """Of all processes of this run."""
    return Path(tempfile.gettempdir()) / f"rustfs-workers-tests-{os.environ['PYTEST_XDIST_TESTRUNUID']}.lock"


@pytest.fixture(scope="session")
def quick_start() -> Iterator[Path]:
    """Every Kafka that is started from now on takes half the processor time for it."""
    file = _rehearsed()
    with pytest.MonkeyPatch.context() as patch:
        use(patch, file)
        yield file


@pytest.fixture(scope="session")
def kafka(quick_start: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Kafka; a run without one fails."""
    with memory_directory(tmp_path_factory.mktemp("kafka")) as directory:
        broker = EmbeddedBroker(BrokerConfig(directory, heap_mb=768))
        broker.start(90)
        yield broker.bootstrap_servers
        broker.stop()


@pytest.fixture
def topic_prefix(kafka: str) -> Iterator[str]:
    """A prefix that no other test uses; its topics and groups are deleted afterwards."""
    prefix = f"t-{uuid.uuid4().hex[:10]}."
    yield prefix
    admin = AdminClient({"bootstrap.servers": kafka})
    topics = [name for name in admin.list_topics(timeout=10).topics if name.startswith(prefix)]
    if topics:
        for deleted in admin.delete_topics(topics).values():
            deleted.result(30)
    listed = admin.list_consumer_groups().result(10).valid
    groups = [group.group_id for group in listed if group.group_id.startswith(prefix)]
    for group, deleted in (admin.delete_consumer_groups(groups) if groups else {}).items():
        try:
            deleted.result(30)
        except KafkaException as error:
            # A worker that the test killed counts as a member for some seconds more. No other test sees it.
            if error.args[0].code() != KafkaError.NON_EMPTY_GROUP:
                raise RuntimeError(f"cannot delete the group {group}") from error


@pytest.fixture
def settings(kafka: str, topic_prefix: str, tmp_path: Path) -> Settings:
    """Settings that point at the test's broker and prefix."""
    return load_settings(
        kafka_bootstrap_servers=kafka, topic_prefix=topic_prefix, partitions=3, data_dir=tmp_path / "data"
    )


@pytest.fixture
def provisioned(settings: Settings) -> Settings:
    """The same, with its topics and its group."""
    provision(settings)
    return settings
