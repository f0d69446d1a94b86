"""What every command does alike: where data and logs go, tables, details, errors and their exit codes."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import structlog
from confluent_kafka import KafkaError, KafkaException

from schemas.errors import (
    InvalidJob,
    JobTypeError,
    KafkaUnreachable,
    PayloadTooLarge,
    PipelineError,
    SettingsError,
    UnknownJobType,
    WorkerIdTaken,
)
from workers import console, logs

pytestmark = pytest.mark.job_processing

FULL_DISK = Path("/dev/full")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@contextmanager
def terminal(columns: int) -> Iterator[Terminal]:
    """Stdout is a terminal that is so wide."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(Terminal()) as screen:
        patch.setenv("COLUMNS", str(columns))
        patch.setenv("TERM", "xterm-256color")
        yield screen


@pytest.fixture
def _logging_afterwards() -> Iterator[None]:
    yield
    structlog.reset_defaults()


ROWS: list[dict[str, Any]] = [
    {"id": "01a20bee-31e9-7596-9025-062d10b97714", "n": 1, "error": "[bold] is no markup " + "x" * 300},
    {"id": "01a20bee-31e9-7596-9025-062d10b97715", "n": None, "error": ""},
]


def test_a_table_for_a_program_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    console.table(ROWS, ["id", "n", "error"])

    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["id", "n", "error"]
    assert lines[1] == f"{ROWS[0]['id']}  1  {ROWS[0]['error']}"
    assert lines[2] == ROWS[1]["id"]


def test_a_table_for_a_program_is_whole_where_colour_is_forced(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on build servers: what is piped there is read by a program all the same."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    console.table(ROWS, ["id", "n", "error"])
    assert ROWS[0]["error"] in capsys.readouterr().out


def test_what_others_wrote_moves_no_cursor_and_ends_no_row(capsys: pytest.CaptureFixture[str]) -> None:
    """An error message is whatever a handler, or a producer of bytes that nobody can read, put there."""
    evil = "one\ntwo\x1b[2J\x1b]0;title\x07\x9b31m\u202e\ud800 ä"
    escaped = r"two\x1b[2J\x1b]0;title\x07\x9b31m\u202e\ud800 ä"

    console.table([{"id": "a", "error": evil}, {"id": "b", "error": "x"}], ["id", "error"])
    console.details({"id": "a", "error": evil, "evil\x1b": 1})

    console.say(f"error: {evil}")

    printed = capsys.readouterr()
    assert printed.err.splitlines() == ["error: one", escaped]
    assert printed.out.splitlines() == [
        "id  error",
        rf"a   one\n{escaped}",
        "b   x",
        "      id  a",
        "   error  one",
        f"          {escaped}",
        r"evil\x1b  1",
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "iso-8859-1", "ascii"])
def test_json_is_json_whatever_stdout_can_hold(encoding: str) -> None:
    record = {"a": "ä…", "lone": "\ud800"}
    for given in (record, {"a": "ä"}):
        raw = io.BytesIO()
        with redirect_stdout(io.TextIOWrapper(raw, encoding)):
            console.emit(given)
            assert json.loads(raw.getvalue().decode(encoding)) == given


def test_json_is_one_line_and_moves_no_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    """A key of a job may hold line breaks of Unicode, and the C1 controls that terminals take for escapes."""
    record = {"key": "a\x85b\u2028c\x9b31m\x7f\u202e\U000e0001", "error": "größer 漢字"}
    console.emit(record)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.isprintable()
    assert "größer 漢字" in line
    assert json.loads(line) == record


def test_a_number_that_json_does_not_have_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    """A metric or an output may be infinite; other programs would refuse the whole line."""

    def refuse(name: str) -> None:
        raise ValueError(name)

    console.emit(
        {"metrics": {"a": float("nan"), "b": 0.5}, "output": [float("-inf"), (float("inf"), 1, "x")]}
    )
    read = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert read == {"metrics": {"a": "nan", "b": 0.5}, "output": ["-inf", ["inf", 1, "x"]]}


def test_a_table_on_a_terminal_cuts_the_last_column_and_no_id() -> None:
    with terminal(80) as screen:
        console.table(ROWS, ["id", "n", "error"])

    lines = screen.getvalue().splitlines()
    assert f"{ROWS[0]['id']}  1  [bold] is no mar" in lines[1]
    assert lines[1].endswith("…")
    assert len(lines[1]) == 80


def test_a_narrow_terminal_wraps_instead_of_cutting() -> None:
    with terminal(30) as screen:
        console.table(ROWS, ["id", "n", "error"])

    assert f"{ROWS[0]['id']}  1  {ROWS[0]['error']}" in screen.getvalue()


def test_letters_that_are_two_columns_wide_keep_the_columns_in_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    console.table([{"a": "漢字", "b": "x"}, {"a": "abcd", "b": "y"}], ["a", "b"])
    assert capsys.readouterr().out.splitlines() == ["a     b", "漢字  x", "abcd  y"]
    with terminal(26) as screen:
        console.table([{"a": "1234", "b": "漢" * 30}], ["a", "b"])
    assert screen.getvalue().splitlines()[1] == "1234  " + "漢" * 9 + " …"


def test_a_hundred_thousand_rows_are_printed_in_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    """`dlq list` after an incident: the tables of a library took minutes."""
    began = time.process_time()
    console.table([ROWS[0]] * 100_000, ["id", "n", "error"])
    assert len(capsys.readouterr().out.splitlines()) == 100_001
    assert time.process_time() - began < 8


def test_colours_are_for_terminals_that_want_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert logs.coloured(Terminal())
    assert not logs.coloured(io.StringIO())

    with terminal(80) as screen:
        console.table(ROWS, ["id", "n", "error"])
    assert "\x1b[" in screen.getvalue()

    monkeypatch.setenv("NO_COLOR", "1")
    assert not logs.coloured(Terminal())
    with terminal(80) as screen:
        console.table(ROWS, ["id", "n", "error"])
    assert "\x1b[" not in screen.getvalue()


def test_details_flatten_what_is_nested_and_leave_out_what_is_empty(
    capsys: pytest.CaptureFixture[str],
) -> None:
    console.details(
        {
            "id": "a",
            "error": None,
            "fields": {"path": "b/c", "nodes": ["n2", "n3"], "overwrite": False},
            "attempts": [{"attempt": 1, "error": "boom"}, {"attempt": 2, "error": ""}],
            "metrics": {},
        }
    )

    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        ["id", "a"],
        ["fields.path", "b/c"],
        ["fields.nodes", '["n2", "n3"]'],
        ["fields.overwrite", "false"],
        ["attempts.1.attempt", "1"],
        ["attempts.1.error", "boom"],
        ["attempts.2.attempt", "2"],
    ]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SettingsError("s"), 2),
        (UnknownJobType("t", []), 2),
        (InvalidJob("j"), 2),
        (PayloadTooLarge(2, 1), 2),
        (JobTypeError("t"), 2),
        (WorkerIdTaken("w"), 2),
        (KafkaUnreachable("k:9092", 5), 3),
        (KafkaException(KafkaError(KafkaError._ALL_BROKERS_DOWN)), 3),
        (KafkaException(KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED)), 1),
        (KafkaException(KafkaError(KafkaError._INVALID_ARG, "ssl.ca.location failed")), 2),
        (PipelineError("p"), 1),
        (FileNotFoundError(2, "No such file or directory", "/there"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_every_named_error_is_one_line_and_its_exit_code(
    error: BaseException, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end, console.errors_in_one_line():
        raise error

    written = capsys.readouterr()
    assert end.value.code == code
    assert written.out == ""
    assert written.err.count("\n") == (0 if code == 130 else 1)
    assert code == 130 or written.err.startswith("error: ")


def test_an_error_without_a_name_keeps_its_trace() -> None:
    with pytest.raises(ZeroDivisionError), console.errors_in_one_line():
        _ = 1 / 0


def test_a_full_disk_behind_stdout_is_one_line() -> None:
    """``rustfs-workers jobs list --json > file``"""
    code = "from workers.console import emit, errors_in_one_line\nwith errors_in_one_line():\n    emit({'n': 1})\n"
    with FULL_DISK.open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (
        1,
        "error: No space left on device; nothing more can be written\n",
    )


@pytest.mark.parametrize("command", ["version", "version --json", "--version", "--help", "kafka --help"])
def test_a_full_disk_is_one_line_where_a_command_needs_nothing_else(command: str) -> None:
    with FULL_DISK.open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "workers", *command.split()],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (
        1,
        "error: No space left on device; nothing more can be written\n",
    )


@pytest.mark.parametrize(
    "command", ["version", "version --json", "--version", "--help", "kafka --help", "config show"]
)
def test_a_reader_that_has_gone_is_no_failure_of_any_command(command: str) -> None:
    """``rustfs-workers version | true``"""
    reader, stdout = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "workers", *command.split()],
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        os.close(stdout)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_reader_that_has_seen_enough_is_no_failure() -> None:
    """``rustfs-workers config show --json | head -1``"""
    code = (
        "from workers.console import emit, errors_in_one_line\n"
        "with errors_in_one_line():\n"
        "    for n in range(100_000):\n"
        "        emit({'n': n})\n"
    )
    assert read_one_line(code) == ('{"n": 0}\n', "", 0)


def test_a_verdict_counts_though_nobody_reads_the_data() -> None:
    """``rustfs-workers topics check | head -1``, with ``pipefail``"""
    code = (
        "from workers.console import emit, errors_in_one_line, say, while_somebody_reads\n"
        "with errors_in_one_line():\n"
        "    with while_somebody_reads():\n"
        "        for n in range(100_000):\n"
        "            emit({'n': n})\n"
        "    say('error: it is not as it must be')\n"
        "    raise SystemExit(1)\n"
    )
    assert read_one_line(code) == ('{"n": 0}\n', "error: it is not as it must be\n", 1)


def read_one_line(code: str) -> tuple[str, str, int]:
    """What ``| head -1`` sees of a program; what that says on stderr; and how it ends."""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        process.stdout.close()
        return line, process.stderr.read(), process.wait(30)


@pytest.mark.usefixtures("_logging_afterwards")
@pytest.mark.parametrize("form", ["json", "console"])
def test_logs_go_to_stderr_and_only_as_many_as_asked_for(
    form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure_logging("warning", form)
    log = structlog.get_logger("test")

    log.info("of no interest")
    log.warning("job failed", job_id="j1")

    written = capsys.readouterr()
    assert written.out == ""
    assert "of no interest" not in written.err
    assert "job failed" in written.err
    assert "\x1b[" not in written.err
    if form == "json":
        assert json.loads(written.err)["job_id"] == "j1"


@pytest.mark.usefixtures("_logging_afterwards")
def test_each_line_says_whose_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Several processes write to one file; a line that is about another worker goes on naming that one."""
    monkeypatch.setattr(logs, "_NAMES", {})
    logs.configure_logging("info", "json")
    log = structlog.get_logger("test")
    log.info("before it had a name")

    logs.name_lines(worker="rack4.1")
    log.info("ours")
    log.info("about another one", worker="rack5.0")
    logging.getLogger("elsewhere").warning("a library's")

    lines = map(json.loads, capsys.readouterr().err.splitlines())
    assert [line.get("worker") for line in lines] == [None, "rack4.1", "rack5.0", "rack4.1"]


@pytest.mark.usefixtures("_logging_afterwards")
@pytest.mark.parametrize("form", ["json", "console"])
def test_lines_of_libraries_look_like_ours(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    """librdkafka's above all: whoever reads JSON from stderr finds nothing else there."""
    logs.configure_logging("info", form)
    lines = logging.getLogger("rustfs_workers.librdkafka")
    lines.warning("what it tries again by itself is no news")
    lines.error(f"FAIL [{form}#producer-7]: 127.0.0.1:1: Connection refused")
    try:
        raise ValueError("its own")
    except ValueError:
        logging.getLogger("elsewhere").exception("somebody's %s", "error")

    written = capsys.readouterr()
    assert written.out == ""
    assert "by itself" not in written.err
    if form == "console":
        assert "127.0.0.1:1: Connection refused" in written.err.splitlines()[0]
        return
    refused, error = map(json.loads, written.err.splitlines())
    assert refused["event"] == "FAIL [json#producer-7]: 127.0.0.1:1: Connection refused"
    assert (refused["level"], refused["logger"]) == ("error", "rustfs_workers.librdkafka")
    assert refused["timestamp"]
    assert error["event"] == "somebody's error"
    assert "ValueError: its own" in error["exception"]


@pytest.mark.parametrize(("number", "said"), [(0, "0 jobs"), (1, "1 job"), (1234, "1,234 jobs")])
def test_numbers_come_with_their_noun(number: int, said: str) -> None:
    assert console.counted(number, "job") == said


@pytest.mark.parametrize("lost", ["a reader that is gone", *(["a full disk"] if FULL_DISK.exists() else [])])
def test_logs_that_nobody_can_take_disturb_nobody(lost: str) -> None:
    """``rustfs-workers worker 2>&1 | head -1``, or ``2>>worker.log`` on a disk that fills up: the work goes on."""
    code = (
        "import structlog\n"
        "from workers.console import emit, say\n"
        "from workers.logs import configure_logging\n"
        "configure_logging()\n"
        "for n in range(3):\n"
        "    structlog.get_logger().warning('x' * 10_000)\n"
        "    say('x' * 10_000)\n"
        "emit({'went': 'on'})\n"
    )
    if lost == "a full disk":
        stderr = os.open(FULL_DISK, os.O_WRONLY)
    else:
        reader, stderr = os.pipe()
        os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=stderr, check=False
        )
    finally:
        os.close(stderr)
    assert (done.returncode, json.loads(done.stdout)) == (0, {"went": "on"})


def test_without_a_place_for_temporary_files_the_remedy_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error of the standard library names no file, and would show its trace."""

    def nowhere() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    with pytest.raises(SystemExit) as ended, console.errors_in_one_line():
        console.directory_for_a_while("test-")
    assert ended.value.code == console.FAILED
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path / "gone"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(SystemExit), console.errors_in_one_line():
        console.directory_for_a_while("test-")
    assert capsys.readouterr().err.count("TMPDIR") == 2
