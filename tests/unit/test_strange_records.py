"""Records that anybody wrote, with any schema: a worker reads them or dead-letters them; nothing else happens."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from datetime import timedelta
from io import BytesIO
from typing import Any

import fastavro
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import Job, JobPriority
from schemas.backoff import DEFAULT_BACKOFF
from schemas.codec import SINGLE_OBJECT, Codec
from schemas.errors import BadRecord, KafkaUnreachable, UnknownSchema, WireError
from schemas.headers import LATEST_MS, Delivery, build
from schemas.jobtype import ENVELOPE_FIELDS, ENVELOPE_NAMES, job_type
from schemas.offsetmap import OffsetMap
from schemas.records import StatusChange, StatusWriter
from schemas.topics import Topics
from schemas.wire import WireSchema
from streams.jobinfo import JobEvent, JobState, job_info
from tests.support.events import JOB_ID, envelope, job_value
from workers.blocking import in_thread
from workers.committing.router import Limits, Router, Run
from workers.config import WorkerConfig
from workers.execution.decoder import Decoded, Decoder
from workers.message import Message
from workers.offsets import PartitionState
from workers.results import Snooze
from workers.worker import Handlers

pytestmark = pytest.mark.job_processing

NOW = 1_760_000_000_000
TOPICS = Topics("p.")


@dataclass
class Strange(Job):
    job_type = "test_strange"
    path: str = ""

    async def execute(self, context: Any) -> None:
        return None


def decoder_of(codec: Codec, learn: Any = None) -> Decoder:
    handlers = Handlers()
    handlers.register(Strange)
    return Decoder(codec, handlers, WorkerConfig(worker_id="w"), learn)


def message_of(value: bytes) -> Message:
    part = PartitionState(
        TOPICS.jobs[JobPriority.LOW],
        0,
        OffsetMap(0),
        incarnation="i",
        transactional_id="t",
        lock=threading.Lock(),
    )
    return Message(part, 0, b"k", value, build(Delivery("test_strange")), NOW, JobPriority.LOW, None)


def written_with(codec: Codec, fields: list[dict[str, Any]], record: dict[str, Any], name: str) -> bytes:
    """A value in a foreign schema, which the codec then knows as it knows those of the topic ``schemas``."""
    schema = {"type": "record", "name": name, "namespace": "rustfs.jobs", "fields": fields}
    known = WireSchema(schema, primitive=frozenset(field["name"] for field in fields))
    codec.store.add(known.fingerprint, schema)
    out = BytesIO()
    fastavro.schemaless_writer(out, known._parsed, record)
    return SINGLE_OBJECT + known.fingerprint + out.getvalue()


# Every type that Avro has, with a value of it.
numbers = st.integers(-(2**63), 2**63 - 1)
enum = {"type": "enum", "name": "E", "symbols": ["high", "zero"]}
typed: st.SearchStrategy[tuple[Any, Any]] = st.one_of(
    st.just(("null", None)),
    st.tuples(st.just("boolean"), st.booleans()),
    st.tuples(st.just("int"), st.integers(-(2**31), 2**31 - 1)),
    st.tuples(st.just("long"), numbers),
    st.tuples(st.just("double"), st.floats()),
    st.tuples(st.just("bytes"), st.binary(max_size=40)),
    st.tuples(st.just("string"), st.sampled_from(["", "low", "test_strange", "other", JOB_ID, "x" * 65])),
    st.tuples(st.just({"type": "map", "values": "string"}), st.just({"a": "b"})),
    st.tuples(st.just({"type": "array", "items": "long"}), st.lists(numbers, max_size=2)),
    st.tuples(st.just(["null", "string"]), st.sampled_from([None, "k"])),
    st.tuples(st.just(["null", "long"]), st.none() | numbers),
)
right = {field["name"]: (field["type"], envelope("test_strange")[field["name"]]) for field in ENVELOPE_FIELDS}


@st.composite
def strange_records(draw: st.DrawFn) -> tuple[list[dict[str, Any]], dict[str, Any], str]:
    """The envelope's names with some other types, in another order or not at all; a name of ours or another."""
    chosen = draw(st.permutations(ENVELOPE_NAMES)) if draw(st.booleans()) else list(ENVELOPE_NAMES)
    names = [name for name in chosen if draw(st.integers(0, 15))]
    if draw(st.booleans()):
        names = ["id", *(name for name in names if name != "id")]
    altered = draw(st.sets(st.sampled_from([*ENVELOPE_NAMES, "path"]), max_size=3))
    fields, record = [], {}
    for name in [*names, *(["path"] if draw(st.booleans()) else [])]:
        kind, value = (
            draw(typed)
            if name in altered or name == "path"
            else (enum, "high")
            if name == "priority" and draw(st.booleans())
            else right[name]
        )
        fields.append({"name": name, "type": kind})
        record[name] = value
    return fields, record, draw(st.sampled_from(["TestStrange", "Foreign"]))


@given(strange_records())
@settings(max_examples=400)
def test_any_record_of_any_schema_is_decoded_or_refused(
    strange: tuple[list[dict[str, Any]], dict[str, Any], str],
) -> None:
    codec = Codec()
    message = message_of(written_with(codec, *strange))
    try:
        decoded = decoder_of(codec).decode(message)
    except WireError:
        return
    assert isinstance(decoded, Decoded)
    record = decoded.record
    assert record["id"].encode() == message.job_id
    # What is decoded can be settled, and the result be written.
    run = Run(message, decoded.job_type, decoded.priority, record["key"], record["created_at"], NOW, NOW, "w")
    outcome = Router(TOPICS).settle(run, Snooze(timedelta(seconds=10), "later"), decoded.limits)
    assert isinstance(outcome.status, StatusChange)
    StatusWriter(codec).encode(outcome.status)


@given(strange_records())
@settings(max_examples=200)
def test_any_record_of_any_schema_can_be_listed(
    strange: tuple[list[dict[str, Any]], dict[str, Any], str],
) -> None:
    """A listing shows all jobs: one that nobody can read must not hide the others."""
    codec = Codec()
    value = written_with(codec, *strange)
    place = (TOPICS.jobs[JobPriority.LOW], 0, 0)
    event = JobEvent(JOB_ID, Delivery("t"), JobPriority.LOW, False, None, value, NOW, place)
    job_info(JOB_ID, JobState(event), lambda raw: codec.decode_any(raw, {})).to_full_json()


@pytest.mark.parametrize(
    ("name", "kind", "value"),
    [
        ("type", {"type": "map", "values": "string"}, {"a": "b"}),
        ("type", "string", ""),
        ("type", "string", "x" * 65),
        ("priority", "string", "urgent"),
        ("key", "bytes", b"k"),
        ("created_at", "string", "yesterday"),
        ("created_at", "long", -1),
        ("created_at", "long", LATEST_MS + 1),
        ("max_retries", "double", 3.0),
        ("max_retries", "boolean", True),
        ("timeout_ms", {"type": "array", "items": "long"}, [1]),
        ("timeout_ms", "long", 0),
        ("source", "null", None),
        ("parent_id", "long", 7),
    ],
)
def test_the_error_names_the_field(name: str, kind: Any, value: Any) -> None:
    codec = Codec()
    fields = [{"name": n, "type": kind if n == name else t} for n, (t, _) in right.items()]
    record = {n: value if n == name else v for n, (_, v) in right.items()}
    message = message_of(written_with(codec, fields, record, "Foreign"))
    with pytest.raises(BadRecord, match=rf"rustfs\.jobs\.Foreign\.{name}: "):
        decoder_of(codec).decode(message)


def test_an_id_that_is_not_the_first_field_is_another_jobs() -> None:
    """Whoever does not decode takes the text in front for the id: a status under it would be another job's."""
    codec = Codec()
    fields = [{"name": "front", "type": "string"}, *({"name": n, "type": t} for n, (t, _) in right.items())]
    record = {n: v for n, (_, v) in right.items()} | {"front": JOB_ID, "id": JOB_ID.replace("0", "1")}
    message = message_of(written_with(codec, fields, record, "Foreign"))
    assert message.job_id == JOB_ID.encode()
    with pytest.raises(BadRecord, match=r"Foreign\.id: .* first field"):
        decoder_of(codec).decode(message)


@pytest.mark.parametrize(
    "wrong", [{"created_at": -1}, {"created_at": LATEST_MS + 1}, {"timeout_ms": -5}, {"type": "x" * 65}]
)
def test_our_own_schema_does_not_settle_ranges(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(BadRecord, match=rf"TestStrange\.{name}: "):
        decoder_of(Codec()).decode(message_of(job_value(Strange(), **wrong)))


@pytest.mark.parametrize(("given_limit", "limit"), [(-3, 0), (2, 2), (2**31 - 1, 1_000_000)])
def test_a_number_of_retries_stays_in_its_bounds(given_limit: int, limit: int) -> None:
    decoded = decoder_of(Codec()).decode(message_of(job_value(Strange(), max_retries=given_limit)))
    assert decoded.limits == Limits(limit, DEFAULT_BACKOFF, decoded.limits.snooze_limit_ms)


# Schemas that are not known yet


def stranger(codec: Codec) -> bytes:
    """A value whose schema ``codec`` knows and a worker has to learn."""
    fields = [*({"name": n, "type": t} for n, (t, _) in right.items()), {"name": "colour", "type": "string"}]
    record = {n: v for n, (_, v) in right.items()} | {"colour": "red"}
    return written_with(codec, fields, record, "TestStrange")


async def test_many_that_wait_for_one_schema_look_once_more_together() -> None:
    """A look that began before a record came may have missed its schema; one that begins after cannot."""
    known, codec = Codec(), Codec()
    value = stranger(known)
    looks: list[bytes] = []
    looking, release = threading.Event(), threading.Event()

    def learn(key: bytes) -> None:
        looks.append(key)
        looking.set()
        if len(looks) == 1:
            release.wait(30)
        else:
            codec.store.add(key, known.store.get(key).schema)

    decoder = decoder_of(codec, learn)
    first = asyncio.create_task(decoder.learn_and_decode(message_of(value)))
    assert await asyncio.to_thread(looking.wait, 30)
    others = [asyncio.create_task(decoder.learn_and_decode(message_of(value))) for _ in range(20)]
    await asyncio.sleep(0)
    release.set()
    results = await asyncio.gather(first, *others, return_exceptions=True)
    assert all(isinstance(result, Decoded) for result in results[1:])
    assert looks == [value[2:10]] * 2
    assert decoder._learning == {}


async def test_one_look_answers_for_all_records_that_were_here_before_it() -> None:
    """Each took 20 ms: of a producer that never publishes its schema, some fifty jobs a second became dead letters."""
    looks: list[bytes] = []

    def learn(key: bytes) -> bool:
        looks.append(key)
        return False

    decoder = decoder_of(Codec(), learn)
    part, late = message_of(b"").part, 100
    for offset in range(late):
        part.note_delivered(offset)

    async def is_unknown(offset: int, front: bytes) -> None:
        value = front + stranger(Codec())[10:]
        message = Message(
            part, offset, b"k", value, build(Delivery("test_strange")), NOW, JobPriority.LOW, None
        )
        with pytest.raises(UnknownSchema):
            await decoder.learn_and_decode(message)

    for offset in range(late):
        await is_unknown(offset, SINGLE_OBJECT + offset.to_bytes(8, "big"))
    assert len(looks) == 1
    part.note_delivered(late)
    await is_unknown(late, SINGLE_OBJECT + bytes(8))
    assert len(looks) == 2, "its schema may have been published since"
    await is_unknown(0, bytes(5))
    assert len(looks) == 3, "a registry answers for one number"
    part.owned = False
    other = message_of(stranger(Codec()))
    with pytest.raises(UnknownSchema):
        await decoder.learn_and_decode(other)
    assert list(decoder._settled) == [other.part]


async def test_a_look_that_found_its_schema_says_nothing_of_others() -> None:
    """It may have ended before it came to theirs."""
    known, codec = Codec(), Codec()
    value, looks = stranger(known), 0

    def learn(key: bytes) -> bool:
        nonlocal looks
        looks += 1
        if key == value[2:10]:
            codec.store.add(key, known.store.get(key).schema)
        return key == value[2:10]

    decoder = decoder_of(codec, learn)
    message = message_of(value)
    message.part.note_delivered(0)
    assert isinstance(await decoder.learn_and_decode(message), Decoded)
    other = Message(
        message.part, 0, b"k", SINGLE_OBJECT + bytes(8) + value[10:], [], NOW, JobPriority.LOW, None
    )
    with pytest.raises(UnknownSchema):
        await decoder.learn_and_decode(other)
    assert looks == 2


async def test_a_look_that_fails_says_nothing_about_the_record() -> None:
    """No Kafka, no registry: the record waits, it is not dead-lettered."""

    def learn(_: bytes) -> None:
        raise KafkaUnreachable("nowhere", 1)

    decoder = decoder_of(Codec(), learn)
    with pytest.raises(KafkaUnreachable):
        await decoder.learn_and_decode(message_of(stranger(Codec())))
    assert decoder._learning == {}


def test_jobs_from_before_a_registry_was_set_need_no_asking() -> None:
    class Numbered:
        def prefix(self, schema: WireSchema) -> bytes:
            return b"\0\0\0\0\7"

    decoder = decoder_of(Codec(Numbered()))
    plain = decoder.decode(message_of(job_value(Strange(path="a"))))
    framed = decoder.decode(message_of(job_value(Strange(path="b"), Codec(Numbered()))))
    assert (plain.job.path, framed.job.path) == ("a", "b")
    assert plain.handler is framed.handler is not None
    assert job_type(Strange).name == plain.job_type


async def test_looks_for_unknown_schemas_leave_threads_to_the_worker_itself() -> None:
    """Each takes ten seconds while Kafka does not answer: a drain would wait behind all of them."""
    may_end = threading.Event()
    under_way: list[bytes] = []

    def learn(key: bytes) -> bool:
        under_way.append(key)
        may_end.wait(30)
        return False

    decoder = decoder_of(Codec(), learn)
    frames = [message_of(SINGLE_OBJECT + number.to_bytes(8, "big") + b"x") for number in range(30)]
    looks = [asyncio.ensure_future(decoder.learn_and_decode(one)) for one in frames]
    while len(under_way) < 4:
        await asyncio.sleep(0.01)
    assert await asyncio.wait_for(in_thread(lambda: "drained"), 10) == "drained"
    assert len(under_way) == 4
    may_end.set()
    results = await asyncio.gather(*looks, return_exceptions=True)
    assert all(isinstance(result, WireError) for result in results)
