"""The commands on a real Kafka, from other processes, as people and programs use them."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
)

from schemas.errors import PipelineError
from streams.embedded import running_broker
from streams.embedded.state import write_state
from streams.provision import provision
from streams.settings import Settings, default_worker_id
from tests.support.commands import CommandLine, Finished
from tests.support.waiting import eventually
from workers.demo import Objects, _replicate
from workers.progress import unseen

pytestmark = [pytest.mark.integration, pytest.mark.job_processing]

JOBS = '''
from dataclasses import dataclass
from pathlib import Path

from tests.support.waiting import file_appears
from workers import Job, PermanentError, Success


@dataclass
class Greet(Job):
    """Succeeds."""

    job_type = "test_cli_greet"
    name: str

    async def execute(self, context):
        context.update_metrics("greetings", 1)
        return Success({"said": f"hello {self.name}"})


@dataclass
class Needs(Job):
    """Succeeds only where a file is."""

    job_type = "test_cli_needs"
    file: str

    async def execute(self, context):
        if not Path(self.file).exists():
            raise PermanentError(f"there is no {self.file}")


@dataclass
class Stays(Job):
    """Says that it has begun, and ends when a file is there."""

    job_type = "test_cli_stays"

    async def execute(self, context):
        Path("begun").touch()
        assert await file_appears(Path("enough"), 60)
        Path("ended").touch()
'''

LISTED = {
    "id",
    "type",
    "priority",
    "status",
    "attempt",
    "key",
    "worker",
    "created_at",
    "started_at",
    "finished_at",
    "error",
}


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A directory with a module of job types."""
    directory = tmp_path / "shop"
    directory.mkdir()
    (directory / "shop_jobs.py").write_text(JOBS)
    return directory


def submitted(done: Finished) -> str:
    assert done.code == 0, done.err
    (record,) = done.records()
    assert list(record) == ["id"]
    return str(record["id"])


def test_a_job_from_submit_to_a_second_life_as_the_commands_show_it(settings: Settings, shop: Path) -> None:
    command = CommandLine.on(settings, shop)

    refused = command("worker", "--import", "shop_jobs")
    assert refused.code == 1
    assert "rustfs-workers topics create" in refused.err

    made, again = command("topics", "create", "--json"), command.here("topics", "create", "--json")
    assert len(made.records()[0]["created"]) == len(again.records()[0]["existing"]) == 17
    assert again.records()[0]["created"] == []

    with command.running("worker", "--import", "shop_jobs", "--worker-id", "counter") as worker:
        greet = submitted(
            command.here("submit", "test_cli_greet", "name=you", "--import", "shop_jobs", "--key", "k")
        )
        needs = submitted(
            command.here(
                "submit", "test_cli_needs", "file=there", "--import", "shop_jobs", "--priority", "high"
            )
        )
        later = submitted(
            command.here("submit", "test_cli_greet", "name=later", "--import", "shop_jobs", "--delay", "1h")
        )

        def jobs(*arguments: str) -> dict[str, dict[str, Any]]:
            *rows, summary = command.here("jobs", "list", "--json", *arguments).records()
            assert summary["jobs"] == len(rows)
            return {row["id"]: row for row in rows}

        def both_final() -> dict[str, dict[str, Any]] | None:
            rows = jobs()
            return rows if {rows[greet]["status"], rows[needs]["status"]} == {"succeeded", "failed"} else None

        rows = eventually(both_final, 60, "both jobs are final")
        assert list(rows) == [later, needs, greet]
        assert all(set(row) == LISTED for row in rows.values())
        assert (rows[greet]["key"], rows[greet]["worker"]) == ("k", "counter.0")
        assert (rows[needs]["priority"], rows[needs]["error"]) == ("high", "there is no there")
        assert rows[later]["status"] == "scheduled"
        assert list(jobs("--status", "failed", "--type", "test_cli_needs")) == [needs]
        assert list(jobs("--priority", "normal", "--limit", "1")) == [later]

        people = command("jobs", "list")
        assert people.err == "3 of 3 jobs\n"
        assert [line.split()[0] for line in people.out.splitlines()] == ["id", later, needs, greet]
        assert "\x1b" not in people.out

        (record,) = command.here("jobs", "show", greet, "--json").records()
        assert record["output"] == {"said": "hello you"}
        assert record["metrics"] == {"greetings": 1}
        assert record["fields"] == {"name": "you"}
        shown = command.here("jobs", "show", needs)
        assert "fields.file  there" in shown.out
        assert f"rustfs-workers dlq show {needs}" in shown.err
        unknown = command.here("jobs", "show", "01a20bd1-1946-743e-922d-000000000000")
        assert (unknown.code, unknown.out) == (1, "")
        assert unknown.err.startswith("error: job 01a20bd1-1946-743e-922d-000000000000 is not known")

        letter, summary = command.here("dlq", "list", "--json").records()
        assert summary == {"dead_letters": 1}
        assert {"id", "type", "error_type", "error_message", "attempt", "failed_at"} <= set(letter)
        assert (letter["id"], letter["error_type"]) == (needs, "PermanentError")
        assert needs in command.here("dlq", "list").out
        assert command.here("dlq", "list", "--error", "Other", "--json").records() == [{"dead_letters": 0}]
        (whole,) = command.here("dlq", "show", needs, "--json").records()
        assert whole["fields"] == {"file": "there"}
        assert "headers.kafka_dlt-original-topic" in command.here("dlq", "show", needs).out
        absent = command.here("dlq", "show", greet)
        assert absent.code == 1
        assert "rustfs-workers dlq list" in absent.err

        dry = command.here("dlq", "redrive", needs, "--dry-run")
        assert (dry.code, dry.out, dry.err) == (0, "", "1 job would get a new life\n")
        assert jobs()[needs]["status"] == "failed"

        (shop / "there").touch()
        one, summary = command.here("dlq", "redrive", needs, "--json").records()
        assert one == {"id": needs, "redriven": True}
        assert summary["redriven"] == 1
        eventually(lambda: jobs()[needs]["status"] == "succeeded", 60, "the second life succeeds")
        twice = command.here("dlq", "redrive", needs)
        assert twice.code == 1
        assert f"not waiting: {needs}" in twice.err
        assert command.here("dlq", "list", "--json").records() == [{"dead_letters": 0}]
        old, _ = command.here("dlq", "list", "--redriven", "--json").records()
        assert (old["id"], old["redriven"]) == (needs, True)

        worker.interrupt()
        ended = worker.end()

    assert ended.code == 130
    assert ended.out == ""
    assert "worker drained" in ended.err


@pytest.fixture
def bent(settings: Settings) -> Settings:
    """A deployment of which one topic has a partition too many, and another one loses jobs after a day."""
    provision(settings)
    admin = AdminClient({"bootstrap.servers": settings.bootstrap_servers()})
    high, low = f"{settings.topic_prefix}jobs.high", f"{settings.topic_prefix}jobs.low"
    admin.delete_topics([high])[high].result(30)
    eventually(lambda: high not in admin.list_topics(timeout=10).topics, 30, "the topic is deleted")
    admin.create_topics([NewTopic(high, settings.partitions + 1, 1)])[high].result(30)
    change = ConfigEntry("retention.ms", "86400000", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ConfigResource.Type.TOPIC, low, incremental_configs=[change])
    for altered in admin.incremental_alter_configs([resource]).values():
        altered.result(30)
    return settings


def test_topics_check_and_create_name_what_breaks_a_guarantee(bent: Settings, tmp_path: Path) -> None:
    command = CommandLine.on(bent, tmp_path)

    checked, people, created = (
        command("topics", "check", "--json"),
        command.here("topics", "check"),
        command.here("topics", "create"),
    )

    *findings, summary = checked.records()
    wrong = [finding for finding in findings if finding["level"] == "error"]
    assert checked.code == 1
    assert summary == {"findings": len(findings), "errors": len(wrong)}
    high, low = (
        " ".join(finding["fact"] for finding in wrong if finding["subject"].endswith(topic))
        for topic in ("jobs.high", "jobs.low")
    )
    assert "4 partition(s), not 3" in high
    assert "retention.ms" in low
    assert all(finding["remedy"] for finding in wrong)
    assert people.code == 1
    assert sum(line.startswith("   error  ") for line in people.out.splitlines()) == len(wrong)
    assert created.code == 1
    assert f"{bent.topic_prefix}jobs.high" in created.err
    assert "Traceback" not in created.err


def listening(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


@pytest.mark.timeout(240)
def test_up_serves_other_processes_until_ctrl_c_and_takes_its_kafka_along(shop: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    command = CommandLine(shop, {"RUSTFS_WORKERS_DATA_DIR": str(data), "RUSTFS_WORKERS_PARTITIONS": "2"})

    with command.running("up", "--import", "shop_jobs") as up:
        up.wait_for("worker ready", 120)
        broker = running_broker(data / "kafka")
        assert broker is not None
        assert f"Kafka ready at {broker.address}" in up.err.read_text()
        assert (data / "kafka" / "address").read_text().strip() == broker.address
        with CommandLine(tmp_path, command.environment).running("up") as another:
            another.wait_for("worker ready", 60)
            another.interrupt()
            beside = another.end(60)
        assert beside.code == 130, beside.err
        assert f"Kafka ready at {broker.address}" in beside.err
        assert "one group, and each needs the job types of all" in beside.err
        assert f"{default_worker_id()}-{another.process.pid}.0" in beside.err, "a name of its own"
        assert listening(broker.address), "it was not the second one's"

        job_id = submitted(command("submit", "test_cli_stays", "--import", "shop_jobs"))
        eventually((shop / "begun").exists, 60, "the job runs")
        assert command("kafka", "status", "--json").records()[0]["address"] == broker.address
        up.interrupt()
        up.wait_for("draining")
        (shop / "enough").touch()
        ended = up.end(90)

    assert ended.code == 130
    assert ended.out == ""
    assert (shop / "ended").exists()
    assert not psutil.pid_exists(broker.pid)
    assert not listening(broker.address)
    gone = command("jobs", "show", job_id)
    assert gone.code == 3
    assert "rustfs-workers up" in gone.err


def test_up_ends_by_name_when_its_kafka_dies(tmp_path: Path) -> None:
    """A worker waits for a Kafka that is somebody else's to bring back; nobody would bring back this one."""
    data = tmp_path / "data"
    command = CommandLine(tmp_path, {"RUSTFS_WORKERS_DATA_DIR": str(data), "RUSTFS_WORKERS_PARTITIONS": "2"})
    with command.running("up") as up:
        up.wait_for("worker ready", 120)
        broker = running_broker(data / "kafka")
        assert broker is not None
        os.kill(broker.pid, signal.SIGKILL)
        # Somebody starts another one meanwhile, on the same port, as `kafka start` would choose it.
        successor = replace(broker, pid=os.getpid(), started=psutil.Process().create_time(), owner=None)
        write_state(data / "kafka", successor)
        ended = up.end(90)
    assert (data / "kafka" / "address").read_text() == f"{broker.address}\n"
    assert ended.code == 1
    assert "error: Kafka ended by itself" in ended.err
    assert str(data / "kafka" / "broker.log") in ended.err


@pytest.mark.timeout(180)
def test_an_up_that_is_told_to_end_while_it_starts_leaves_no_kafka_that_others_would_look_for(
    tmp_path: Path,
) -> None:
    data = tmp_path / "data"
    command = CommandLine(tmp_path, {"RUSTFS_WORKERS_DATA_DIR": str(data), "RUSTFS_WORKERS_PARTITIONS": "2"})

    with command.running("up") as up:
        eventually((data / "kafka" / "address").exists, 120, "its Kafka answers")
        broker = running_broker(data / "kafka")
        up.interrupt(signal.SIGTERM)
        ended = up.end(90)

    assert broker is not None
    assert ended.code == 0, ended.err
    assert "worker ready" not in ended.err, "it still started"
    assert not psutil.pid_exists(broker.pid)
    assert [name for name in ("address", "broker.json") if (data / "kafka" / name).exists()] == []


async def test_a_demo_ends_by_name_when_its_kafka_dies(settings: Settings) -> None:
    """Its worker would wait for a Kafka that nobody brings back."""
    provision(settings)
    settings = settings.model_copy(update={"worker_id": "demo"})
    dead = PipelineError("Kafka ended by itself")

    def check() -> None:
        raise dead

    with pytest.raises(PipelineError) as ended:
        await asyncio.wait_for(_replicate(settings, Objects({"a": 1}), unseen, check), 60)
    assert ended.value is dead


@pytest.mark.timeout(180)
def test_a_demo_whose_kafka_is_killed_says_so_in_one_line(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(5_000):  # enough to be at it when the Kafka dies
        (source / str(number)).write_text(str(number))
    command = CommandLine(tmp_path, {"RUSTFS_WORKERS_PARTITIONS": "2"})

    with command.running("demo", "--source", "source", "--dir", "demo", "--json") as demo:
        demo.wait_for("replicating", 120)
        broker = running_broker(tmp_path / "demo" / "kafka")
        assert broker is not None
        os.kill(broker.pid, signal.SIGKILL)
        ended = demo.end(90)

    assert (ended.code, ended.out) == (1, ""), ended.err
    assert "Traceback" not in ended.err
    assert "never retrieved" not in ended.err
    (error,) = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert error.startswith("error: Kafka ended by itself")


def snapshot(directory: Path) -> dict[str, tuple[int, int, bytes | None]]:
    """Names, kinds, times of change and contents of everything below."""
    return {
        str(path.relative_to(directory)): (
            path.lstat().st_mode,
            path.lstat().st_mtime_ns,
            path.read_bytes() if path.is_file() and not path.is_symlink() else None,
        )
        for path in directory.rglob("*")
    }


def follow_what_it_says(said: str, directory: Path) -> None:
    """The commands with which somebody looks at the demo's dead letter, in their order."""
    environment = dict(
        line.split("export ")[1].split("=", 1) for line in said.splitlines() if "  export " in line
    )
    command = CommandLine(directory, environment)
    typed = [line.removeprefix("  ").removeprefix("uv run ") for line in said.splitlines()]
    lines = [line.split()[1:] for line in typed if line.startswith("rustfs-workers ")]
    assert [line[:2] for line in lines] == [
        ["kafka", "start"],
        ["dlq", "show"],
        ["dlq", "redrive"],
        ["kafka", "stop"],
    ]
    try:
        for line in lines[:-1]:
            done = command(*line)
            assert done.code == 0, (line, done.err)
            if line[1] == "show":
                assert "there-is-no-such-object" in done.out
        priorities = Counter(
            job["priority"] for job in command("jobs", "list", "--json").records() if "id" in job
        )
        assert priorities == {"high": 5, "normal": 27}, "a few are urgent"
    finally:
        assert command(*lines[-1]).code == 0


@pytest.mark.timeout(300)
def test_the_demo_replicates_a_folder_with_odd_files_and_can_be_repeated(kafka: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep" / "er").mkdir(parents=True)
    for number in range(30):
        (source / "deep" / f"{number} ä.txt").write_text(f"file {number}\n" * number)
    (source / "deep" / "er" / "empty").touch()
    (source / "link").symlink_to("deep/1 ä.txt")
    os.mkfifo(source / "pipe")
    (source / "line\nbreak").write_text("no node takes that name")
    before = snapshot(source)
    command = CommandLine(tmp_path, {"RUSTFS_WORKERS_PARTITIONS": "2"})

    first = command("demo", "--source", "source", "--dir", "demo", timeout_s=180)

    assert first.code == 0, first.err
    assert "31 objects on node-1, 31 verified on node-2 and node-3 by SHA-256" in first.out
    assert "left out, symbolic link: source/link" in first.out
    assert "It ran 3 times" in first.out
    assert "ObjectMissing" in first.out
    assert "\x1b" not in first.out + first.err
    for node in ("node-1", "node-2", "node-3"):
        assert (tmp_path / "demo" / node / "demo" / "deep" / "7 ä.txt").read_text() == "file 7\n" * 7
    assert running_broker(tmp_path / "demo" / "kafka") is None
    follow_what_it_says(first.out, tmp_path)

    # Once more in the same directory, for programs, on a given Kafka, which is left as it was.
    (tmp_path / "demo" / "node-2" / "demo" / "stray").write_text("of an earlier demo")
    admin = AdminClient({"bootstrap.servers": kafka})
    topics = set(admin.list_topics(timeout=10).topics)
    given = CommandLine(tmp_path, {"KAFKA_BOOTSTRAP_SERVERS": kafka, "RUSTFS_WORKERS_PARTITIONS": "2"})

    second = given("demo", "--source", "source", "--dir", "demo", "--json", timeout_s=180)

    assert second.code == 0, second.err
    (summary,) = second.records()
    assert {name: summary[name] for name in ("objects", "replicated", "dead_letters", "verified")} == {
        "objects": 31,
        "replicated": 31,
        "dead_letters": 1,
        "verified": True,
    }
    assert summary["bytes"] == 2 * sum(path.stat().st_size for path in (source / "deep").rglob("*.txt"))
    assert summary["seconds"] > 0
    assert summary["jobs_per_s"] > 0
    assert summary["left_out"] == {
        "symbolic link": 1,
        "no regular file": 1,
        "a node refuses the name": 1,
    }
    assert [Path(path).name for path in summary["left_out_files"]["no regular file"]] == ["pipe"]
    assert not (tmp_path / "demo" / "node-2" / "demo" / "stray").exists()
    left = {name for name in admin.list_topics(timeout=10).topics if name.startswith("demo-")}
    assert left <= topics
    assert snapshot(source) == before


@pytest.mark.timeout(180)
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_an_interrupted_demo_drains_stops_its_kafka_and_leaves_nothing_in_its_default_directory(
    tmp_path: Path, how: signal.Signals
) -> None:
    source, temporary = tmp_path / "source", tmp_path / "tmp"
    source.mkdir()
    temporary.mkdir()
    for number in range(5_000):  # enough to be at it when Ctrl-C comes
        (source / str(number)).write_text(str(number))
    command = CommandLine(tmp_path, {"RUSTFS_WORKERS_PARTITIONS": "2", "TMPDIR": str(temporary)})

    with command.running("demo", "--source", "source", "--json") as demo:
        demo.wait_for("replicating", 120)
        (made,) = temporary.glob("rustfs-workers-demo-*")
        broker = running_broker(made / "kafka")
        demo.interrupt(how)
        ended = demo.end(90)

    assert broker is not None
    assert ended.code == 130, ended.err
    assert ended.out == ""
    assert "Traceback" not in ended.err
    assert not psutil.pid_exists(broker.pid)
    assert list(temporary.glob("rustfs-workers-demo-*")) == []
