"""Why a run had no outcome: what explains it, and what does not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.guarantees.auditor import judge
from tests.guarantees.evidence import (
    Accepted,
    Doubt,
    Life,
    Report,
    Trouble,
    load,
    read_doubts,
    save,
)
from tests.guarantees.silence import read_words, silences
from tests.support.honest_evidence import WALL_MS, S, honest, ran, record, said

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize(("start_s", "found"), [(29.5, set()), (21.0, {"unexplained"})])
def test_what_ends_as_the_campaign_does_waits_for_no_commit(start_s: float, found: set[str]) -> None:
    """Workers that are left are killed then."""
    evidence = honest()
    evidence.runs.append(ran("five", start_s, start_s + 0.2, "b.0"))
    evidence.topics.jobs.append(record("five", 4))
    evidence.accepted.append(Accepted("five", "t", "succeeded", "low", None))
    evidence.topics.statuses["five"] = []
    assert set(judge(evidence).broken) - {"lost"} == found


def test_a_handlers_process_that_outlives_its_worker_for_a_moment_was_killed_with_it() -> None:
    evidence = honest()
    evidence.runs[3] = ran("four", 9.9, 10.05, pid=11)
    verdict = judge(evidence)
    assert (verdict.broken, verdict.reasons) == ({}, {"killed before its commit": 1})


CUT_OFF = Doubt("b", WALL_MS + 11_990, "no answer from Kafka: everything is cancelled")
RELEASED = Doubt("b", WALL_MS + 11_990, "job cancelled", job_id="four")
AWAY = Trouble("broker_kill", 5 * S, 7 * S)


@pytest.mark.parametrize(
    ("reason", "troubles", "fence", "line"),
    [
        ("cancelled: moved", [], 1, RELEASED),
        ("cancelled: frozen", [Trouble("worker_freeze", 5 * S, 12 * S, 20)], 0, None),
        ("cancelled: broker away", [AWAY], 0, CUT_OFF),
        pytest.param(None, [], 0, CUT_OFF, id="nothing was wrong"),
        pytest.param(None, [AWAY], 0, None, id="its worker said nothing"),
        pytest.param(None, [AWAY], 1, replace(RELEASED, worker="a"), id="another worker"),
        pytest.param(None, [AWAY], 1, replace(RELEASED, job_id="one"), id="another job"),
        pytest.param(None, [AWAY], 1, replace(RELEASED, at_ms=WALL_MS + 12_200), id="afterwards"),
        pytest.param(None, [AWAY], 0, replace(CUT_OFF, at_ms=WALL_MS + 1_000), id="long before"),
    ],
)
def test_a_run_that_was_cancelled_has_a_reason(
    reason: str | None, troubles: list[Trouble], fence: int, line: Doubt | None
) -> None:
    evidence = honest()
    evidence.troubles += troubles
    evidence.doubts = [line] if line is not None else []
    evidence.runs[4] = replace(evidence.runs[4], fence=1 + fence)
    evidence.runs.insert(3, ran("four", 11, 12, "b.0", how="cancelled", fence=1))
    evidence.runs.sort(key=lambda run: run.start_ns)
    verdict = judge(evidence)
    assert verdict.reasons == {"killed": 1, **({reason: 1} if reason else {})}
    assert bool(verdict.broken) == (reason is None)


@pytest.mark.parametrize(
    ("frozen_s", "explained"),
    [((11.0, 13.0), True), ((12.5, 13.0), False), ((11.0, 11.5), False), (None, False)],
)
def test_a_run_that_ended_in_its_process_while_its_worker_was_frozen_may_run_there_again(
    frozen_s: tuple[float, float] | None, *, explained: bool
) -> None:
    """Its worker cancels everything when it wakes up after too long a silence, before it reads the result."""
    evidence = honest()
    if frozen_s is not None:
        begin_s, end_s = frozen_s
        evidence.troubles.append(Trouble("worker_freeze", round(begin_s * S), round(end_s * S), 20))
    evidence.runs[4] = replace(evidence.runs[4], fence=1)
    evidence.runs.insert(3, ran("four", 11, 12, "b.0", fence=1))
    evidence.runs.sort(key=lambda run: run.start_ns)
    verdict = judge(evidence)
    assert verdict.reasons.get("frozen", 0) == explained
    assert verdict.unexplained.count == (not explained)


UNCLEAR = "commit without a clear answer"
UNREADABLE = "what is visible of a transaction cannot be read yet"
LOST = "partitions lost"


@pytest.mark.parametrize(
    ("worker", "at_s", "event", "partitions", "explained"),
    [
        pytest.param("a", 4.0, UNCLEAR, (), True, id="its worker knew of no answer"),
        pytest.param("b", 4.0, UNCLEAR, (), False, id="another one did not"),
        pytest.param("a", 20.0, UNREADABLE, (), True, id="it still waits for Kafka's word on an earlier one"),
        pytest.param("a", 3.4, UNCLEAR, (), False, id="before its end"),
        pytest.param("a", 39.0, UNCLEAR, (), True, id="a transaction that the next owner has overtaken"),
        pytest.param("a", 41.0, UNCLEAR, (), False, id="much later than the next one has begun"),
        pytest.param("a", 4.0, LOST, (0, 3), True, id="its partition was lost"),
        pytest.param("a", 4.0, LOST, (3,), False, id="others were lost"),
        pytest.param("a", 4.0, "group metadata was stale", (), False, id="what is written again"),
        pytest.param(
            "a", 4.0, "partitions taken too late: joining the group again", (0,), False, id="not taken"
        ),
        pytest.param("a", 4.0, "no answer from Kafka: everything is cancelled", (), False, id="what runs"),
        pytest.param(None, 0.0, UNCLEAR, (), False, id="nobody has noticed anything"),
    ],
)
def test_a_run_that_had_ended_is_explained_by_a_broker_only_if_its_worker_met_that(
    worker: str | None, at_s: float, event: str, partitions: tuple[int, ...], *, explained: bool
) -> None:
    """In a storm some broker is away most of the time."""
    evidence = honest()
    evidence.lives[0] = replace(evidence.lives[0], end_ns=70 * S)
    evidence.troubles.append(Trouble("broker_kill", 2 * S, 4 * S))
    evidence.runs.append(ran("three", 13, 13.5, "b.0", fence=1))
    evidence.topics.statuses["three"] = [said("three", "succeeded", 13.5, 2, "b.0")]
    if worker is not None:
        evidence.doubts = [Doubt(worker, WALL_MS + round(at_s * 1000), event, partitions)]
    verdict = judge(evidence)
    assert verdict.unexplained.count == (not explained)
    assert verdict.reasons.get("broker away", 0) == explained


@pytest.mark.parametrize(
    ("frozen", "explained"),
    [
        pytest.param(None, False, id="it was awake"),
        pytest.param(Trouble("worker_freeze", 10 * S, 50 * S, 10), True, id="it was frozen"),
        pytest.param(Trouble("worker_freeze", 10 * S, 50 * S, 20), False, id="another one was"),
    ],
)
def test_a_worker_that_is_frozen_while_an_outcome_waits_says_so_when_it_wakes(
    frozen: Trouble | None, *, explained: bool
) -> None:
    evidence = honest()
    evidence.lives[0] = replace(evidence.lives[0], end_ns=70 * S)
    evidence.troubles += [Trouble("broker_kill", 2 * S, 4 * S), *([frozen] if frozen else [])]
    evidence.runs.append(ran("three", 13, 13.5, "b.0", fence=1))
    evidence.topics.statuses["three"] = [said("three", "succeeded", 13.5, 2, "b.0")]
    evidence.doubts = [Doubt("a", WALL_MS + 51_000, LOST, (0,))]
    verdict = judge(evidence)
    assert (verdict.reasons.get("broker away", 0), verdict.reasons.get("frozen", 0)) == (explained, 0)


@pytest.mark.parametrize(("ended_at", "explained"), [(40, True), (29, False)])
def test_what_the_next_process_of_its_name_says_explains_no_run(ended_at: int, *, explained: bool) -> None:
    evidence = honest()
    evidence.lives[0] = Life("a", 10, 0, ended_at * S, "killed")
    evidence.lives.append(Life("a", 11, ended_at * S, 70 * S, "stays"))
    evidence.troubles.append(Trouble("broker_kill", 2 * S, 4 * S))
    evidence.runs.append(ran("three", 13, 13.5, "b.0", fence=1))
    evidence.topics.statuses["three"] = [said("three", "succeeded", 13.5, 2, "b.0")]
    evidence.doubts = [Doubt("a", WALL_MS + 30_000, UNCLEAR)]
    assert judge(evidence).reasons.get("broker away", 0) == explained


def test_a_worker_says_itself_when_it_does_not_know_what_became_of_a_commit(tmp_path: Path) -> None:
    lines = [
        '{"event": "commit without a clear answer", "timestamp": "2027-01-15T08:00:03.250000Z", "level": "warning"}',
        '{"event": "partitions lost", "partitions": [1, 4], "timestamp": "2027-01-15T08:00:04Z"}',
        '{"event": "job cancelled", "job_id": "j", "timestamp": "2027-01-15T08:00:05Z"}',
        '{"event": "other"}',
        '{"event": "comm',
    ]
    (tmp_path / "w2.stderr").write_text("Picked up JAVA\n" + "\n".join(lines))
    assert read_doubts(tmp_path) == [
        Doubt("w2", 1_800_000_003_250, "commit without a clear answer"),
        Doubt("w2", 1_800_000_004_000, "partitions lost", (1, 4)),
        Doubt("w2", 1_800_000_005_000, "job cancelled", job_id="j"),
    ]
    evidence = replace(honest(), doubts=read_doubts(tmp_path))
    save(evidence, tmp_path / "evidence.json")
    assert load(tmp_path / "evidence.json").doubts == evidence.doubts


def test_what_a_frozen_process_does_when_it_wakes_is_counted_apart() -> None:
    """Worker a stands still from 9.6 to 20 with a job in its hands, which b runs meanwhile."""
    evidence = honest()
    evidence.lives[0] = Life("a", 10, 0, 30 * S, "stays")
    evidence.troubles.append(Trouble("worker_freeze", round(9.6 * S), 20 * S, 10))
    evidence.runs[3:] = [ran("four", 9.5, 20.5, how="cancelled"), ran("four", 15, 15.5, "b.0", fence=1)]
    evidence.topics.statuses["four"] = [said("four", "succeeded", 15.5, 3, "b.0")]
    verdict = judge(evidence)
    assert verdict.broken == {}
    assert verdict.fenced_remainders == 1
    evidence.runs[3] = ran("four", 9.5, 21.6, how="cancelled")
    assert set(judge(evidence).broken) == {"overlaps"}, "it has to end soon after it wakes"


@pytest.mark.parametrize("apart", [False, True])
def test_a_drain_kills_what_runs_in_a_process_of_its_own_and_cancels_the_rest(*, apart: bool) -> None:
    """The one has no end then, in the log of the handlers; the other has."""
    evidence = honest()
    evidence.lives[0] = Life("a", 10, 0, 10 * S, "left", told_ns=8 * S)
    evidence.faults = {"worker_leave": 1}
    evidence.runs[3] = ran("four", 9.5, None, apart=apart)
    assert set(judge(evidence).broken) == (set() if apart else {"unexplained"})


@pytest.mark.parametrize("apart", [False, True])
def test_a_process_may_begin_a_job_a_moment_after_its_worker_was_killed(*, apart: bool) -> None:
    evidence = honest()
    evidence.runs[3] = ran("four", 10.001, 10.02, apart=apart)
    assert set(judge(evidence).broken) == (set() if apart else {"unexplained"})


LINES = {
    "a": [WALL_MS + at_ms for at_ms in (1_000, 9_700)],
    "b": [WALL_MS + at_ms for at_ms in range(0, 60_000, 5_000)],
}


@pytest.mark.parametrize(
    ("changed", "reported_s", "silent"),
    [
        pytest.param({}, None, [(9.7, 40)], id="nothing is heard of it"),
        pytest.param({"end_ns": 19 * S}, None, [], id="killed soon"),
        pytest.param({}, 31, [], id="it reported"),
        pytest.param({}, 9.6, [(9.7, 40)], id="it had reported"),
        pytest.param({}, 41, [(9.7, 40)], id="another of its name reported"),
        pytest.param({"end": "left"}, None, [], id="it left"),
        pytest.param({"start_ns": 35 * S}, None, [], id="it had just begun"),
        pytest.param({"start_ns": 15 * S}, None, [], id="it had been started, and had not begun"),
    ],
)
def test_a_worker_of_which_nothing_is_heard_until_it_is_killed_has_stood_still(
    changed: dict[str, Any], reported_s: float | None, silent: list[tuple[float, float]]
) -> None:
    """Seen in a storm (seed 22): 36 s without a word, a report or a run, while all brokers were away for half of them."""
    life = replace(Life("a", 10, 0, 40 * S, "killed"), **changed)
    # Written when the brokers are back, whatever has become of its worker.
    made_ms = WALL_MS + round((reported_s or 0) * 1000)
    reports = [] if reported_s is None else [Report("a.0", WALL_MS + 39_000, (), made_ms)]
    runs = [ran("one", 1, 1.5), ran("four", 9.5, None), ran("five", 20, 21, "b.0")]
    found = silences([life, Life("b", 20, 0, 40 * S, "killed")], LINES, runs, reports)
    assert [(one.kind, one.pid, one.start_ns / S, one.end_ns / S) for one in found] == [
        ("worker_freeze", 10, *span) for span in silent
    ]


def test_a_workers_lines_are_its_words_whatever_they_say(tmp_path: Path) -> None:
    lines = [
        "Picked up JAVA",
        '{"timestamp": "2027-01-15T08:00:03.250000Z"}',
        '{"event": "other"}',
        '{"ev',
        "[]",
    ]
    (tmp_path / "w2.stderr").write_text("\n".join(lines))
    assert read_words(tmp_path) == {"w2": [1_800_000_003_250]}


def test_what_ran_in_a_worker_that_stood_still_is_no_finding() -> None:
    """Others have its partitions after a session; its watchdog ends it much later."""
    evidence = replace(honest(), stood_still=["a"])
    evidence.runs[4] = ran("four", 15, 15.5, "b.0", fence=1)
    evidence.topics.statuses["four"] = [said("four", "succeeded", 15.5, 3, "b.0")]
    evidence.lives[0] = Life("a", 10, 0, 163 * S, "stood still")
    evidence.troubles.append(Trouble("worker_freeze", 9_600_000_000, 163 * S, 10))
    verdict = judge(evidence)
    assert (verdict.broken, verdict.stood_still, verdict.reasons) == ({}, 1, {"stood still": 1})
    assert verdict.fenced_remainders == 1, "nobody knows when its handlers ended"
    evidence.lives[0] = Life("a", 10, 0, 163 * S, "failed")
    assert set(judge(evidence).broken) == {"unexplained"}


@pytest.mark.parametrize(
    ("trouble_s", "explained"),
    [((2.0, 4.0), True), ((7.4, 9.0), True), ((7.6, 9.0), False), ((-40.0, -17.0), False)],
)
def test_a_broker_explains_what_ended_shortly_before_it_went_or_after_it_was_back(
    trouble_s: tuple[float, float], *, explained: bool
) -> None:
    evidence = honest()
    evidence.lives[0] = replace(evidence.lives[0], end_ns=70 * S)
    evidence.troubles.append(Trouble("broker_kill", round(trouble_s[0] * S), round(trouble_s[1] * S)))
    evidence.runs.append(ran("three", 13, 13.5, "b.0", fence=1))
    evidence.topics.statuses["three"] = [said("three", "succeeded", 13.5, 2, "b.0")]
    evidence.doubts = [Doubt("a", WALL_MS + 10_000, UNCLEAR)]
    verdict = judge(evidence)
    assert verdict.reasons.get("broker away", 0) == explained
    assert verdict.unexplained.count == (not explained)


@pytest.mark.parametrize(
    ("frozen_s", "explained"), [((3.2, 9.0), True), ((0.0, 2.9), False), ((7.6, 9.0), False)]
)
def test_a_freeze_explains_what_ran_then_or_waited_for_its_commit(
    frozen_s: tuple[float, float], *, explained: bool
) -> None:
    evidence = honest()
    evidence.lives[0] = replace(evidence.lives[0], end_ns=70 * S)
    evidence.troubles.append(Trouble("worker_freeze", round(frozen_s[0] * S), round(frozen_s[1] * S), 10))
    evidence.runs.append(ran("three", 13, 13.5, "b.0", fence=1))
    evidence.topics.statuses["three"] = [said("three", "succeeded", 13.5, 2, "b.0")]
    verdict = judge(evidence)
    assert verdict.reasons.get("frozen", 0) == explained
    assert verdict.unexplained.count == (not explained)


def test_a_run_without_an_end_in_a_worker_that_lives_on_is_explained_by_nothing() -> None:
    evidence = honest()
    evidence.lives[0] = Life("a", 10, 0, 30 * S, "stays")
    verdict = judge(evidence)
    assert set(verdict.broken) == {"unexplained", "overlaps"}


def test_a_kill_is_in_flight_if_that_very_process_had_a_handler_running() -> None:
    evidence = honest()
    evidence.lives += [Life("c", 30, 0, 5 * S, "killed"), Life("d", 40, 0, 18 * S, "killed")]
    evidence.topics.jobs.append(record("five", 4, key=None))
    evidence.accepted.append(Accepted("five", "t", "succeeded", "low", None))
    evidence.runs.insert(3, ran("five", 5.5, 6, "d.0", key=None, pid=40))
    evidence.topics.statuses["five"] = [said("five", "succeeded", 6, 4, "d.0", started_ms=WALL_MS + 5_500)]
    verdict = judge(evidence)
    assert (verdict.broken, verdict.kills, verdict.kills_in_flight) == ({}, 3, 1)


def test_a_run_that_came_to_its_end_does_not_acquit_its_job_and_needs_a_reason() -> None:
    evidence = honest()
    evidence.lives[0] = replace(evidence.lives[0], end_ns=18 * S)
    evidence.lives += [Life("c", 30, 0, 5 * S, "killed"), Life("d", 40, 0, 15 * S, "killed")]
    evidence.accepted.append(Accepted("five", "t", "succeeded", "low", None))
    evidence.topics.jobs.append(record("five", 0, topic="jobs.dlq", key=None))
    evidence.topics.statuses["five"] = [said("five", "failed", 19, 4, "b.0", error_type="worker_lost")]
    evidence.runs[3:] = [ran("four", 3.6, 3.7)]
    evidence.topics.statuses["four"] = [said("four", "succeeded", 3.7, 3)]
    evidence.runs += [
        ran("five", 3, None, "c.0", key=None, pid=30),
        ran("five", 5.2, 5.4, "b.0", key=None, fence=1, pid=20),
        ran("five", 13.2, None, "d.0", key=None, fence=2, pid=40),
        ran("five", 16, None, key=None, fence=3),
    ]
    evidence.runs.sort(key=lambda run: run.start_ns)
    verdict = judge(evidence)
    assert (verdict.condemned.count, set(verdict.broken)) == (1, {"unexplained"})
