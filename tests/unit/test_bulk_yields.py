"""A bulk beside an event loop gives the interpreter up by time, and Ctrl-C ends any bulk, wherever it strikes."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from schemas.codec import Codec
from schemas.topics import Topics
from streams import producer as producer_module
from streams.outgoing import JobOptions, OutgoingJob, Rules
from streams.producer import _Bulk
from tests.support.deployments import Sample

pytestmark = pytest.mark.job_processing


class Clock:
    """Stands still but for what a job takes."""

    def __init__(self) -> None:
        self.now = 100.0
        self.naps: list[float] = []

    def perf_counter(self) -> float:
        return self.now

    def time_ns(self) -> int:
        return round(self.now * 1e9)

    def sleep(self, _: float) -> None:
        self.naps.append(self.now)


@pytest.mark.parametrize("job_s", [20e-6, 300e-6, 5e-3])
def test_nobody_waits_for_a_bulk_much_longer_than_a_millisecond(
    monkeypatch: pytest.MonkeyPatch, job_s: float
) -> None:
    clock = Clock()
    monkeypatch.setattr(producer_module, "time", clock)

    def send(*_: Any) -> bool:
        clock.now += job_s
        return True

    outbox = SimpleNamespace(send=send, prepare=lambda *_, **__: None)
    owner: Any = SimpleNamespace(outbox=outbox, rules=Rules(Codec(), Topics("p.")))
    bulk = _Bulk(owner, JobOptions(), lambda _: None, yielding=True)
    for _ in range(1_000):
        bulk.add(Sample())
    between = [later - earlier for earlier, later in zip(clock.naps, clock.naps[1:], strict=False)]
    assert len(between) >= min(1_000 * job_s / 1e-3, 1_000) * 0.7
    assert max(between) <= 1e-3 + job_s + 1e-9
    quiet = _Bulk(owner, JobOptions(), lambda _: None, yielding=False)
    before = len(clock.naps)
    quiet.add(Sample())
    assert len(clock.naps) == before


def test_a_bulk_whose_source_is_slow_says_of_each_job_when_it_was_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A time by the calendar is the same for all of them, however long it took to read the first ones."""
    clock, sent = Clock(), []
    monkeypatch.setattr(producer_module, "time", clock)

    def send(outgoing: OutgoingJob, _: Any) -> bool:
        sent.append(outgoing)
        return True

    outbox = SimpleNamespace(send=send, prepare=lambda *_, **__: None)
    owner: Any = SimpleNamespace(outbox=outbox, rules=Rules(Codec(), Topics("p.")))
    bulk = _Bulk(
        owner, JobOptions(at=datetime.fromtimestamp(clock.now + 200, UTC)), lambda _: None, yielding=False
    )
    for _ in range(300):
        bulk.add(Sample())
        clock.now += 1.0
    assert [one.timestamp_ms for one in sent] == [100_000 + 1_000 * count for count in range(300)]
    assert {dict(one.headers).get("rfw-not-before") for one in sent[:200]} == {b"300000"}
    assert sent[170].topic == "p.jobs.retry.30s", "not one whose delay is longer than what remains"
    assert {one.topic for one in sent[200:]} == {"p.jobs.normal"}


@pytest.mark.parametrize("strikes", ["after a record was handed over", "in the report of a record"])
def test_an_interrupted_bulk_ends_once_nothing_is_in_flight(strikes: str) -> None:
    """Its count of records, or of reports, is one short for ever."""
    waiting: list[Any] = []
    lost = strikes == "in the report of a record"

    def send(_: Any, ticket: Any) -> bool:
        waiting.append(ticket)
        if len(waiting) == 3 and not lost:
            raise KeyboardInterrupt
        return True

    def serve(_: float) -> None:
        if len(waiting) == 3 and lost:
            waiting.pop()
        while waiting:
            waiting.pop()(None, SimpleNamespace(offset=lambda: 0))

    class Outbox:
        in_flight = property(lambda _: len(waiting))

        def __init__(self) -> None:
            self.send = send

        def prepare(self, *_: Any, **__: Any) -> None: ...

    owner: Any = SimpleNamespace(outbox=Outbox(), rules=Rules(Codec(), Topics("p.")))
    bulk = _Bulk(owner, JobOptions(), serve, yielding=False)
    bulk.add(Sample())
    bulk.add(Sample())
    if lost:
        bulk.add(Sample())
    else:
        with pytest.raises(KeyboardInterrupt):
            bulk.add(Sample())
    bulk.finish()
    assert bulk.ticket.finished
    assert len(bulk.ticket.unacknowledged) == (1 if lost else 0)
