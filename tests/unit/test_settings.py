from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import platformdirs
import pytest
from pydantic import ValidationError

from schemas.errors import KafkaUnreachable, SettingsError
from schemas.topics import JobPriority
from streams.settings import NoKafkaAddress, Settings, default_worker_id, describe, load_settings

pytestmark = pytest.mark.job_processing


@pytest.fixture(autouse=True)
def clean_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No variable and no file of the person who runs the tests has a say."""
    for name in list(os.environ):
        if name.upper().startswith(("RUSTFS_WORKERS_", "KAFKA_", "SCHEMA_REGISTRY")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


def test_every_setting_has_a_default_and_a_help() -> None:
    settings = load_settings()
    assert settings.partitions == 12
    assert settings.topic_prefix == "rustfs."
    for row in describe(settings):
        assert row.help, row.name
        assert row.source == "default", row


def test_a_user_without_a_home_directory_has_to_say_where_data_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's user often is a number without an entry."""

    def homeless(*_: Any) -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("user_config_path", "user_data_path"):
        monkeypatch.setattr(platformdirs, name, homeless)
    with pytest.raises(SettingsError, match="RUSTFS_WORKERS_DATA_DIR"):
        load_settings()
    monkeypatch.setenv("RUSTFS_WORKERS_DATA_DIR", "/srv/data")
    assert load_settings().data_dir == Path("/srv/data")


@pytest.mark.parametrize("place", ["work", "config"])
def test_a_directory_that_may_not_be_searched_for_settings_is_named(
    clean_place: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """As after `sudo -u` in somebody's home. Root may search everything: what another user is told is played."""
    is_symlink = Path.is_symlink

    def refused(path: Path) -> bool:
        if path.is_relative_to(clean_place / place):
            raise PermissionError(13, "Permission denied")
        return is_symlink(path)

    monkeypatch.setattr(Path, "is_symlink", refused)
    with pytest.raises(SettingsError, match=f"{place}.* may not be searched for rustfs-workers.toml"):
        load_settings()


def test_an_address_that_may_not_be_read_is_no_absent_one(
    clean_place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may read everything: what another user is told is played."""
    settings = load_settings(data_dir=clean_place)
    with pytest.raises(NoKafkaAddress):
        settings.bootstrap_servers()

    def forbidden(*_: Any) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", forbidden)
    with pytest.raises(SettingsError, match="may not be read"):
        settings.bootstrap_servers()


def test_environment_names_are_prefix_and_capitals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUSTFS_WORKERS_MAX_CONCURRENT_JOBS", "7")
    monkeypatch.setenv("RUSTFS_WORKERS_STRICT_PRIORITIES", "true")
    monkeypatch.setenv("RUSTFS_WORKERS_PRIORITY_WEIGHTS__HIGH", "5")
    settings = load_settings()
    assert settings.max_concurrent_jobs == 7
    assert settings.strict_priorities is True
    assert settings.priority_weights.by_priority() == {
        JobPriority.CRITICAL: 8,
        JobPriority.HIGH: 5,
        JobPriority.NORMAL: 2,
        JobPriority.LOW: 1,
    }


def test_customary_kafka_names_work_and_the_prefixed_one_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "a:9092, b:9093")
    monkeypatch.setenv("SCHEMA_REGISTRY_URL", "http://registry:8081")
    settings = load_settings()
    assert settings.bootstrap_servers() == "a:9092,b:9093"
    assert settings.schema_registry_url == "http://registry:8081"
    monkeypatch.setenv("RUSTFS_WORKERS_KAFKA_BOOTSTRAP_SERVERS", "c:9092")
    assert load_settings().bootstrap_servers() == "c:9092"


def test_empty_variable_means_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "")
    assert load_settings().kafka_bootstrap_servers is None


def test_node_names_from_the_environment_are_lower_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUSTFS_WORKERS_NODES__N1", "file:///srv/n1")
    monkeypatch.setenv("RUSTFS_WORKERS_NODES__Cold__Store", "memory://")
    assert load_settings().nodes == {"n1": "file:///srv/n1", "cold__store": "memory://"}


def test_nodes_in_one_variable_are_lower_case_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUSTFS_WORKERS_NODES", '{"N1": "file:///srv/n1", "node-2": "memory://"}')
    monkeypatch.setenv("RUSTFS_WORKERS_NODES__n1", "file:///srv/other")
    settings = load_settings()
    assert settings.nodes == {"n1": "file:///srv/other", "node-2": "memory://"}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"RUSTFS_WORKERS_NODES__N1": "memory://"}, {"RUSTFS_WORKERS_NODES__n1": "file:///srv"}),
        ({"KAFKA_BOOTSTRAP_SERVERS": "a:9092"}, {"kafka_bootstrap_servers": "b:9092"}),
        ({"RUSTFS_WORKERS_TICK_MS": "3"}, {"rustfs_workers_tick_ms": "4"}),
    ],
)
def test_names_that_differ_in_case_only_are_refused(
    one: dict[str, str], other: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (one | other).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match="case") as refused:
        load_settings()
    for name in one | other:
        assert name in str(refused.value)


def test_file_says_the_same_and_the_environment_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("rustfs-workers.toml").write_text(
        'partitions = 4\ntick_ms = 30\n[nodes]\nnode-1 = "file:///srv/1"\n[priority_weights]\nlow = 3\n',
        "utf-8",
    )
    monkeypatch.setenv("RUSTFS_WORKERS_TICK_MS", "40")
    settings = load_settings(retry_limit=9, job_timeout_s=None)
    assert (settings.partitions, settings.tick_ms, settings.retry_limit) == (4, 40, 9)
    assert settings.job_timeout_s == 300
    assert settings.nodes == {"node-1": "file:///srv/1"}
    assert settings.priority_weights.low == 3
    sources = {row.name: row.source for row in describe(settings)}
    assert sources["partitions"] == f"partitions in {Path.cwd() / 'rustfs-workers.toml'}"
    assert sources["tick_ms"] == "RUSTFS_WORKERS_TICK_MS"
    assert sources["retry_limit"] == "given"


def test_file_of_the_user_is_read_where_the_directory_has_none(clean_place: Path) -> None:
    directory = clean_place / "config" / "rustfs-workers"
    directory.mkdir(parents=True)
    (directory / "rustfs-workers.toml").write_text("partitions = 5\n", "utf-8")
    assert load_settings().partitions == 5
    Path("rustfs-workers.toml").write_text("partitions = 6\n", "utf-8")
    assert load_settings().partitions == 6


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        (
            "RUSTFS_WORKERS_PARTITION",
            "6",
            ["RUSTFS_WORKERS_PARTITION is not a setting", "RUSTFS_WORKERS_PARTITIONS"],
        ),
        (
            "RUSTFS_WORKERS_ALERTS__FAILED_JOB_THRESHOLD",
            "1",
            ["RUSTFS_WORKERS_ALERTS__FAILED_JOB_THRESHOLD is not"],
        ),
        ("RUSTFS_WORKERS_PARTITIONS__X", "3", ["RUSTFS_WORKERS_PARTITIONS__X is not a setting"]),
        ("RUSTFS_WORKERS_NODES__", "memory://", ["RUSTFS_WORKERS_NODES__ is not a setting"]),
        ("RUSTFS_WORKERS_PRIORITY_WEIGHTS__HIG", "3", ["did you mean RUSTFS_WORKERS_PRIORITY_WEIGHTS__HIGH"]),
        (
            "RUSTFS_WORKERS_PARTITIONS",
            "abc",
            ["RUSTFS_WORKERS_PARTITIONS should be a valid integer", "it takes"],
        ),
        ("RUSTFS_WORKERS_PARTITIONS", "0", ["RUSTFS_WORKERS_PARTITIONS should be greater"]),
        (
            "RUSTFS_WORKERS_NODES",
            "n1",
            ["RUSTFS_WORKERS_NODES should be a JSON object", "RUSTFS_WORKERS_NODES__NAME"],
        ),
        ("RUSTFS_WORKERS_NODES__N1", "/srv/n1", ["RUSTFS_WORKERS_NODES__N1 should match", "file:///dir"]),
        ("RUSTFS_WORKERS_NODES__.N1", "memory://", ["RUSTFS_WORKERS_NODES__.N1 should match"]),
        (
            "RUSTFS_WORKERS_BUFFER_LOW",
            "5000",
            ["buffer_low (5000)", "buffer_high (2000)", "RUSTFS_WORKERS_BUFFER_LOW"],
        ),
        ("RUSTFS_WORKERS_TOPIC_PREFIX", "a b", ["RUSTFS_WORKERS_TOPIC_PREFIX should match"]),
        ("KAFKA_BOOTSTRAP_SERVERS", "a,,b", ["KAFKA_BOOTSTRAP_SERVERS should be host:port"]),
        ("KAFKA_BOOTSTRAP_SERVERS", "a:65536", ["KAFKA_BOOTSTRAP_SERVERS should be host:port", "65535"]),
        ("KAFKA_BOOTSTRAP_SERVERS", "a:9092,b:0", ["KAFKA_BOOTSTRAP_SERVERS should be host:port"]),
        (
            "KAFKA_SECURITY_PROTOCOL",
            "sasl_ssl",
            ["SASL_SSL", "kafka_sasl_password", "KAFKA_SECURITY_PROTOCOL"],
        ),
        (
            "KAFKA_SSL_CA_LOCATION",
            "/nowhere/ca.pem",
            ["KAFKA_SSL_CA_LOCATION names no file: /nowhere/ca.pem"],
        ),
        ("KAFKA_SSL_KEY_LOCATION", "x" * 3000, ["KAFKA_SSL_KEY_LOCATION names no file; it takes a path"]),
        ("RUSTFS_WORKERS_NODES", "[" * 90_000, ["RUSTFS_WORKERS_NODES should be a JSON object"]),
        ("RUSTFS_WORKERS_DATA_DIR", "~nobody-of-this-name/x", ["RUSTFS_WORKERS_DATA_DIR names the home"]),
        ("RUSTFS_WORKERS_JOB_TIMEOUT_S", "1e20", ["RUSTFS_WORKERS_JOB_TIMEOUT_S should be less"]),
        ("RUSTFS_WORKERS_NODES", '{"N1": "/srv"}', ["RUSTFS_WORKERS_NODES: n1 should match"]),
        (
            "RUSTFS_WORKERS_NODES",
            '{"N1": "file:///a", "n1": "file:///b"}',
            ["RUSTFS_WORKERS_NODES: N1 should match"],
        ),
        ("RUSTFS_WORKERS_NODES__N1", "file:///a\nb", ["RUSTFS_WORKERS_NODES__N1 should match"]),
        ("RUSTFS_WORKERS_PRIORITY_WEIGHTS", '{"high": 0}', ["RUSTFS_WORKERS_PRIORITY_WEIGHTS: high should"]),
        (
            "RUSTFS_WORKERS_PRIORITY_WEIGHTS",
            '{"hgh": 3}',
            ["RUSTFS_WORKERS_PRIORITY_WEIGHTS: hgh is not a setting"],
        ),
        ("SCHEMA_REGISTRY_URL", "registry:8081", ["SCHEMA_REGISTRY_URL should begin with http://"]),
    ],
)
def test_wrong_value_is_refused_by_name(
    variable: str, value: str, says: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError) as refused:
        load_settings()
    for part in says:
        assert part in str(refused.value)
    assert refused.value.__cause__ is None, "no traceback of pydantic"
    assert not isinstance(refused.value, ValidationError)


@pytest.mark.parametrize("lines", [1, 40])
def test_a_private_key_where_its_file_should_be_named_is_not_said(
    lines: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "\n".join(["-----BEGIN PRIVATE KEY-----", *["MIIEvQIBADANBgkqhkiG9w0BAQ"] * lines])
    monkeypatch.setenv("KAFKA_SSL_KEY_LOCATION", key)
    with pytest.raises(
        SettingsError, match="KAFKA_SSL_KEY_LOCATION names no file; it takes a path"
    ) as refused:
        load_settings()
    assert "MIIE" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("partitons = 3\n", "partitons in"),
        ("[priority_weights]\nhigher = 3\n", "priority_weights.higher in"),
        ("partitions = 0\n", "partitions in"),
        ("partitions = true\n", "partitions in"),
        ("job_timeout_s = true\n", "job_timeout_s in"),
        ("[priority_weights]\nhigh = true\n", "priority_weights.high in"),
        ("partitions = \n", "cannot be read"),
        ('[nodes]\nN1 = "memory://"\n', "nodes.N1 in"),
        ("data_dir = 3\n", "should be a path"),
        ('data_dir = "a\\u0000b"\n', "data_dir in"),
        ("PARTITIONS = 3\n", "did you mean partitions?"),
    ],
)
def test_wrong_file_is_refused_by_name_and_place(text: str, says: str) -> None:
    Path("rustfs-workers.toml").write_text(text, "utf-8")
    with pytest.raises(SettingsError) as refused:
        load_settings()
    assert says in str(refused.value)
    assert "rustfs-workers.toml" in str(refused.value)


@pytest.mark.parametrize("odd", ["directory", "pipe", "link to nothing", "link in a circle"])
def test_something_else_with_the_name_of_the_file_is_refused(odd: str) -> None:
    """A mount that failed leaves an empty directory, or a link to nothing: whoever made it meant settings."""
    path = Path("rustfs-workers.toml")
    match odd:
        case "directory":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "link to nothing":
            path.symlink_to("not-mounted.toml")
        case _:
            path.symlink_to(path.name)
    with pytest.raises(SettingsError, match=r"rustfs-workers.toml is no file") as refused:
        load_settings()
    assert "remove" in str(refused.value)


@pytest.mark.parametrize("text", ["partitions = " + "[" * 10_000, "partitions = 1" + "0" * 5_000])
def test_a_file_that_python_cannot_hold_is_refused(text: str) -> None:
    Path("rustfs-workers.toml").write_text(text, "utf-8")
    with pytest.raises(SettingsError, match="cannot be read") as refused:
        load_settings()
    assert "rustfs-workers.toml" in str(refused.value)


def test_misspelt_value_in_code_is_refused() -> None:
    with pytest.raises(SettingsError, match="partitons is not a setting; did you mean partitions"):
        load_settings(partitons=3)


def test_secrets_are_shown_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_SASL_USERNAME", "me")
    monkeypatch.setenv("KAFKA_SASL_PASSWORD", "hunter2")
    monkeypatch.setenv("SCHEMA_REGISTRY_URL", "https://me:hunter2@registry/")
    monkeypatch.setenv("RUSTFS_WORKERS_NODES__N1", "s3://bucket?secret_access_key=hunter2&region=eu")
    settings = load_settings()
    shown = {row.name: row.value for row in describe(settings)}
    assert "hunter2" not in str(shown)
    assert shown["kafka_sasl_password"] == "******"
    assert shown["schema_registry_url"] == "https://******@registry/"
    assert shown["nodes"] == "n1=s3://bucket?secret_access_key=******&region=eu"
    assert settings.kafka_sasl_password is not None
    assert settings.kafka_sasl_password.get_secret_value() == "hunter2"


ODD_URLS = [
    "https://me:hun/hunter2@registry",
    "https://me:h#hunter2@registry/?x=1",
    "https://me:hunter2@[registry",
]


def test_every_url_of_a_list_is_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCHEMA_REGISTRY_URL", "https://me:hunter2@one:8081/,https://me:hunter2@two/")
    shown = {row.name: row.value for row in describe(load_settings())}
    assert shown["schema_registry_url"] == "https://******@one:8081/,https://******@two/"


@pytest.mark.parametrize("url", ODD_URLS)
def test_no_part_of_an_odd_url_gives_a_password_away(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUSTFS_WORKERS_NODES__N1", url)
    shown = {row.name: row.value for row in describe(load_settings())}
    assert "hunter2" not in str(shown)
    assert shown["nodes"].startswith("n1=https://******@")


@pytest.mark.parametrize(
    "url", [*ODD_URLS, "http://", "https://:8081", "http://host:port", "http://ok,ftp://no"]
)
def test_a_registry_url_that_no_client_takes_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCHEMA_REGISTRY_URL", url)
    with pytest.raises(SettingsError, match="SCHEMA_REGISTRY_URL should be") as refused:
        load_settings()
    assert "hun" not in str(refused.value)


@pytest.mark.parametrize("name", ["sig", "credential", "pass", "auth", "X-Amz-Signature", "key", "endpoints"])
def test_a_parameter_that_nobody_knows_may_be_a_secret(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUSTFS_WORKERS_NODES__N1", f"s3://bucket?region=eu&{name}=hunter2")
    shown = {row.name: row.value for row in describe(load_settings())}
    assert shown["nodes"] == f"n1=s3://bucket?region=eu&{name}=******"


@pytest.mark.parametrize(
    ("url", "seen"),
    [
        ("http://h:1/?hunter2", "http://h:1/?******"),
        ("http://h:1?region=eu&hunter2", "http://h:1?region=eu&******"),
        ("http://h:1/#hunter2", "http://h:1/#******"),
        ("http://h:1/#access_token=hunter2&id=hunter2", "http://h:1/#access_token=******&id=******"),
        ("http://h:1/a;token=hunter2/b", "http://h:1/a;token=******"),
        ("http://h:1/a;hunter2?region=eu", "http://h:1/a;******?region=eu"),
        ("http://h:1/a;b=c;token=hunter2?durable=true", "http://h:1/a;b=******;token=******?durable=true"),
        ("http://h:1/?region=eu;token=hunter2", "http://h:1/?region=eu;token=******"),
        ("s3://b?endpoint=https://host/?hunter2", "s3://b?endpoint=https://host/?******"),
        ("s3://b?endpoint=https://host#t=hunter2", "s3://b?endpoint=https://host#t=******"),
        ("s3://b?region=eu#region=hunter2", "s3://b?region=eu#region=******"),
        ("http://h:1/?hunter2==", "http://h:1/?******"),
        ("http://h:1/?=hunter2", "http://h:1/?=******"),
        ("http://h:1/?a=hunter2?hunter2#hunter2", "http://h:1/?a=******?******#******"),
    ],
)
def test_a_secret_without_a_name_or_outside_the_query_is_masked_as_well(
    url: str, seen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUSTFS_WORKERS_NODES__N1", url)
    shown = {row.name: row.value for row in describe(load_settings())}
    assert shown["nodes"] == f"n1={seen}"


def test_an_url_without_secrets_is_shown_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for url in (
        "file:///srv/n1?durable=true",
        "s3://bucket/a@b?endpoint=https://host:9000",
        "s3://bucket/a&b=c?endpoint=https://host:9000/d&region=eu-central-1",
        "http://h:1/?",
        "file://[x",
    ):
        monkeypatch.setenv("RUSTFS_WORKERS_NODES__N1", url)
        assert f"n1={url}" in {row.value for row in describe(load_settings())}


def test_a_wrong_secret_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUSTFS_WORKERS_NODES__N1", "bucket?key=hunter2")
    with pytest.raises(SettingsError) as refused:
        load_settings()
    assert "hunter2" not in str(refused.value)


def test_settings_do_not_change() -> None:
    settings = load_settings()
    with pytest.raises(ValidationError):
        settings.partitions = 3


def test_a_working_directory_that_is_gone_has_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert load_settings().partitions == 12


def test_address_of_the_embedded_broker_is_used(tmp_path: Path) -> None:
    settings = load_settings(data_dir=tmp_path)
    (tmp_path / "kafka").mkdir()
    (tmp_path / "kafka" / "address").write_text("127.0.0.1:9999\n", "utf-8")
    assert settings.bootstrap_servers() == "127.0.0.1:9999"


def test_no_address_names_the_command_that_starts_a_broker(tmp_path: Path) -> None:
    with pytest.raises(NoKafkaAddress, match="rustfs-workers up") as refused:
        load_settings(data_dir=tmp_path).bootstrap_servers()
    assert isinstance(refused.value, KafkaUnreachable)
    assert str(tmp_path / "kafka" / "address") in str(refused.value)


def test_a_kafka_of_our_own_is_not_asked_in_a_language_that_it_does_not_speak(tmp_path: Path) -> None:
    (tmp_path / "kafka").mkdir()
    (tmp_path / "kafka" / "address").write_text("127.0.0.1:9092")
    secured = load_settings(data_dir=tmp_path, kafka_security_protocol="SSL")
    with pytest.raises(SettingsError, match=r"KAFKA_SECURITY_PROTOCOL is SSL.*KAFKA_BOOTSTRAP_SERVERS"):
        secured.bootstrap_servers()
    assert load_settings(data_dir=tmp_path).bootstrap_servers() == "127.0.0.1:9092"


@pytest.mark.parametrize(
    ("one", "another"),
    [
        pytest.param(f"replication-{'x' * 50}-7d9f8b6c5d-x2k4q", f"replication-{'x' * 50}-7d9f8b6c5d-zz9pw", id="pods"),
        pytest.param("10.0.0.7", "10.0.0.8", id="addresses"),
        pytest.param("web1.dc1.example", "web1.dc2.example", id="domains"),
        pytest.param("büro", "böro", id="letters"),
        pytest.param("", "-", id="none"),
    ],
)  # fmt: skip
def test_two_hosts_have_two_worker_ids(monkeypatch: pytest.MonkeyPatch, one: str, another: str) -> None:
    """Workers of one id stop each other."""
    ids = set()
    for host in (one, another, one):
        monkeypatch.setattr(platform, "node", lambda host=host: host)
        worker_id = default_worker_id()
        assert load_settings(worker_id=worker_id).worker_id == worker_id
        assert len(worker_id) <= 48
        ids.add(worker_id)
    assert len(ids) == 2


def test_a_host_that_has_a_good_name_gives_it_to_its_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "node", lambda: "web1.dc1")
    assert default_worker_id() == "web1.dc1"


def test_default_worker_id_fits_where_it_is_used() -> None:
    settings = Settings()
    assert settings.worker_id
    assert load_settings(worker_id=settings.worker_id).worker_id == settings.worker_id
