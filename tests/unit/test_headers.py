from __future__ import annotations

import json
import random
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from schemas import headers
from schemas.codec import Codec
from schemas.errors import BadHeaders
from schemas.headers import (
    ATTEMPT,
    HISTORY,
    MAX_HISTORY,
    MAX_NAME_BYTES,
    ORIGIN_OFFSET,
    ORIGIN_PARTITION,
    ORIGIN_TOPIC,
    TYPE,
    Attempt,
    Delivery,
    Origin,
    RawHeaders,
    build,
    clip,
    clip_trace,
    dead_letter,
    parse,
    salvage,
)
from schemas.lifecycle import JobStatus
from schemas.records import StatusWriter, decode_status
from tests.support.statuses import status

pytestmark = pytest.mark.job_processing

GOLDEN = Path(__file__).parent.parent / "golden" / "headers.json"
LATEST_MS = 253_402_300_799_999
CODEC = Codec()

short_texts = st.text(max_size=60)
#: Longer ones cannot be read.
topic_names = st.text(max_size=249).filter(lambda topic: len(topic.encode()) <= MAX_NAME_BYTES)
times = st.integers(0, LATEST_MS)
counts = st.integers(0, headers.MAX_COUNT)
attempts = st.builds(
    Attempt,
    attempt=st.integers(1, headers.MAX_COUNT),
    worker=short_texts,
    started_at_ms=times,
    finished_at_ms=times,
    error_type=short_texts,
    error_message=st.text(max_size=50),
)
deliveries = st.builds(
    Delivery,
    job_type=short_texts,
    attempt=st.integers(1, headers.MAX_COUNT),
    delivery=counts,
    not_before_ms=times,
    first_seen_ms=times,
    redrives=counts,
    unknown_since_ms=times,
    origin=st.none() | st.builds(Origin, topic_names, counts, st.integers(0, 2**63 - 1)),
    error_type=short_texts,
    error_message=st.text(max_size=250),
    history=st.lists(attempts, max_size=MAX_HISTORY).map(tuple),
    traceparent=short_texts,
)
SAMPLE = Delivery(
    job_type="replication",
    attempt=3,
    delivery=5,
    not_before_ms=1_760_000_005_000,
    first_seen_ms=1_760_000_000_000,
    redrives=1,
    origin=Origin("rustfs.jobs.high", 7, 123_456),
    error_type="NodeUnreachable",
    error_message="node-3 antwortet nicht: größer als 60 s",
    history=(Attempt(1, "w.0", 1_760_000_000_100, 1_760_000_000_200, "TimeoutError", "after 60 s"),),
    traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
)
FAILED = Origin("rustfs.jobs.retry.5s", 7, 99)


def sizes(raw: RawHeaders) -> dict[str, int]:
    return {name: len(value) for name, value in raw}


# Round trips


@given(deliveries)
def test_what_is_built_is_what_is_parsed(delivery: Delivery) -> None:
    assert parse(build(delivery)) == delivery


def test_a_first_run_carries_its_type_alone() -> None:
    assert build(Delivery("replication")) == [(TYPE, b"replication")]
    assert parse([(TYPE, b"replication")]) == Delivery("replication")
    assert parse([]) == parse(None) == Delivery()


def test_headers_of_others_are_ignored_and_the_last_of_two_counts() -> None:
    raw = [("rfw-unheard-of", b"\xff"), ("x", b"\xff"), (ATTEMPT, b"2"), (TYPE, b"a"), (ATTEMPT, b"3")]
    assert parse(raw) == Delivery("a", attempt=3)


@pytest.mark.parametrize("delivery", [Delivery("x"), SAMPLE])
def test_the_next_delivery_differs_by_one_and_what_is_asked_for(delivery: Delivery) -> None:
    following = delivery.next(attempt=9)
    assert (following.delivery, following.attempt) == (delivery.delivery + 1, 9)
    unchanged = {field.name for field in fields(Delivery)} - {"delivery", "attempt"}
    assert all(getattr(following, name) == getattr(delivery, name) for name in unchanged)


# Anything may come in


NAMES = [value for name, value in vars(headers).items() if name.isupper() and str(value).startswith("rfw-")]
names = st.sampled_from([*NAMES, "traceparent", "x", "rfw-"]) | st.text(max_size=5)
digits = st.text("0123456789", max_size=25).map(str.encode)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=7) | st.dictionaries(st.text(max_size=3), inner, max_size=6),
    max_leaves=12,
).map(lambda value: json.dumps(value).encode())
values = st.binary(max_size=30) | digits | json_values | st.none()


@given(st.lists(st.tuples(names, values), max_size=12))
@settings(max_examples=500)
@example([(HISTORY, b"[" * 200_000)])
@example([(HISTORY, b'[["1","2","3","4","5","6"]]')])
@example([(HISTORY, b"[" + b"9" * 5_000 + b"]")])
@example([(HISTORY, b'[[1e999,"w",1,1,"e","m"]]')])
@example([(HISTORY, b'[[1,"w",-1,1,"e","m"]]')])
def test_any_headers_are_a_delivery_or_bad_headers(raw: list[tuple[str, Any]]) -> None:
    try:
        delivery = parse(raw)
    except BadHeaders:
        return
    again = parse(build(delivery))
    assert again.history == delivery.history
    assert (again.attempt, again.delivery, again.not_before_ms) == (
        delivery.attempt,
        delivery.delivery,
        delivery.not_before_ms,
    )


def test_mutated_headers_are_a_delivery_or_bad_headers() -> None:
    """20,000 damaged copies of real headers."""
    rng = random.Random(1)
    original = build(SAMPLE)
    refused = 0
    for _ in range(20_000):
        raw = list(original)
        place = rng.randrange(len(raw))
        name, value = raw[place]
        damaged = bytearray(value)
        for _ in range(rng.randint(1, 3)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        raw[place] = (name, bytes(damaged))
        try:
            parse(raw)
        except BadHeaders:
            refused += 1
    assert 1_000 < refused < 19_000


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (ATTEMPT, b"0"),
        (ATTEMPT, b"-1"),
        (ATTEMPT, b"+1"),
        (ATTEMPT, b"1_0"),
        (ATTEMPT, b" 1"),
        (ATTEMPT, b"1.0"),
        (ATTEMPT, b""),
        (ATTEMPT, "\N{ARABIC-INDIC DIGIT ONE}".encode()),
        (ATTEMPT, b"2147483647"),
        (ATTEMPT, b"1000000001"),
        (ATTEMPT, b"1" * 10_000),
        (headers.DELIVERY, b"2147483647"),
        (headers.REDRIVES, b"2147483647"),
        (headers.NOT_BEFORE, str(LATEST_MS + 1).encode()),
        (TYPE, b"\xff"),
        (headers.ERROR_MESSAGE, b"\xed\xa0\x80"),
        (HISTORY, b"{}"),
        (HISTORY, b'"abcdef"'),
        (HISTORY, b'[[1,"w",1,2,"e"]]'),
        (HISTORY, b'[[0,"w",1,2,"e","m"]]'),
        (HISTORY, b'[[true,"w",1,2,"e","m"]]'),
        (HISTORY, b'[[1.0,"w",1,2,"e","m"]]'),
        (HISTORY, b'[[1,"w",1,253402300800000,"e","m"]]'),
        (HISTORY, b'[[1,"w",1,2,"e",null]]'),
    ],
)
def test_a_header_of_ours_that_cannot_be_is_refused_by_name(name: str, value: bytes) -> None:
    with pytest.raises(BadHeaders, match=name):
        parse([("other", b""), (name, value)])


@pytest.mark.parametrize("name", [ORIGIN_PARTITION, ORIGIN_OFFSET])
def test_an_origin_of_nonsense_is_refused(name: str) -> None:
    with pytest.raises(BadHeaders, match=name):
        parse([(ORIGIN_TOPIC, b"t"), (name, b"x")])


@given(deliveries)
@example(Delivery("t", attempt=headers.MAX_COUNT, delivery=headers.MAX_COUNT, redrives=headers.MAX_COUNT))
def test_what_follows_a_delivery_that_can_be_read_can_be_written(delivery: Delivery) -> None:
    """A counter that is refused only after it was raised would stop a job, or a redrive of many, half-way."""
    following = parse(build(delivery)).next(attempt=delivery.attempt + 1, redrives=delivery.redrives + 1)
    change = status(
        JobStatus.RETRYING,
        attempt=following.attempt,
        delivery=following.delivery,
        redrives=following.redrives,
    )
    assert decode_status(CODEC, StatusWriter(CODEC).encode(change)) == change
    assert max(following.attempt, following.delivery, following.redrives) < 2**31


def test_a_damaged_header_hides_none_of_the_others_from_a_dead_letter() -> None:
    """The counters that can be read tell to which life of the job the letter belongs."""
    raw = [(name, b"\xff" if name == ATTEMPT else value) for name, value in build(SAMPLE)]
    kept = salvage(raw)
    assert (kept.job_type, kept.delivery, kept.redrives, kept.origin, kept.history) == (
        SAMPLE.job_type,
        SAMPLE.delivery,
        SAMPLE.redrives,
        SAMPLE.origin,
        SAMPLE.history,
    )
    assert (kept.attempt, kept.not_before_ms) == (1, 0)
    nowhere = [(name, b"x" if name == ORIGIN_OFFSET else value) for name, value in build(SAMPLE)]
    assert salvage(nowhere).origin is None


@given(st.lists(st.tuples(names, values), max_size=12))
def test_something_can_be_salvaged_from_any_headers(raw: list[tuple[str, Any]]) -> None:
    kept = salvage(raw)
    assert kept.not_before_ms == 0
    build(kept.next())


@pytest.mark.parametrize("name", [TYPE, "rfw-origin-topic"])
def test_a_name_that_is_no_name_does_not_travel_on(name: str) -> None:
    """It would make the dead letter too large for Kafka, and so end every worker that meets it."""
    raw = [(name, b"x" * 257), (headers.DELIVERY, b"7")]
    with pytest.raises(BadHeaders, match=rf"{name} has 257 bytes, 256 at most"):
        parse(raw)
    kept = salvage(raw)
    assert (kept.delivery, kept.job_type, kept.origin) == (7, "", None)
    parse([(name, b"x" * 256)])


def test_a_delay_by_the_brokers_clock_counts_once() -> None:
    asked = parse([(TYPE, b"test"), ("rfw-not-before", b"5000"), ("rfw-delay", b"3000")])
    counted = asked.counted_from(10_000)
    assert (counted.not_before_ms, counted.delay_ms) == (13_000, 0)
    assert (asked.next().not_before_ms, asked.next().delay_ms) == (5_000, 0)
    assert "rfw-delay" not in dict(build(asked))


def test_type_names_from_messages_do_not_fill_the_memory() -> None:
    remembered = headers._FRESH
    before = len(remembered)
    for number in range(2_000):
        parse([(TYPE, b"junk-%d" % number)])
    parse([(TYPE, b"x" * 200)])
    assert len(remembered) <= max(1_000, before)
    assert max(map(len, remembered)) <= 64
    remembered.clear()


# Bounds


def test_what_travels_is_bounded_in_size() -> None:
    huge = "\0ü😀" * 100_000
    run = Attempt(1, huge, 1, 2, huge, huge)
    raw = build(Delivery("t", error_type=huge, error_message=huge, history=(run,) * 50))
    assert sizes(raw)["rfw-error-message"] <= 1024
    assert sizes(raw)["rfw-error-type"] <= 256
    assert sizes(raw)[HISTORY] <= 20_000
    assert len(parse(raw).history) == MAX_HISTORY
    letters = dead_letter(
        Delivery("t", error_type=huge, error_message=huge),
        at=FAILED,
        timestamp_ms=1,
        failed_at_ms=2,
        stacktrace=huge,
    )
    assert sizes(letters)["kafka_dlt-exception-message"] <= 1024
    assert sizes(letters)["kafka_dlt-exception-fqcn"] <= 256
    assert sizes(letters)["kafka_dlt-exception-stacktrace"] <= 8192


def test_a_history_from_elsewhere_is_cut_like_ours() -> None:
    row = [1, "w" * 5_000, 1, 2, "e" * 5_000, "m" * 5_000]
    run = parse([(HISTORY, json.dumps([row]).encode())]).history[0]
    assert (len(run.worker), len(run.error_type)) == (254, 254)
    assert len(run.error_message.encode()) == Attempt.MESSAGE_LIMIT


def test_the_newest_attempts_are_kept() -> None:
    runs = tuple(Attempt(number, "w", 1, 2, "e", "m") for number in range(1, 16))
    assert [run.attempt for run in parse(build(Delivery("t", history=runs))).history] == list(range(6, 16))
    rows = json.dumps([[number, "w", 1, 2, "e", "m"] for number in range(1, 16)])
    assert [run.attempt for run in parse([(HISTORY, rows.encode())]).history] == list(range(6, 16))


@given(st.text(st.characters(exclude_categories=()), max_size=40), st.integers(3, 60))
@example("\ud800", 3)
def test_clipped_text_fits_and_is_utf8(text: str, limit: int) -> None:
    clipped = clip(text, limit)
    assert len(clipped.encode()) <= limit
    whole = text.encode("utf-8", "replace").decode()
    assert clipped == whole or (clipped.endswith("…") and whole.startswith(clipped[:-1]))


@given(st.text(st.characters(exclude_categories=()), max_size=400), st.integers(100, 300))
@example("ü" * 400, 100)
def test_a_clipped_trace_fits_and_has_both_ends(trace: str, limit: int) -> None:
    clipped = clip_trace(trace, limit)
    whole = trace.encode("utf-8", "replace").decode()
    assert len(clipped.encode()) <= limit
    if clipped != whole:
        head, _, rest = clipped.partition("\n… ")
        _, _, tail = rest.partition(" left out …\n")
        assert whole.startswith(head)
        assert whole.endswith(tail)
        assert len(tail.encode()) > 2 * len(head.encode())


def test_a_long_trace_keeps_the_line_with_the_error() -> None:
    trace = (
        "Traceback (most recent call last):\n" + '  File "deep.py", line 1, in f\n' * 5_000 + "ValueError: it"
    )
    raw = dict(dead_letter(Delivery("t"), at=FAILED, timestamp_ms=1, failed_at_ms=2, stacktrace=trace))
    kept = raw["kafka_dlt-exception-stacktrace"].decode()
    assert kept.startswith("Traceback (most recent call last):\n")
    assert kept.endswith("in f\nValueError: it")
    assert 8_000 < len(kept.encode()) <= 8192


def test_lone_surrogates_become_question_marks() -> None:
    """They stand in file names that are not UTF-8, and so in error messages."""
    run = Attempt(1, "\udcff", 1, 2, "e", "no \udcff")
    delivery = parse(build(Delivery("t", error_type="\udcff", error_message="a\udcff", history=(run,))))
    assert (delivery.error_type, delivery.error_message) == ("?", "a?")
    assert (delivery.history[0].worker, delivery.history[0].error_message) == ("?", "no ?")


# Dead letters


def test_a_dead_letter_carries_both_families() -> None:
    first_time = replace(SAMPLE, origin=None)
    raw = dead_letter(
        first_time,
        at=FAILED,
        timestamp_ms=1_760_000_000_000,
        failed_at_ms=1_760_000_009_000,
        stacktrace="Traceback",
    )
    found = dict(raw)
    assert found["kafka_dlt-original-topic"] == b"rustfs.jobs.retry.5s"
    assert found["kafka_dlt-original-partition"] == b"\0\0\0\7"
    assert found["kafka_dlt-original-offset"] == b"\0\0\0\0\0\0\0\x63"
    assert int.from_bytes(found["kafka_dlt-original-timestamp"], "big") == 1_760_000_000_000
    assert found["kafka_dlt-exception-fqcn"] == b"NodeUnreachable"
    assert found["kafka_dlt-exception-message"].decode() == SAMPLE.error_message
    assert found["kafka_dlt-exception-stacktrace"] == b"Traceback"
    assert found["rfw-failed-at"] == b"1760000009000"
    assert parse(raw).origin == FAILED
    assert parse(raw).history == SAMPLE.history
    assert len(found) == len(raw), "no header stands twice"


def test_both_families_name_the_place_where_the_job_was_first_read() -> None:
    """Not the copy that failed last: tools that look for the job, or send it back, would take its retry topic."""
    raw = dead_letter(
        SAMPLE, at=FAILED, timestamp_ms=1_760_000_008_000, failed_at_ms=1_760_000_009_000, stacktrace=""
    )
    found = dict(raw)
    assert parse(raw).origin == SAMPLE.origin == Origin("rustfs.jobs.high", 7, 123_456)
    assert found["kafka_dlt-original-topic"] == b"rustfs.jobs.high"
    assert int.from_bytes(found["kafka_dlt-original-partition"], "big") == 7
    assert int.from_bytes(found["kafka_dlt-original-offset"], "big") == 123_456
    assert int.from_bytes(found["kafka_dlt-original-timestamp"], "big") == SAMPLE.first_seen_ms


def test_an_unreadable_record_keeps_what_is_not_ours() -> None:
    """What we could not read may not speak for us: our own names come from the reason alone."""
    original = [
        ("x-tenant", b"7"),
        (TYPE, b"\xff"),
        ("kafka_dlt-original-topic", b"lie"),
        ("traceparent", b"t"),
    ]
    raw = dead_letter(
        Delivery(error_type="BadHeaders", error_message="why"),
        at=FAILED,
        timestamp_ms=-1,
        failed_at_ms=2,
        stacktrace="",
        original=original,
    )
    assert ("x-tenant", b"7") in raw
    assert [value for name, value in raw if name in (TYPE, "kafka_dlt-original-topic", "traceparent")] == [
        b"",
        b"rustfs.jobs.retry.5s",
    ]
    assert dict(raw)["kafka_dlt-original-timestamp"] == bytes(8)
    assert parse(raw).error_type == "BadHeaders"


# Frozen bytes


def golden_samples() -> dict[str, RawHeaders]:
    return {
        "first run": build(Delivery("replication")),
        "retry": build(SAMPLE),
        "dead letter": dead_letter(
            replace(SAMPLE, origin=None),
            at=FAILED,
            timestamp_ms=1_760_000_000_000,
            failed_at_ms=1_760_000_009_000,
            stacktrace="Traceback",
            original=[("x-tenant", b"7")],
        ),
        "dead letter of a retry": dead_letter(
            SAMPLE,
            at=FAILED,
            timestamp_ms=1_760_000_008_000,
            failed_at_ms=1_760_000_009_000,
            stacktrace="Traceback",
        ),
    }


def test_headers_are_written_as_frozen_and_frozen_ones_are_read() -> None:
    frozen = json.loads(GOLDEN.read_text())
    raw = {
        case: [(name, bytes.fromhex(value)) for name, value in rows] for case, rows in frozen["cases"].items()
    }
    assert golden_samples() == raw
    assert parse(raw["retry"]) == SAMPLE
    assert parse(raw["dead letter"]).origin == FAILED
