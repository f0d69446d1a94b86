"""What reports say of lost owners, and what they leave open."""

from __future__ import annotations

import pytest

from schemas.codec import Codec
from schemas.records import WorkerReport, encode_report
from workers.liveness.survivors import ReportFold, Signs

pytestmark = pytest.mark.worker_coordination

LOST_MS, LEASE_MS = 100_000, 5_000
_LIKE_A_NEWER_RELEASE = b"\0"


def report(incarnation: str, state: str = "running", made_ms: int = 1) -> bytes:
    return encode_report(
        Codec(),
        WorkerReport(
            worker_id="w.0",
            incarnation=incarnation,
            sequence=1,
            started_at=1,
            at=made_ms,
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


def signs(*reports: tuple[int, bytes]) -> Signs:
    """With these in the topic, each with the time when it was written."""
    fold = ReportFold(Codec(), {"frozen": LOST_MS}, LEASE_MS)
    for written_ms, value in reports:
        fold.note(b"w.0", value, written_ms)
    return fold.signs(complete=True)


@pytest.mark.parametrize(
    ("written_ms", "incarnation", "complete"),
    [(LOST_MS + 1, "frozen", False), (LOST_MS, "frozen", True), (LOST_MS + 1, "another", True)],
)
def test_who_is_named_after_its_loss_by_a_report_that_cannot_be_read_is_not_taken_for_dead(
    written_ms: int, incarnation: str, *, complete: bool
) -> None:
    unreadable = _LIKE_A_NEWER_RELEASE + report(incarnation)
    assert signs((written_ms, unreadable)) == Signs({}, complete=complete)


def test_who_is_heard_of_at_last_is_alive() -> None:
    found = signs(
        (LOST_MS + 1, _LIKE_A_NEWER_RELEASE + report("frozen")),
        (LOST_MS + 2, report("frozen")),
    )
    assert found == Signs({"frozen": LOST_MS + 2})


@pytest.mark.parametrize(
    ("state", "heard"),
    [("left", {"frozen": LOST_MS + 1}), ("stopped", {}), ("running", {}), ("draining", {})],
)
def test_who_has_said_that_it_left_did_not_die_whoever_has_its_name_by_now(
    state: str, heard: dict[str, int]
) -> None:
    """Its last commit, which would have said so, did not reach a Kafka that was away."""
    found = signs((LOST_MS - 10, report("frozen", state)), (LOST_MS + 5, report("another")))
    assert (dict(found.heard), found.replaced) == (heard, frozenset({"frozen"}))


def test_its_last_report_is_the_last_in_which_something_may_have_run() -> None:
    """Its own clock is behind by 40 s."""

    def said(before_ms: int, state: str = "running") -> tuple[int, bytes]:
        return LOST_MS - before_ms, report("frozen", state, LOST_MS - before_ms - 40_000)

    assert signs(said(30), said(20)).last == {"frozen": LOST_MS - 20}
    assert signs(said(30), said(20), said(10, "cut_off")).last == {}
    assert signs(said(30), said(20, "cut_off"), said(0)).last == {"frozen": LOST_MS}
    assert signs(said(-1)).last == {}


def test_who_was_cut_off_when_it_was_last_heard_of_ran_nothing() -> None:
    """But who ends by itself may have been ended by its job."""

    def at_rest(*states: str) -> frozenset[str]:
        reports = [(LOST_MS - 100 + number, report("frozen", state)) for number, state in enumerate(states)]
        return signs(*reports).at_rest

    assert at_rest("running", "cut_off") == {"frozen"}
    assert at_rest("cut_off", "running") == frozenset()
    assert at_rest("cut_off", "running", "cut_off") == {"frozen"}
    assert at_rest("running", "stopped") == frozenset()


@pytest.mark.parametrize("late_ms", [3_500, 3_499])
def test_a_report_that_kafka_takes_late_tells_of_an_outage(late_ms: int) -> None:
    made_ms = LOST_MS - 2_000
    found = signs(
        (LOST_MS - 9_000, report("frozen", made_ms=LOST_MS - 9_000)),
        (LOST_MS - 3_000, report("another", made_ms=made_ms - 1_000 + 77)),
        (made_ms + late_ms, report("another", made_ms=made_ms + 77)),
    )
    assert found.outages == (((made_ms, made_ms + late_ms),) if late_ms == 3_500 else ())
    assert found.last == {"frozen": LOST_MS - 9_000}
