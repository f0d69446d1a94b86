"""Whether each bad record came to the end that it must come to, by what stands in Kafka.

Topics are read raw, from the first record; of the workers' code nothing takes part but the decoding of statuses.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from confluent_kafka import Message

from schemas.codec import Codec
from schemas.errors import WireError
from schemas.records import StatusChange, decode_report, decode_status
from streams.committed import committed_offsets
from streams.jobinfo import RecordPlace
from streams.raw_headers import raw_headers
from streams.settings import Settings
from tests.guarantees.bad_input.flood import WORKER, Flood, Plan, Written
from tests.guarantees.bad_input.forge import WIRE_ERRORS, Fate
from tests.support.audit import read_all

#: Cases that a verdict names of each kind.
_NAMED: Final = 10
_ID_IN_FRONT: Final = re.compile(rb"(?:\xc3\x01.{8}|\x00.{4})\x48([0-9A-Fa-f-]{36})", re.DOTALL)


@dataclass(slots=True)
class Verdict:
    """What was found. ``broken``: what must not be, by name, with some cases."""

    fates: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    broken: dict[str, list[str]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def breaks(self, rule: str, case: object) -> None:
        """Note a case against a rule."""
        self.counts[rule] = self.counts.get(rule, 0) + 1
        cases = self.broken.setdefault(rule, [])
        if len(cases) < _NAMED:
            cases.append(str(case)[:600])

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return {"ends": dict(self.fates), "reasons": dict(self.errors), "broken": self.counts}


@dataclass(frozen=True, slots=True)
class Letter:
    """A record that stands somewhere else now."""

    place: RecordPlace
    key: bytes | None
    value: bytes | None
    headers: dict[str, bytes]

    @property
    def error_type(self) -> str:
        return self.headers.get("rfw-error-type", b"").decode()


class Evidence:
    """Where everything stands."""

    def __init__(self, plan: Plan, settings: Settings, flood: Flood) -> None:
        topics = settings.topics
        ours = {place for _, place in flood.passed} | {written.place for written in flood.written}
        self.letters = _by_origin(read_all(settings, topics.dlq), ours)
        # Jobs that somebody waits for have their delay from their producer: they come from nowhere.
        awaited = {job_id.encode() for job_id in flood.heard}
        delayed = [one for one in read_all(settings, *topics.retry.values()) if one.key() not in awaited]
        self.waiting = _by_origin(delayed, ours)
        self.finals: dict[str, list[StatusChange]] = defaultdict(list)
        codec = Codec()
        for message in read_all(settings, topics.status):
            if _place(message) not in ours:
                change = decode_status(codec, message.value() or b"")
                if change.state.final:
                    self.finals[change.job_id].append(change)
        self.events = _last_events(settings, {place for _, place in flood.passed})
        slow = plan.slow_tiers(topics)
        places = [(name, number) for name in slow for number in range(settings.partitions)]
        self.held_from = {
            place: offset
            for place, (offset, _) in committed_offsets(settings, topics.group, places, timeout_s=20).items()
        }


def judge(plan: Plan, settings: Settings, flood: Flood) -> Verdict:
    """Compare what was written with what has become of it."""
    evidence, verdict = Evidence(plan, settings, flood), Verdict()
    slow = set(plan.slow_tiers(settings.topics))
    tiers = set(settings.topics.retry.values())
    for written in flood.written:
        if written.topic in slow:
            _held(written, evidence, verdict)
        else:
            _ended(written, evidence, verdict, on_a_tier=written.topic in tiers)
    if not flood.heard:
        verdict.breaks("nobody could wait for a job", "see the log")
    for job_id, said in flood.heard.items():
        if said != "succeeded":
            verdict.breaks("who waited for a job was not told of its end", f"{job_id}: {said}")
    for job_id in (*flood.good, *flood.heard):
        states = [change.state.value for change in evidence.finals.get(job_id, ())]
        if states != ["succeeded"]:
            verdict.breaks("a good job has not succeeded", f"{job_id}: {states}")
    known = {written.place for written in flood.written}
    for origin, letters in evidence.letters.items():
        if origin not in known:
            verdict.breaks("a letter of nothing that was written", f"{origin}: {letters[0]}")
    _counted(evidence, verdict)
    return verdict


def _ended(written: Written, evidence: Evidence, verdict: Verdict, *, on_a_tier: bool) -> None:
    record = written.record
    fate = record.behind_a_tier if on_a_tier and record.behind_a_tier is not None else record.fate
    if written.is_copy:
        fate = Fate.COPY
    letters = evidence.letters.get(written.place, [])
    waiting = evidence.waiting.get(written.place, [])
    job_id = _id_in(record.value)
    finals = [] if job_id is None else evidence.finals.get(job_id, [])
    states = [change.state.value for change in finals]
    about = f"{record.kind} at {written.place}: {len(letters)} letters, {states}, {len(waiting)} waiting"

    def is_wrong(rule: str) -> None:
        verdict.breaks(rule, about)

    for letter in letters:
        verdict.errors[letter.error_type] += 1
        if letter.value != (None if fate is Fate.BARE else record.value) or letter.key != record.key:
            is_wrong("a letter has not the bytes of its record")
        if not letter.headers.get("rfw-error-message"):
            is_wrong("a letter gives no reason")
        if letter.place[1] != written.place[1]:
            is_wrong("a letter stands on another partition")
        of_others = {
            n: value or b"" for n, value in record.headers if not n.startswith(("rfw-", "traceparent"))
        }
        if letter.error_type in WIRE_ERRORS and not of_others.items() <= letter.headers.items():
            is_wrong("a letter lacks a header of others")
    match fate:
        case Fate.DEAD | Fate.BARE:
            if len(letters) != 1:
                is_wrong("not exactly one letter")
            elif letters[0].error_type not in record.errors:
                verdict.breaks("another reason than expected", f"{about}: {letters[0].error_type}")
            if job_id is not None and states != ["failed"]:
                is_wrong("a dead job is not failed once")
        case Fate.RUNS:
            if letters or waiting or states != ["succeeded"]:
                is_wrong("a record that can run has not succeeded once")
        case Fate.COPY:
            if letters or waiting or len(states) != 1:
                is_wrong("a copy was not passed over")
        case Fate.WAITS:
            if letters or states or [one.value for one in waiting] != [record.value]:
                is_wrong("a record for later does not wait")
        case Fate.ENDS:
            # On its way to an end: it is retried, or of a type that may still be rolled out.
            going_on = bool(waiting) and not letters and not states
            if len(letters) > 1 or len(states) > 1 or not (letters or states or going_on):
                is_wrong("not exactly one end")
            if letters and job_id is not None and states != ["failed"]:
                is_wrong("a dead job is not failed once")
    how = "dead" if letters else states[0] if states else "goes on"
    verdict.fates[f"ends {how}" if fate is Fate.ENDS else fate.value] += 1


def _held(written: Written, evidence: Evidence, verdict: Verdict) -> None:
    """Its time has not come: it stands where it was written, and no commit says otherwise."""
    topic, number, offset = written.place
    verdict.fates["held"] += 1
    if written.place in evidence.letters or evidence.held_from[topic, number] > offset:
        verdict.breaks("a record is finished before the delay of its topic is over", written.place)


def _counted(evidence: Evidence, verdict: Verdict) -> None:
    by_error = sum(count for error, count in verdict.errors.items() if error in WIRE_ERRORS)
    for name, count in (
        ("undecodable", by_error),
        ("duplicates", verdict.fates[Fate.COPY.value]),
        ("not_kept", verdict.fates[Fate.BARE.value]),
    ):
        if evidence.events.get(name, 0) != count:
            verdict.breaks(
                "what the worker reports is not what happened", f"{name}: {count}, {evidence.events}"
            )


def _id_in(value: bytes | None) -> str | None:
    front = _ID_IN_FRONT.match(value or b"")
    return None if front is None else front[1].decode()


def _place(message: Message) -> RecordPlace:
    topic, number, offset = message.topic(), message.partition(), message.offset()
    assert topic is not None and number is not None and offset is not None  # noqa: PT018
    return topic, number, offset


def _by_origin(messages: Iterable[Message], ours: set[RecordPlace]) -> dict[RecordPlace, list[Letter]]:
    """Those that a worker has written, by the place where it first read them."""
    found: dict[RecordPlace, list[Letter]] = defaultdict(list)
    for message in messages:
        place = _place(message)
        if place in ours:
            continue
        headers = {name: value or b"" for name, value in raw_headers(message) or ()}
        origin = (
            headers["rfw-origin-topic"].decode(),
            int(headers["rfw-origin-partition"]),
            int(headers["rfw-origin-offset"]),
        )
        found[origin].append(Letter(place, message.key(), message.value(), headers))
    return found


def _last_events(settings: Settings, ours: set[RecordPlace]) -> dict[str, int]:
    """What the worker counts, in its last report."""
    codec, last = Codec(), {}
    for message in read_all(settings, settings.topics.reports):
        if _place(message) in ours or message.key() != f"{WORKER}.0".encode():
            continue
        try:
            last = dict(decode_report(codec, message.value() or b"").events)
        except WireError as error:
            raise AssertionError("a report of the worker cannot be read") from error
    return last
