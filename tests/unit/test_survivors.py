"""What reports say of lost owners, and what they leave open."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

import workers.survivors
from schemas.codec import Codec
from schemas.records import WorkerReport, encode_report
from streams.scan import ScanResult
from workers.survivors import Signs, signs_of_life

pytestmark = pytest.mark.worker_coordination

LOST_MS = 1_000
_LIKE_A_NEWER_RELEASE = b"\0"


def report(incarnation: str, state: str = "running") -> bytes:
    return encode_report(
        Codec(),
        WorkerReport(
            worker_id="w.0",
            incarnation=incarnation,
            sequence=1,
            started_at=1,
            at=1,
            host="h",
            state=state,
            job_types=(),
            partitions=(),
            running=0,
            buffered=0,
            counters=(),
            events={},
        ),
    )


def signs(monkeypatch: pytest.MonkeyPatch, *reports: tuple[int, bytes]) -> Signs:
    """With these in the topic, each with the time when it was written."""

    def scan(_settings: Any, _topics: Any, look: Any, **_: Any) -> ScanResult:
        for written_ms, value in reports:
            look(
                SimpleNamespace(
                    key=lambda: b"w.0", value=lambda v=value: v, timestamp=lambda at=written_ms: (1, at)
                )
            )
        return ScanResult(complete=True)

    monkeypatch.setattr(workers.survivors, "scan", scan)
    settings: Any = SimpleNamespace(topics=SimpleNamespace(reports="reports"))
    return signs_of_life(settings, Codec(), {"frozen": LOST_MS})


@pytest.mark.parametrize(
    ("written_ms", "incarnation", "complete"),
    [(LOST_MS + 1, "frozen", False), (LOST_MS, "frozen", True), (LOST_MS + 1, "another", True)],
)
def test_who_is_named_after_its_loss_by_a_report_that_cannot_be_read_is_not_taken_for_dead(
    monkeypatch: pytest.MonkeyPatch, written_ms: int, incarnation: str, *, complete: bool
) -> None:
    unreadable = _LIKE_A_NEWER_RELEASE + report(incarnation)
    assert signs(monkeypatch, (written_ms, unreadable)) == Signs({}, complete=complete)


def test_who_is_heard_of_at_last_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    found = signs(
        monkeypatch,
        (LOST_MS + 1, _LIKE_A_NEWER_RELEASE + report("frozen")),
        (LOST_MS + 2, report("frozen")),
    )
    assert found == Signs({"frozen": LOST_MS + 2})


@pytest.mark.parametrize(
    ("state", "heard"),
    [("left", {"frozen": LOST_MS + 1}), ("stopped", {}), ("running", {}), ("draining", {})],
)
def test_who_has_said_that_it_left_did_not_die_whoever_has_its_name_by_now(
    monkeypatch: pytest.MonkeyPatch, state: str, heard: dict[str, int]
) -> None:
    """Its last commit, which would have said so, did not reach a Kafka that was away."""
    found = signs(monkeypatch, (LOST_MS - 10, report("frozen", state)), (LOST_MS + 5, report("another")))
    assert found == Signs(heard, frozenset({"frozen"}))
