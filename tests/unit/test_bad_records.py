"""Every kind of bad record, past everything that looks at records: it is understood, or refused by a named error.

The records are those of ``tests.guarantees.bad_input``, which brings them before a real worker.
"""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from types import SimpleNamespace
from typing import Any

import pytest

from schemas.codec import Codec, SchemaStore
from schemas.errors import BadHeaders, WireError
from schemas.headers import parse
from schemas.jobtype import job_type
from schemas.records import STATUS, StatusChange, StatusWriter, decode_report
from schemas.topics import TIERS, JobPriority, Topics
from streams.dead_letters import dead_letter_of
from streams.jobinfo import JobFold, job_info
from streams.new_life import can_live, life_after
from streams.reader import Schemas, sighting_of
from streams.schemas_topic import add_record
from tests.guarantees.bad_input.bad_headers import most_deliveries
from tests.guarantees.bad_input.forge import Bad, Fate, Forge, Headers
from tests.guarantees.bad_input.jobs import Nobodys, Plain, Processed, Rich, Threaded
from tests.guarantees.bad_input.kinds import KINDS, RARE, make
from tests.guarantees.bad_input.kinds import Kind as JobKind
from tests.guarantees.bad_input.others import Kind, kinds_by_topic, make_other
from tests.support.messages import partition
from workers.committing.router import Router
from workers.config import WorkerConfig
from workers.console import emit
from workers.consuming.duplicates import DuplicateWindow
from workers.consuming.key_places import KeyPlaces
from workers.execution.decoder import Decoder
from workers.handlers.replication import ReplicationWorker
from workers.liveness.rival import worker_id_taken
from workers.liveness.survivors import ReportFold
from workers.message import Message
from workers.scheduling.delay import due_at
from workers.storage import NodeRegistry
from workers.worker import Handlers

pytestmark = pytest.mark.job_processing

TOPICS = Topics("t.")
NOW_MS = 1_790_000_000_000
PARTITIONS = 3
OTHERS = kinds_by_topic(TOPICS)
JOB_KINDS = [*KINDS, *RARE]
#: Of each kind; those of megabytes fewer.
COUNT = 60


@pytest.fixture
def forge(request: pytest.FixtureRequest) -> Forge:
    return Forge(len(request.node.name), PARTITIONS)


def as_consumed(topic: str, key: bytes | None, value: bytes | None, headers: Headers) -> Any:
    """What the library gives."""
    return SimpleNamespace(
        topic=lambda: topic,
        partition=lambda: 0,
        offset=lambda: 7,
        key=lambda: key,
        value=lambda: value,
        headers=lambda: headers or None,
        timestamp=lambda: (1, -1),
    )


def nobody_knows(codec: Codec) -> Schemas:
    return Schemas(codec, SimpleNamespace(learn=lambda *_: False))  # type: ignore[arg-type]


def handlers() -> Handlers:
    known = Handlers()
    for kind in (Plain, Rich, Threaded, Processed):
        known.register(kind)
    known.register(ReplicationWorker(NodeRegistry({})))
    return known


def strict_json(record: dict[str, Any]) -> None:
    """As a command prints it, and another program reads it."""

    def refuse(name: str) -> None:
        raise AssertionError(name)

    with redirect_stdout(io.StringIO()) as out:
        emit(record)
    json.loads(out.getvalue(), parse_constant=refuse)


def known_to_all(forge: Forge) -> Codec:
    """With the schemas that a flood publishes."""
    for schema in (*(schema for schema, _ in forge.strangers), job_type(Nobodys).wire, STATUS):
        forge.codec.store.add(schema.fingerprint, schema.schema)
    return forge.codec


@pytest.mark.parametrize("kind", JOB_KINDS, ids=lambda kind: kind.__name__)
def test_a_worker_runs_it_or_buries_it_as_it_must(kind: JobKind, forge: Forge) -> None:
    codec = known_to_all(forge)
    router, statuses, copies, places = (
        Router(TOPICS),
        StatusWriter(codec),
        DuplicateWindow(),
        KeyPlaces(PARTITIONS),
    )
    decoder = Decoder(codec, handlers(), WorkerConfig(worker_id="w"))
    for number in range(3 if kind in RARE else COUNT):
        bad = make(forge, kind)
        tier = TIERS[number % len(TIERS)] if number % 2 else None
        topic = TOPICS.jobs[JobPriority.HIGH] if tier is None else TOPICS.retry[tier]
        part = partition(topic, bad.partition)
        headers: Any = bad.headers or None
        message = Message(
            part, number, bad.key, bad.value, headers, NOW_MS, None if tier else JobPriority.HIGH, tier
        )
        copies.is_copy(message)
        places.misplaced((message,))
        if tier is not None:
            assert due_at(message) >= NOW_MS + tier.delay_ms
            if message.problem is None:
                forwarded = router.forward(message, NOW_MS)
                for record in forwarded.records:
                    if kind is most_deliveries:
                        with pytest.raises(BadHeaders):
                            parse(record.headers)
                    else:
                        parse(record.headers)
        found, error = _decoded(decoder, message)
        if bad.fate is Fate.DEAD and bad.errors != {"HandlerNotFound"}:
            assert error in bad.errors, (bad, error)
        elif bad.fate in (Fate.RUNS, Fate.WAITS):
            assert found is not None, (bad, error)
            assert found.job is not None
        if message.problem is not None or error:
            outcome = router.unreadable(message, message.problem or WireError("no"), NOW_MS, "w.0")
            assert [record.value for record in outcome.records] == [bad.value]
            if isinstance(outcome.status, StatusChange):
                statuses.encode(outcome.status)


def _decoded(decoder: Decoder, message: Message) -> tuple[Any, str]:
    try:
        return decoder.decode(message), ""
    except WireError as error:
        return None, type(error).__name__


@pytest.mark.parametrize("kind", JOB_KINDS, ids=lambda kind: kind.__name__)
def test_a_listing_shows_it_or_counts_it(kind: JobKind, forge: Forge) -> None:
    codec = known_to_all(forge)
    _listed(
        codec,
        [_in(TOPICS.jobs[JobPriority.LOW], make(forge, kind)) for _ in range(3 if kind in RARE else COUNT)],
    )
    _listed(
        codec, [_in(TOPICS.retry[TIERS[0]], make(forge, kind)) for _ in range(3 if kind in RARE else COUNT)]
    )


@pytest.mark.parametrize("kind", OTHERS[TOPICS.status], ids=lambda kind: kind.__name__)
def test_a_listing_shows_a_status_or_counts_it(kind: Kind, forge: Forge) -> None:
    made = [make_other(forge, kind) for _ in range(COUNT)]
    unreadable = _listed(forge.codec, [as_consumed(TOPICS.status, p.key, p.value, p.headers) for p in made])
    assert unreadable >= sum(passed.readable is False for passed in made)
    assert unreadable <= sum(passed.readable is not True for passed in made)


def _in(topic: str, bad: Bad) -> Any:
    return as_consumed(topic, bad.key, bad.value, bad.headers)


def _listed(codec: Codec, messages: list[Any]) -> int:
    """How many are unreadable."""
    schemas, fold, unreadable = nobody_knows(codec), JobFold(), 0
    for message in messages:
        try:
            sighting = sighting_of(message, TOPICS, schemas)
        except WireError:
            unreadable += 1
        else:
            assert sighting is not None
            fold.see(sighting)
    for job_id, state in fold.states.items():
        if not state.gone:
            info = job_info(job_id, state, schemas.decode_job)
            strict_json(info.to_json())
            strict_json(info.to_full_json())
    return unreadable


@pytest.mark.parametrize("kind", [*JOB_KINDS, *OTHERS[TOPICS.dlq]], ids=lambda kind: kind.__name__)
def test_a_dead_letter_is_shown_and_has_a_new_life_if_it_can(kind: Any, forge: Forge) -> None:
    for _ in range(3 if kind in RARE else COUNT):
        if kind in JOB_KINDS:
            record = _in(TOPICS.dlq, make(forge, kind))
        else:
            passed = make_other(forge, kind)
            record = as_consumed(TOPICS.dlq, passed.key, passed.value, passed.headers)
        letter = dead_letter_of(record)
        strict_json(letter.to_json())
        strict_json(letter.to_full_json())
        if can_live(letter):
            life = life_after(letter, None, NOW_MS, TOPICS)
            StatusWriter(forge.codec).encode(life.status)


@pytest.mark.parametrize("kind", OTHERS[TOPICS.schemas], ids=lambda kind: kind.__name__)
def test_the_topic_of_schemas_is_read_past_it(kind: Kind, forge: Forge) -> None:
    store = SchemaStore()
    for _ in range(COUNT):
        passed = make_other(forge, kind)
        reason = add_record(store, passed.key, passed.value)
        assert reason or passed.value is None or passed.readable is None


@pytest.mark.parametrize("kind", OTHERS[TOPICS.reports], ids=lambda kind: kind.__name__)
def test_who_looks_for_lost_owners_and_rivals_reads_past_it(kind: Kind, forge: Forge) -> None:
    fold = ReportFold(forge.codec, {"nobody": 1, "w": 2}, 5_000)
    for written_ms in range(COUNT):
        passed = make_other(forge, kind)
        fold.note(passed.key, passed.value or b"", written_ms)
        try:
            report = decode_report(forge.codec, passed.value or b"")
        except WireError:
            continue
        worker_id_taken(report, "me", "here")
    assert fold.signs(complete=True).heard.keys() <= {"nobody", "w"}
