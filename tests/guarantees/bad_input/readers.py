"""After a flood: whoever reads these topics gets past everything and answers; and a successor works.

In:  a deployment that a flood has gone over. Out: how long each reader took; what does not answer breaks the verdict.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from confluent_kafka import KafkaException, Message

from schemas.codec import Codec
from schemas.errors import PipelineError
from schemas.lifecycle import JobStatus
from schemas.records import decode_status
from streams.producer import JobProducer
from streams.reader import JobReader
from streams.registry import build_codec
from streams.scan import scan, since
from streams.settings import Settings
from tests.guarantees.bad_input.flood import IMPORT, Flood, Progress
from tests.guarantees.bad_input.judge import Verdict
from tests.support.commands import CommandLine, Finished
from tests.support.jobs import Note
from tests.support.waiting import eventually
from tests.support.workers import Start, WorkerUnderTest
from workers.liveness.rival import find_rival
from workers.liveness.survivors import signs_of_life


def look(
    settings: Settings,
    flood: Flood,
    worker: WorkerUnderTest,
    start: Start,
    directory: Path,
    verdict: Verdict,
    progress: Progress,
) -> dict[str, float]:
    """Ask everybody."""
    times: dict[str, float] = {}
    topics = settings.topics
    line = CommandLine.on(settings, directory)
    failed = _commands(line, flood, verdict, times, progress)
    if failed:
        progress(f"a command has failed: {failed}")
    began = time.monotonic()
    reader = JobReader(settings)
    try:
        seen = reader.read(timeout_s=180)
        for job_id, state in seen.living():
            try:
                json.dumps(reader.info(job_id, state).to_full_json())
            except Exception as error:  # noqa: BLE001 - whatever it is, it would end a listing
                verdict.breaks("a job cannot be shown", f"{job_id}: {error!r:.200}")
    finally:
        reader.close()
    times["every job shown"] = round(time.monotonic() - began, 1)
    if not seen.complete:
        verdict.breaks("the topics were not read to their end", seen.unreadable_count)
    statuses = [passed for passed, place in flood.passed if place[0] == topics.status]
    least = sum(passed.readable is False for passed in statuses)
    if seen.unreadable_count < least:
        verdict.breaks("unreadable records are not counted", f"{seen.unreadable_count} of at least {least}")
    try:
        lost = {"nobody": int(time.time() * 1000) - 60_000}
        signs = signs_of_life(settings, build_codec(settings), lost, 5_000)
        if not signs.complete:
            verdict.breaks("the reports are not read to their end", signs)
        find_rival(settings, build_codec(settings), "w.0", "me", 0, patience_s=1.5)
    except (PipelineError, KafkaException, ValueError, OverflowError) as error:
        verdict.breaks("the reports cannot be read", repr(error))
    if worker.process is None or worker.process.poll() is not None:
        verdict.breaks("the worker has ended", worker.stderr_file.read_text()[-1_000:])
    elif (code := worker.terminate()) != 0:
        verdict.breaks("the worker did not leave in order", code)
    if "Traceback" in (said := worker.stderr_file.read_text()):
        verdict.breaks(
            "the worker has told of an error without a name", said[said.index("Traceback") :][:2_000]
        )
    _successor(settings, start, verdict)
    return times


def _commands(
    line: CommandLine, flood: Flood, verdict: Verdict, times: dict[str, float], progress: Progress
) -> list[str]:
    failed: list[str] = []

    def ask(*arguments: str) -> Finished:
        began = time.monotonic()
        done = line(*arguments, timeout_s=180)
        name = " ".join(arguments[:2])
        times[name] = max(round(time.monotonic() - began, 1), times.get(name, 0))
        if done.code != 0:
            failed.append(name)
            verdict.breaks("a command does not answer", f"{arguments}: {done.code}: {done.err[-1_500:]}")
        return done

    ask("jobs", "list")
    ask("jobs", "list", "--limit", "100000", "--json")
    ask("jobs", "show", flood.good[-1], "--json")
    ask("dlq", "list")
    letters = [one for one in ask("dlq", "list", "--json").records() if "id" in one]
    progress(f"{len(letters):,} dead letters listed")
    strange = [one["id"] for one in letters if one["error_type"] == "Strange"][:3]
    for letter_id in [*strange, *(one["id"] for one in letters[:: max(len(letters) // 5, 1)])][:8]:
        ask("dlq", "show", letter_id)
        ask("dlq", "show", letter_id, "--json")
    can_run = [one["id"] for one in letters if "/" not in one["id"] and one["error_type"] == "UnknownSchema"][
        :3
    ]
    ask("dlq", "redrive", *can_run, "--dry-run", "--json")
    ask("dlq", "redrive", *can_run, "--json")
    ask("topics", "check", "--json")
    return failed


def _successor(settings: Settings, start: Start, verdict: Verdict) -> None:
    """Takes over offsets and maps, and works."""
    heir, codec = start("heir", "--import", IMPORT), Codec()
    began = since(time.time_ns() // 1_000_000 - 1_000)
    with JobProducer(settings) as producer:
        ids = {job_id.encode() for job_id in producer.schedule_jobs(Note(text=str(n)) for n in range(20))}

    def all_succeeded() -> bool:
        states: dict[bytes | None, JobStatus] = {}

        def take(message: Message) -> None:
            if message.key() in ids:
                states[message.key()] = decode_status(codec, message.value() or b"").state

        scan(settings, [settings.topics.status], take, timeout_s=20, start=began)
        return len(states) == len(ids) and set(states.values()) == {JobStatus.SUCCEEDED}

    try:
        eventually(all_succeeded, 60, "what a successor was given has succeeded")
    except AssertionError as error:
        verdict.breaks("a successor does not work", error)
    if heir.terminate() != 0:
        verdict.breaks("the successor did not leave in order", heir.stderr_file.read_text()[-1_000:])
