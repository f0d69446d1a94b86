"""The whole way of a job on a real Kafka, with a real worker process: one test for each thing that a handler can say."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from schemas import JobPriority, JobStatus
from schemas.headers import parse
from streams.jobinfo import JobInfo
from streams.producer import JobProducer
from streams.reader import JobFilter, JobReader
from streams.settings import Settings
from tests.support.audit import audit, raw_headers, read_all, statuses
from tests.support.jobs import Fails, InProcess, InThread, Note, Parent, ReturnsNonsense, Snoozes, Waits
from tests.support.waiting import eventually
from tests.support.workers import runs, workers
from workers.config import WorkerConfig

pytestmark = [pytest.mark.job_processing, pytest.mark.integration]


class Lab:
    """A worker, a producer and a reader on one deployment."""

    def __init__(self, settings: Settings, directory: Path, producer: JobProducer, reader: JobReader) -> None:
        self.settings = settings
        self.directory = directory
        self.producer = producer
        self.reader = reader

    def final(self, *ids: str, timeout_s: float = 40) -> list[JobInfo]:
        """Wait until all of these are final."""

        def look() -> list[JobInfo] | None:
            known = {info.id: info for info in self.reader.list_jobs(JobFilter(limit=None))}
            found = [known[job_id] for job_id in ids if job_id in known and known[job_id].status.final]
            return found if len(found) == len(ids) else None

        found = eventually(look, timeout_s, f"{len(ids)} jobs final")
        assert isinstance(found, list)
        return found


@pytest.fixture
def lab(provisioned: Settings, tmp_path: Path) -> Iterator[Lab]:
    with workers(provisioned, tmp_path) as start, JobProducer(provisioned) as producer:
        worker = start("w1")
        reader = JobReader(provisioned)
        yield Lab(provisioned, tmp_path, producer, reader)
        reader.close()
        assert worker.process is not None
        assert worker.process.poll() is None, worker.stderr_file.read_text()[-3000:]


def test_a_job_succeeds_with_one_status_record(lab: Lab) -> None:
    job_id = lab.producer.schedule_job(Note(text="hello"), JobPriority.HIGH)
    (info,) = lab.final(job_id)
    assert (info.status, info.attempt, info.worker) == (JobStatus.SUCCEEDED, 1, "w1.0")
    assert [run["text"] for run in runs(lab.directory)] == ["hello"]
    assert [change.state for change in statuses(lab.settings)[job_id]] == [JobStatus.SUCCEEDED]


def test_a_failing_job_runs_again_and_remembers_its_attempts(lab: Lab) -> None:
    job_id = lab.producer.schedule_job(Fails(times=2))
    (info,) = lab.final(job_id)
    assert (info.status, info.attempt, info.output) == (JobStatus.SUCCEEDED, 3, {"runs": 3})
    last = statuses(lab.settings)[job_id][-1]
    assert [(a.attempt, a.error_type, a.error_message) for a in last.attempts] == [
        (1, "ValueError", "run 1 fails"),
        (2, "ValueError", "run 2 fails"),
    ]


def test_max_retries_three_means_four_runs_and_a_dead_letter_that_spring_tools_understand(lab: Lab) -> None:
    job_id = lab.producer.schedule_job(Fails(times=-1), max_retries=3)
    (info,) = lab.final(job_id)
    assert (info.status, info.attempt) == (JobStatus.FAILED, 4)
    assert [run["attempt"] for run in runs(lab.directory)] == [1, 2, 3, 4]
    (letter,) = read_all(lab.settings, lab.settings.topics.dlq)
    raw = dict(raw_headers(letter))
    origin = parse(raw_headers(letter)).origin
    assert origin is not None
    assert origin.topic == lab.settings.topics.jobs[JobPriority.NORMAL]
    assert raw["rfw-error-type"] == b"ValueError"
    assert raw["rfw-error-message"] == b"run 4 fails"
    assert raw["rfw-attempt"] == b"4"
    assert raw["kafka_dlt-original-topic"].decode() == origin.topic
    assert (
        int.from_bytes(raw["kafka_dlt-original-partition"], "big") == origin.partition == letter.partition()
    )
    assert int.from_bytes(raw["kafka_dlt-original-offset"], "big") == origin.offset
    assert len(raw["kafka_dlt-original-timestamp"]) == 8
    assert raw["kafka_dlt-exception-fqcn"] == b"ValueError"
    assert b"raise ValueError" in raw["kafka_dlt-exception-stacktrace"]


def test_the_bytes_of_a_dead_letter_are_those_that_were_scheduled(lab: Lab) -> None:
    job_id = lab.producer.schedule_job(Fails(permanent=True))
    (info,) = lab.final(job_id)
    assert (info.status, info.attempt) == (JobStatus.FAILED, 1)
    (letter,) = read_all(lab.settings, lab.settings.topics.dlq)
    (job,) = read_all(lab.settings, lab.settings.topics.jobs[JobPriority.NORMAL])
    assert letter.value() == job.value()
    assert letter.key() == job.key()


def test_a_handler_that_returns_nonsense_fails_alone_and_the_worker_goes_on(lab: Lab) -> None:
    bad = lab.producer.schedule_job(ReturnsNonsense())
    good = lab.producer.schedule_job(Note(text="after"))
    nonsense, note = lab.final(bad, good)
    assert (nonsense.status, nonsense.error_type, nonsense.attempt) == (JobStatus.FAILED, "BadResult", 1)
    assert note.status is JobStatus.SUCCEEDED


def test_snoozing_uses_up_no_attempt(lab: Lab) -> None:
    job_id = lab.producer.schedule_job(Snoozes(times=2), max_retries=0)
    (info,) = lab.final(job_id)
    assert (info.status, info.attempt) == (JobStatus.SUCCEEDED, 1)
    assert [run["attempt"] for run in runs(lab.directory)] == [1, 1, 1]


def test_children_exist_if_and_only_if_their_parent_succeeded(lab: Lab) -> None:
    """A run that fails after scheduling leaves no children; the one that succeeds leaves its own."""
    job_id = lab.producer.schedule_job(Parent(children=3, fail_first=True))
    (parent,) = lab.final(job_id)
    assert parent.output is not None
    children = parent.output["children"]
    assert {info.status for info in lab.final(*children)} == {JobStatus.SUCCEEDED}
    texts = [run["text"] for run in runs(lab.directory) if "text" in run]
    assert sorted(texts) == ["child 0", "child 1", "child 2"]


def test_plain_functions_run_in_threads_and_cpu_bound_ones_in_processes(lab: Lab) -> None:
    in_thread, in_process = lab.final(
        lab.producer.schedule_job(InThread()), lab.producer.schedule_job(InProcess())
    )
    assert in_thread.output is not None
    assert in_process.output is not None
    assert in_thread.output["thread"].startswith("handler")
    pids = {run["pid"] for run in runs(lab.directory)}
    assert in_process.output["pid"] in pids
    assert len(pids) == 2


def test_an_urgent_coroutine_starts_beside_more_process_jobs_than_there_are_slots(lab: Lab) -> None:
    go = lab.directory / "go"
    slots = WorkerConfig().max_concurrent_jobs
    slow = [lab.producer.schedule_job(InProcess(until=str(go)), JobPriority.LOW) for _ in range(slots + 1)]
    eventually(lambda: runs(lab.directory), 20, "the first of them runs")
    lab.final(lab.producer.schedule_job(Note(text="urgent"), JobPriority.CRITICAL))
    assert len(runs(lab.directory)) < slots, "they were waiting for a process"
    go.touch()
    assert {info.status for info in lab.final(*slow)} == {JobStatus.SUCCEEDED}


def test_a_timeout_ends_async_thread_and_process_handlers(lab: Lab) -> None:
    limit = timedelta(milliseconds=300)
    jobs = [Waits(), InThread(wait_s=30), InProcess(spin=True)]
    ids = [lab.producer.schedule_job(job, timeout=limit, max_retries=0) for job in jobs]
    waits, in_thread, in_process = lab.final(*ids, timeout_s=20)
    assert (waits.status, waits.error_type) == (JobStatus.FAILED, "Timeout")
    assert in_thread.status is JobStatus.SKIPPED, "it was asked to end, and said what it liked"
    assert (in_process.status, in_process.error_type) == (JobStatus.FAILED, "Timeout")


def test_a_long_job_shows_as_running(lab: Lab) -> None:
    go = lab.directory / "go"
    job_id = lab.producer.schedule_job(Waits(until=str(go)))
    eventually(lambda: lab.reader.get_job(job_id).status is JobStatus.RUNNING, 20, "the job shows as running")
    go.touch()
    lab.final(job_id)
    assert [c.state for c in statuses(lab.settings)[job_id]] == [JobStatus.RUNNING, JobStatus.SUCCEEDED]


@pytest.mark.parametrize("delay_ms", [400, 1_500, 6_400])
def test_a_delayed_job_is_never_early(lab: Lab, delay_ms: int) -> None:
    """Below a second it waits in memory, above it in retry topics, hop by hop."""
    before_ms = time.time_ns() // 1_000_000
    job_id = lab.producer.schedule_job(Note(text="late"), delay=timedelta(milliseconds=delay_ms))
    lab.final(job_id)
    (run,) = runs(lab.directory)
    assert run["at"] >= before_ms + delay_ms


def test_jobs_of_one_key_start_in_order_and_one_at_a_time(lab: Lab) -> None:
    go = lab.directory / "go"
    first = lab.producer.schedule_job(Waits(until=str(go), order_key="bucket/one"))
    others = [
        lab.producer.schedule_job(Note(text=str(number), order_key="bucket/one")) for number in range(5)
    ]
    free = lab.producer.schedule_job(Note(text="free", order_key="bucket/two"))
    lab.final(free)
    assert [run["what"] for run in runs(lab.directory) if run["key"] == "bucket/one"] == ["started"]
    go.touch()
    lab.final(first, *others)
    texts = [run.get("text") for run in runs(lab.directory) if run["key"] == "bucket/one" and "text" in run]
    assert texts == ["0", "1", "2", "3", "4"]


def test_undecodable_bytes_end_as_dead_letters_and_nothing_stops(lab: Lab) -> None:
    from confluent_kafka import Producer

    topic = lab.settings.topics.jobs[JobPriority.NORMAL]
    raw = Producer({"bootstrap.servers": lab.settings.bootstrap_servers()})
    rubbish = [b"", b"\x00", b"not avro at all", b"\xc3\x01" + bytes(8) + b"\x48" + b"a" * 36 + b"zz", None]
    for value in rubbish:
        raw.produce(topic, value, b"k", 0, headers={"mine": b"kept"})
    raw.produce(topic, b"\xc3\x01", b"k", 0, headers={"rfw-attempt": b"-7"})
    raw.produce(lab.settings.topics.retry[next(iter(lab.settings.topics.retry))], b"rubbish", b"k", 0)
    assert raw.flush(10) == 0
    job_id = lab.producer.schedule_job(Note(text="after"))
    lab.final(job_id)
    letters = eventually(
        lambda: (found := read_all(lab.settings, lab.settings.topics.dlq)) and len(found) == 7 and found,
        20,
        "seven dead letters",
    )
    values = sorted((letter.value() or b"") for letter in letters)
    assert values == sorted([*(value or b"" for value in rubbish), b"\xc3\x01", b"rubbish"])
    errors = {dict(raw_headers(letter))["rfw-error-type"] for letter in letters}
    assert errors == {b"BadFrame", b"UnknownSchema", b"BadHeaders"}
    assert all(
        dict(raw_headers(letter)).get("mine") == b"kept"
        for letter in letters
        if letter.value() not in (b"\xc3\x01", b"rubbish")
    )


def test_a_thousand_jobs_of_all_priorities_are_neither_lost_nor_doubled(lab: Lab) -> None:
    ids = []
    for priority in JobPriority:
        ids += lab.producer.schedule_jobs((Note(text=priority) for _ in range(250)), priority)
    lab.final(*ids)
    found = audit(lab.settings, ids)
    assert (found.lost, found.forked, found.final["succeeded"]) == ([], [], 1000)
