"""The commands where no Kafka is needed: help, versions, settings, schemas, and what wrong usage is told."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import typer.core
import typer.main

from schemas import Job
from streams.redrive import RedriveReport
from tests.support.commands import invoke as run
from workers.cli import app

pytestmark = [pytest.mark.job_processing, pytest.mark.usefixtures("somewhere_else")]

JOBS = """
from dataclasses import dataclass
from workers import Job

@dataclass
class Resize(Job):
    job_type = "test_resize"
    path: str
    width: int = 100

    async def execute(self, context): ...
"""


LOUD_JOB = """
from dataclasses import dataclass
from workers import Job

@dataclass
class Loud(Job):
    job_type = "test_loud"
    path: str

    def __post_init__(self):
        print("here I am")

    def ordering_key(self):
        print("and my key")
        return "k"

    async def execute(self, context): ...
"""


def commands() -> dict[str, typer.core.TyperCommand]:
    """Every command with its path, ``jobs list``."""
    root = typer.main.get_command(app)
    assert isinstance(root, typer.core.TyperGroup)
    found: dict[str, typer.core.TyperCommand] = {}
    for name, command in root.commands.items():
        if isinstance(command, typer.core.TyperGroup):
            found |= {f"{name} {inner}": each for inner, each in command.commands.items()}  # type: ignore[misc]
        else:
            assert isinstance(command, typer.core.TyperCommand)
            found[name] = command
    return found


@pytest.mark.parametrize("path", sorted(commands()))
def test_help_of_every_command_has_an_example_that_calls_it(path: str) -> None:
    result = run(*path.split(), "--help")

    assert result.exit_code == 0
    head, _, examples = result.stdout.partition("\n\n  Example")
    assert f"rustfs-workers {path}" in examples.partition("\n\n")[0], head
    assert "\\b" not in result.stdout


@pytest.mark.parametrize("group", ["jobs", "dlq", "topics", "kafka", "bench", "schemas", "config"])
def test_help_of_every_group_has_examples_of_its_commands(group: str) -> None:
    _, _, examples = run(group, "--help").stdout.partition("\n\n  Examples:\n")
    lines = examples.partition("\n\n")[0].splitlines()
    assert lines
    assert all(f"rustfs-workers {group} " in line for line in lines)


@pytest.mark.parametrize(
    "arguments",
    [
        ["demo", "--source", ""],
        ["demo", "--dir", ""],
        ["schemas", "export", ""],
        ["kafka", "run", "--data-dir", ""],
    ],
)
def test_an_empty_directory_is_not_the_one_that_somebody_is_in(arguments: list[str]) -> None:
    """It is what a variable of the shell stands for that is not set."""
    refused = run(*arguments)
    assert refused.exit_code == 2
    assert "it is empty; '.' is the directory that you are in" in refused.stderr


@pytest.mark.parametrize("command", ["demo --source", "demo --dir", "schemas export", "kafka run --data-dir"])
@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("x" * 5000, "File name too long"),
        ("~nosuchuser/x", "'~nosuchuser/x' names the home of a user who is not known here"),
        ("locked", "'locked': Permission denied"),
        ("locked/inside", "'locked/inside': Permission denied"),
    ],
)
def test_a_directory_that_cannot_be_used_is_one_line(
    command: str, named: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Root may enter all of them: what others get to hear is made here."""
    is_file, access = Path.is_file, os.access

    def is_file_for_others(path: Path, **facts: Any) -> bool:
        if path == Path("locked/inside"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return is_file(path, **facts)

    for starts in ("streams.embedded.EmbeddedBroker", "workers.demo.run_demo"):
        monkeypatch.setattr(starts, lambda *_: pytest.fail("it was not refused"))
    (tmp_path / "locked").mkdir()
    monkeypatch.setattr(Path, "is_file", is_file_for_others)
    monkeypatch.setattr(os, "access", lambda path, mode: path != Path("locked") and access(path, mode))

    result = run(*command.split(), named)

    assert result.exit_code == 2
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr) < 600


def test_every_command_says_in_one_line_what_it_does() -> None:
    """The list of commands is not cut: no line of it ends in dots."""
    for group in ("", "jobs", "dlq", "topics", "kafka", "bench", "schemas", "config"):
        shown = run(*group.split(), "--help").stdout.partition("Commands:\n")[2]
        assert shown, group
        assert [line for line in shown.splitlines() if line.endswith("...")] == [], group


#: They print what is for people, or nothing.
NO_DATA = {"up", "worker", "kafka stop"}


@pytest.mark.parametrize("path", sorted(commands().keys() - NO_DATA))
def test_every_command_that_prints_data_takes_json(path: str) -> None:
    assert "--json" in run(*path.split(), "--help").stdout


@pytest.mark.parametrize("path", sorted(commands()))
def test_every_option_says_what_it_is_for(path: str) -> None:
    silent = [
        parameter.name
        for parameter in commands()[path].params
        if not getattr(parameter, "help", None) and not getattr(parameter, "hidden", False)
    ]

    assert silent == []


@pytest.mark.parametrize("arguments", [["--help"], ["jobs", "list", "--help"], ["version"], ["kafka", "-h"]])
def test_help_and_version_load_nothing_that_takes_long(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from workers.cli import app\n"
        f"try: app({arguments!r})\n"
        "except SystemExit as end: code = end.code\n"
        "slow = {'pydantic', 'structlog', 'rich', 'confluent_kafka', 'aiokafka', 'fastavro', 'obstore'}\n"
        "print(sorted(slow & set(sys.modules)), code, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stderr.strip() == "[] 0"


def test_ctrl_c_while_the_program_loads_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt\n")
    done = subprocess.run(
        [sys.executable, "-m", "workers", "version"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_are_no_failure(closed: str) -> None:
    """As some init systems start programs."""
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" -m workers config show --json {closed}', sys.executable],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert bool(done.stdout) == (closed == "2>&-")


def test_a_stdout_that_lacks_characters_gets_escapes() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "workers", "config", "show"],
        env={**os.environ, "PYTHONIOENCODING": "ascii", "RUSTFS_WORKERS_DATA_DIR": "/zürich"},
        capture_output=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert rb"z\xfcrich" in done.stdout


def test_version_names_what_matters_in_a_report() -> None:
    plain, machine = run("version"), run("version", "--json")

    assert plain.stdout.startswith("rustfs-workers ")
    assert set(json.loads(machine.stdout)) == {"rustfs-workers", "python", "confluent-kafka"}
    assert run("--version").stdout == plain.stdout


def test_an_unknown_command_is_told_its_nearest_neighbour() -> None:
    result = run("submitt")

    assert result.exit_code == 2
    assert "submit" in result.stderr
    assert run("jobs", "list", "--limit", "0").exit_code == 2


def test_config_show_masks_secrets_and_says_where_values_come_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_SECURITY_PROTOCOL", "SASL_SSL")
    monkeypatch.setenv("KAFKA_SASL_USERNAME", "alice")
    monkeypatch.setenv("KAFKA_SASL_PASSWORD", "hunter2")
    monkeypatch.setenv("SCHEMA_REGISTRY_URL", "https://me:hunter3@one:8081/")

    people, programs = run("config", "show"), run("config", "show", "--json")

    *records, summary = map(json.loads, programs.stdout.splitlines())
    rows = {row["name"]: row for row in records}
    assert summary == {"settings": len(rows), "file": None}
    assert rows["kafka_sasl_username"]["value"] == "alice"
    assert rows["kafka_sasl_password"]["source"] == "KAFKA_SASL_PASSWORD"
    assert "alice" in people.stdout
    for shown in (people.output, programs.output):
        assert "hunter" not in shown
        assert "******" in shown


def test_config_show_refuses_a_node_that_a_worker_would_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUSTFS_WORKERS_NODES__N1", "ftp://host/?sig=hunter2")
    result = run("config", "show")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "n1" in result.stderr
    assert "hunter2" not in result.stderr


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("RUSTFS_WORKERS_PARTITIONS", "many"),
        ("RUSTFS_WORKERS_LOG_LEVEL", "loud"),
        ("KAFKA_BOOTSTRAP_SERVERS", "http://kafka"),
        ("RUSTFS_WORKERS_PARTITOINS", "3"),
    ],
)
@pytest.mark.parametrize(
    "command", ["config show", "jobs list", "worker", "submit replication", "kafka status"]
)
def test_a_wrong_setting_is_refused_by_name(
    command: str, variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)

    result = run(*command.split())

    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith(f"error: {variable} ")
    assert "Traceback" not in result.stderr


def test_a_wrong_key_in_the_settings_file_is_refused_with_its_file(tmp_path: Path) -> None:
    (tmp_path / "rustfs-workers.toml").write_text("partitoins = 3\n")

    result = run("config", "show")

    assert result.exit_code == 2
    assert "partitoins in" in result.stderr
    assert "did you mean partitions" in result.stderr


def test_schemas_export_writes_every_built_in_schema(tmp_path: Path) -> None:
    result = run("schemas", "export", str(tmp_path / "new" / "avro"))

    written = sorted(path.name for path in (tmp_path / "new" / "avro").iterdir())
    assert result.exit_code == 0
    assert [Path(line).name for line in result.stdout.splitlines()] == written
    *files, summary = map(
        json.loads, run("schemas", "export", str(tmp_path / "b"), "--json").stdout.splitlines()
    )
    assert [Path(record["file"]).name for record in files] == written
    assert summary == {"files": len(written)}
    assert {"envelope.avsc", "replication.avsc", "status_change.avsc", "worker_report.avsc"} <= set(written)
    assert json.loads((tmp_path / "new" / "avro" / "replication.avsc").read_text())["name"] == "Replication"


def test_schemas_export_into_a_file_is_one_line_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")

    result = run("schemas", "export", str(tmp_path / "taken"))

    assert result.exit_code == 2
    assert f"'{tmp_path / 'taken'}' is no directory" in result.stderr


def test_schemas_check_looks_at_imported_types_and_names_the_bad_ones(tmp_path: Path) -> None:
    (tmp_path / "check_good_jobs.py").write_text(JOBS.replace("test_resize", "test_check_good"))
    (tmp_path / "check_bad_jobs.py").write_text(
        JOBS.replace("test_resize", "test_check_bad")
        .replace("class Resize", "class Bad")
        .replace("int", "object")
    )

    good = run("schemas", "check", "--import", "check_good_jobs")
    bad = run("schemas", "check", "--import", "check_bad_jobs", "--json")

    assert "replication: ok" in good.stdout.splitlines()
    assert "test_check_good: ok" in good.stdout.splitlines()
    *rows, summary = map(json.loads, bad.stdout.splitlines())
    found = {row["type"]: row for row in rows}
    # Other tests of this process may have declared types that no schema can be made of.
    assert summary == {"types": len(rows), "wrong": sum(not row["ok"] for row in rows)}
    assert bad.exit_code == 1
    assert found["replication"]["ok"] is True
    assert found["test_check_bad"]["ok"] is False
    assert "Bad" in found["test_check_bad"]["problem"]
    from schemas import job

    job._declared.pop("test_check_bad")  # other tests look at all declared types


def test_a_module_that_ends_the_program_is_named(tmp_path: Path) -> None:
    (tmp_path / "script_jobs.py").write_text("import sys\nsys.exit(0)\n")
    result = run("schemas", "check", "--import", "script_jobs")
    assert result.exit_code == 2
    assert "--import script_jobs: SystemExit" in result.stderr


def test_what_a_module_prints_while_it_is_imported_is_no_data(tmp_path: Path) -> None:
    (tmp_path / "talkative_jobs.py").write_text("print('hello from talkative_jobs')\n")
    result = run("schemas", "check", "--import", "talkative_jobs", "--json")
    # Other tests of this process may have declared types that no schema can be made of: those are told of as well.
    assert "hello from talkative_jobs" in result.stderr.splitlines()
    for line in result.stdout.splitlines():
        json.loads(line)


def test_what_imports_nothing_needs_no_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert "replication: ok" in run("schemas", "check").stdout.splitlines()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nope"], "job type 'nope' is not known here (known: "),
        (["replicaton"], "did you mean replication? Else import the module that declares it"),
        (["nope"], "--import my_package.jobs"),
        (["test_resize", "--import", "submit_jobs"], "test_resize needs path; its fields: path, width"),
        (["test_resize", "pth=a"], "test_resize has no field 'pth'; did you mean path?"),
        (["test_resize", "colour=a"], "test_resize has no field 'colour'; it has path, width"),
        (["test_resize", "path"], "'path': write FIELD=VALUE"),
        (["test_resize", "path=a", "width=wide"], "test_resize.width is 'wide': it takes a whole number"),
        (["test_resize", "path=a", "--delay", "soon"], "'soon' is not a duration; write 500ms, 30s"),
        (["test_resize", "path=a", "--delay", "99999999999d"], "'99999999999d' is too long"),
        (["test_resize", "path=a", "--import", "./my_jobs.py"], "--import ./my_jobs.py: write my_jobs, "),
        (["test_resize", "path=a", "--import", "my/jobs.py"], "--import my/jobs.py: write my.jobs, "),
        (["test_resize", "path=a", "--import", ""], "write the name of a module, as `import` takes it"),
        (["test_resize", "path=a", "--priority", "urgent"], "'critical', 'high', 'normal', 'low'"),
        (["test_resize", "path=a", "--import", "no_such_module"], "--import no_such_module: "),
        (["test_resize", "path=a", "--import", "raises_at_once"], "RuntimeError: not today"),
        (["replication", "source_path=a", "target_nodes=n2"], "'a'"),
        (["replication", "source_path=b/../a", "target_nodes=n2"], "b/../a"),
        (["replication", "source_path=b/a", "target_nodes="], "target_nodes"),
        (["replication", "source_path=b/a", "target_nodes=[1,2]"], "replication.target_nodes is '[1,2]'"),
        (["replication", "source_path=b/a", 'target_nodes={"a":1}'], "an item is a text"),
        (["replication", "source_path=b/a", "target_nodes=n2", "replication_factor=2"], "replication_factor"),
        (["test_resize", "path=a", "--timeout", "never"], "'never' is not a duration"),
        (["test_resize", "path=a", "--job-id", "seven"], "seven"),
        (["test_resize", "path=a", "--job-id", ""], "job_id is ''"),
        ([], "Missing argument 'TYPE'"),
    ],
)
def test_submit_refuses_what_is_wrong_and_says_what_to_do(
    arguments: list[str], said: str, tmp_path: Path
) -> None:
    (tmp_path / "submit_jobs.py").write_text(JOBS)
    (tmp_path / "raises_at_once.py").write_text("raise RuntimeError('not today')\n")
    if "--import" not in arguments:
        arguments = [*arguments, "--import", "submit_jobs"]

    result = run("submit", *arguments)

    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


def test_what_a_job_prints_while_it_is_made_is_no_data(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "loud_jobs.py").write_text(LOUD_JOB)

    def schedule(_: object, job: Job, *__: object, job_id: str, **___: object) -> str:
        assert job.ordering_key() == "k"
        return job_id

    monkeypatch.setattr("streams.producer.JobProducer.schedule_job", schedule)

    result = run("submit", "test_loud", "path=a", "--import", "loud_jobs")

    assert result.exit_code == 0, result.stderr
    (line,) = result.stdout.splitlines()
    assert json.loads(line)["id"]
    assert result.stderr.splitlines() == ["here I am", "and my key"]


def test_a_submit_that_is_interrupted_says_under_which_id_it_may_be_scheduled(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Repeated without it, it would make a second job."""
    (tmp_path / "submit_jobs.py").write_text(JOBS)
    ids: list[str] = []

    def interrupted(*_: object, job_id: str, **__: object) -> None:
        ids.append(job_id)
        raise KeyboardInterrupt

    monkeypatch.setattr("streams.producer.JobProducer.schedule_job", interrupted)

    result = run("submit", "test_resize", "path=a", "--import", "submit_jobs")

    assert result.exit_code == 130
    (job_id,) = ids
    assert f"--job-id {job_id}" in result.stderr


@pytest.mark.parametrize(
    "command",
    [
        "jobs list",
        "jobs show 01a20bee-31e9-7596-9025-062d10b97714",
        "dlq list --json",
        "dlq show 01a20bee-31e9-7596-9025-062d10b97714",
        "dlq redrive --all",
        "topics create",
        "topics check",
        "worker",
        "worker --processes 2",
        "submit replication source_path=bucket/a target_nodes=n2",
    ],
)
def test_without_kafka_every_command_names_the_one_that_starts_it(command: str) -> None:
    result = run(*command.split())

    assert result.exit_code == 3
    assert "rustfs-workers up" in result.stderr
    assert "KAFKA_BOOTSTRAP_SERVERS" in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_a_kafka_that_does_not_answer_is_told_once_and_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing listens on port 1. librdkafka's own lines about it are kept back."""
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1")

    for command in ("topics check", "jobs list", "dlq list", "up"):
        result = run(*command.split())

        assert result.exit_code == 3, command
        told = re.match(
            r"error: no Kafka broker answered at 127\.0\.0\.1:1 within [345] s; look", result.stderr
        )
        assert told, result.stderr
        assert "rustfs-workers up" in result.stderr
        assert result.stderr.count("\n") == 1


def test_kafka_status_says_what_the_other_commands_use(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "kafka.example:9092")
    result = run("kafka", "status", "--data-dir", str(tmp_path))
    assert result.exit_code == 1
    assert "the other commands use the Kafka at kafka.example:9092" in result.stderr


def test_redrive_without_a_choice_says_how_to_choose() -> None:
    result = run("dlq", "redrive")

    assert result.exit_code == 2
    for option in ("--type", "--error", "--all", "--dry-run"):
        assert option in result.stderr


def test_redrive_takes_ids_or_all_and_not_both() -> None:
    """Whoever names one and says all would get that one, and think that all have a new life."""
    result = run("dlq", "redrive", "a-job", "--all")

    assert result.exit_code == 2
    assert result.stderr == "error: say ids or --all, not both; --all takes all that wait\n"


def test_a_letter_that_waits_and_does_not_match_is_said_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    report = RedriveReport((), (), (), not_matching=("a-job",))
    monkeypatch.setattr("streams.redrive.redrive", lambda *_, **__: report)

    people, programs = (run("dlq", "redrive", "a-job", "--type", "t", *more) for more in ([], ["--json"]))

    assert (people.exit_code, programs.exit_code) == (1, 1)
    assert "not matching: a-job waits, and --type or --error leaves it out\n" in people.stderr
    assert "no dead letter" not in people.stderr
    assert json.loads(programs.stdout.splitlines()[-1])["not_matching"] == ["a-job"]


def test_a_redrive_that_is_interrupted_says_how_far_it_came(monkeypatch: pytest.MonkeyPatch) -> None:
    def redrive(*_: object, after_batch: Callable[[int], None], **__: object) -> None:
        after_batch(7)
        raise KeyboardInterrupt

    monkeypatch.setattr("streams.redrive.redrive", redrive)

    result = run("dlq", "redrive", "--all", "--rate", "1")

    assert result.exit_code == 130
    assert result.stderr == "interrupted: at least 7 jobs got a new life; run it again for what is left\n"


@pytest.mark.parametrize(
    ("arguments", "code"), [(["--all"], 0), (["--error", "x"], 0), (["p.jobs.dlq/0/7"], 1)]
)
def test_a_letter_that_no_redrive_can_help_fails_only_whoever_names_it(
    arguments: list[str], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays for thirty days, and ``--all`` means all that can be run."""
    letter = SimpleNamespace(id="p.jobs.dlq/0/7", error_type="BadFrame", can_run=False)
    report = RedriveReport(("a-job",), (cast("Any", letter),), ())
    monkeypatch.setattr("streams.redrive.redrive", lambda *_, **__: report)

    people, programs = run("dlq", "redrive", *arguments), run("dlq", "redrive", *arguments, "--json")

    assert (people.exit_code, programs.exit_code) == (code, code)
    assert "refused: p.jobs.dlq/0/7 holds no job that could run (BadFrame)" in people.stderr
    assert "rustfs-workers dlq show p.jobs.dlq/0/7" in people.stderr
    assert json.loads(programs.stdout.splitlines()[-1])["refused"] == ["p.jobs.dlq/0/7"]


def test_kafka_status_and_stop_without_a_kafka() -> None:
    status, machine, stop = run("kafka", "status"), run("kafka", "status", "--json"), run("kafka", "stop")

    assert status.exit_code == 1
    assert "no Kafka runs on" in status.stderr
    assert json.loads(machine.stdout)["running"] is False
    assert stop.exit_code == 0


def test_where_the_log_is_for_programs_the_reason_of_an_end_is_a_line_of_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "workers", "jobs", "list"]
    environment = {
        **os.environ,
        "RUSTFS_WORKERS_LOG_FORMAT": "json",
        "RUSTFS_WORKERS_DATA_DIR": str(tmp_path),
    }
    environment.pop("KAFKA_BOOTSTRAP_SERVERS", None)
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 3
    (line,) = ended.stderr.splitlines()
    assert json.loads(line)["event"].startswith("no Kafka is known")
