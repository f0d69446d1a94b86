from __future__ import annotations

import subprocess
import sys
from itertools import takewhile
from pathlib import Path

import pytest

from schemas.errors import IllegalTransition
from schemas.lifecycle import FINAL, TRANSITIONS, Actor, JobStatus, actor_of, by_worker

pytestmark = pytest.mark.job_processing

ALL = [None, *JobStatus]
PAIRS = [(before, after) for before in ALL for after in JobStatus]


def test_every_state_can_be_reached() -> None:
    reached: set[JobStatus | None] = {None}
    while more := {after for before, after in TRANSITIONS if before in reached} - reached:
        reached |= more
    assert reached == set(ALL)


def test_every_state_has_a_way_to_an_end() -> None:
    ending: set[JobStatus | None] = set(FINAL)
    while more := {before for before, after in TRANSITIONS if after in ending} - ending:
        ending |= more
    assert ending == set(ALL)


def test_finals_are_the_four_of_the_contract() -> None:
    assert {state for state in JobStatus if state.final} == FINAL
    assert {state.value for state in FINAL} == {"succeeded", "failed", "cancelled", "skipped"}


@pytest.mark.parametrize("final", sorted(FINAL))
def test_only_an_operator_wakes_a_finished_job_and_it_starts_anew(final: JobStatus) -> None:
    ways = {after: actor for (before, after), actor in TRANSITIONS.items() if before is final}
    assert ways == {JobStatus.PENDING: Actor.OPERATOR}


def test_only_a_producer_brings_a_job_into_being() -> None:
    ways = {after: actor for (before, after), actor in TRANSITIONS.items() if before is None}
    assert ways == {JobStatus.PENDING: Actor.PRODUCER, JobStatus.SCHEDULED: Actor.PRODUCER}
    assert [before for (before, _), actor in TRANSITIONS.items() if actor is Actor.PRODUCER] == [None, None]


def test_an_operator_only_cancels_and_redrives() -> None:
    ways = {pair for pair, actor in TRANSITIONS.items() if actor is Actor.OPERATOR}
    alive = [state for state in JobStatus if not state.final]
    assert ways == {(state, JobStatus.CANCELLED) for state in alive} | {
        (state, JobStatus.PENDING) for state in FINAL
    }


def test_a_worker_never_cancels_and_never_touches_what_is_final_or_unborn() -> None:
    ways = [pair for pair, actor in TRANSITIONS.items() if actor is Actor.WORKER]
    assert all(before is not None and not before.final for before, _ in ways)
    assert all(after is not JobStatus.CANCELLED for _, after in ways)


def test_a_worker_may_make_exactly_these_changes() -> None:
    ends = "succeeded failed skipped"
    assert ways_of(Actor.WORKER) == {
        # A short job has one status: its end. A delay that has passed makes it pending again.
        "pending": words(f"running retrying scheduled {ends}"),
        "scheduled": words(f"pending running retrying scheduled {ends}"),
        "retrying": words(f"pending running retrying scheduled {ends}"),
        # From running to running: the owner died, and another one runs it again.
        "running": words(f"running retrying scheduled {ends}"),
    }


def ways_of(actor: Actor) -> dict[str, set[str]]:
    ways: dict[str, set[str]] = {}
    for (before, after), who in TRANSITIONS.items():
        if who is actor and before is not None:
            ways.setdefault(before.value, set()).add(after.value)
    return ways


def words(text: str) -> set[str]:
    return set(text.split())


@pytest.mark.parametrize(("before", "after"), PAIRS, ids=str)
def test_what_is_not_in_the_table_is_refused(before: JobStatus | None, after: JobStatus) -> None:
    if (before, after) in TRANSITIONS:
        assert actor_of(before, after) is TRANSITIONS[before, after]
    else:
        was = before.value if before else "nothing"
        with pytest.raises(IllegalTransition, match=f"from {was} to {after.value}"):
            actor_of(before, after)


@pytest.mark.parametrize("before", JobStatus)
@pytest.mark.parametrize("after", JobStatus)
def test_a_worker_makes_the_changes_of_workers_alone(before: JobStatus, after: JobStatus) -> None:
    if TRANSITIONS.get((before, after)) is Actor.WORKER:
        assert by_worker(before, after) is after
    else:
        with pytest.raises(IllegalTransition, match=f"from {before.value} to {after.value}"):
            by_worker(before, after)


def test_the_documentation_draws_the_table() -> None:
    lines = (Path(__file__).parents[2] / "docs" / "guarantees.md").read_text("utf-8").splitlines()
    begin = next(number for number, line in enumerate(lines) if line.startswith("| from "))
    (_, *names), _, *rows = (
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in takewhile(lambda line: line.startswith("|"), lines[begin:])
    )
    drawn = {
        (None if before == "nothing" else JobStatus(before), JobStatus(after)): Actor(who)
        for before, *cells in rows
        for after, who in zip(names, cells, strict=True)
        if who
    }
    assert drawn == TRANSITIONS


def test_the_table_has_the_same_order_in_every_process() -> None:
    """A set in the middle of it would shuffle whatever is made of it."""
    code = "from schemas.lifecycle import TRANSITIONS; print(list(TRANSITIONS))"
    orders = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": str(seed), "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            check=True,
        ).stdout
        for seed in (1, 2, 3)
    }
    assert len(orders) == 1


def test_states_are_read_in_any_case() -> None:
    assert JobStatus("Running") is JobStatus.RUNNING
    with pytest.raises(ValueError, match="done"):
        JobStatus("done")
