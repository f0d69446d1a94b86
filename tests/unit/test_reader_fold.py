from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import JobPriority, JobStatus
from schemas.errors import BadRecord
from schemas.headers import Attempt, Delivery
from schemas.records import StatusChange
from streams.jobinfo import (
    JobEvent,
    JobState,
    Sighting,
    StatusSeen,
    Tombstone,
    fold,
    job_info,
    jsonable,
    status_now,
)
from streams.reader import JobFilter, matches

pytestmark = pytest.mark.job_processing

ID = "01a20bd1-1946-743e-922d-c32f1fd9b001"
JOBS, TIER, STATUS = "p.jobs.normal", "p.jobs.retry.1s", "p.jobs.status"
T0 = 1_700_000_000_000


def event(
    delivery: int = 0, *, waiting: bool = False, offset: int = 0, job_id: str = ID, **changes: Any
) -> JobEvent:
    return JobEvent(
        job_id=job_id,
        delivery=Delivery(job_type="t", delivery=delivery, **changes),
        priority=JobPriority.NORMAL,
        waiting=waiting,
        key=None,
        value=b"",
        timestamp_ms=T0 + delivery,
        place=(TIER if waiting else JOBS, 0, offset),
    )


def status(
    state: JobStatus, delivery: int = 0, *, at: int = T0, offset: int = 0, job_id: str = ID, **facts: Any
) -> StatusSeen:
    change = StatusChange(
        job_id=job_id,
        key=None,
        at=at,
        created_at=T0,
        state=state,
        type="t",
        priority=JobPriority.NORMAL,
        delivery=delivery,
        worker="w.0",
        **{"attempt": 1, "started_at": T0 + 5, **facts},
    )
    return StatusSeen(change, (STATUS, 0, offset))


def now(*sightings: Sighting) -> JobStatus:
    return status_now(fold(sightings)[ID])


def info(*sightings: Sighting) -> Any:
    return job_info(ID, fold(sightings)[ID])


def test_a_record_on_a_job_topic_is_pending() -> None:
    assert now(event()) is JobStatus.PENDING


def test_a_record_on_a_retry_topic_is_scheduled_or_retrying() -> None:
    assert now(event(waiting=True)) is JobStatus.SCHEDULED
    assert now(event(1, waiting=True, attempt=2)) is JobStatus.RETRYING


def test_a_status_is_newer_than_the_record_of_the_same_delivery() -> None:
    assert now(event(), status(JobStatus.RUNNING)) is JobStatus.RUNNING


def test_a_record_of_the_next_delivery_is_newer_than_a_status() -> None:
    assert now(event(), status(JobStatus.RETRYING), event(1, waiting=True, attempt=2)) is JobStatus.RETRYING
    assert now(status(JobStatus.RETRYING), event(2, attempt=2)) is JobStatus.PENDING


def test_a_snoozed_retry_is_scheduled_as_its_status_says() -> None:
    snoozed = event(3, waiting=True, attempt=2, error_type="ValueError")
    assert now(status(JobStatus.SCHEDULED, 2, attempt=2), snoozed) is JobStatus.SCHEDULED


def test_a_final_state_stays_though_a_second_worker_still_runs_it() -> None:
    late = status(JobStatus.RUNNING, at=T0 + 999, offset=9)
    assert now(status(JobStatus.SUCCEEDED, at=T0 + 10), late) is JobStatus.SUCCEEDED


def test_two_ends_of_the_same_moment_are_told_apart_by_their_place() -> None:
    """After a takeover two members may have written an end each: every reader must choose the same one."""
    one, other = status(JobStatus.FAILED, offset=1), status(JobStatus.SUCCEEDED, offset=2)
    assert now(one, other) is now(other, one) is JobStatus.SUCCEEDED


def test_a_new_life_is_newer_than_a_final_state() -> None:
    again = status(JobStatus.PENDING, 5, redrives=1)
    assert now(status(JobStatus.FAILED, 4), again) is JobStatus.PENDING
    assert now(again, event(5, redrives=1), status(JobStatus.FAILED, 4)) is JobStatus.PENDING


def test_a_tombstone_takes_away_what_stands_before_it() -> None:
    states = fold([status(JobStatus.SUCCEEDED, offset=3), Tombstone(ID, (STATUS, 0, 4))])
    assert states[ID].gone
    again = fold([Tombstone(ID, (STATUS, 0, 4)), status(JobStatus.SUCCEEDED, offset=5)])
    assert status_now(again[ID]) is JobStatus.SUCCEEDED


def test_the_last_failure_is_told_while_a_job_waits_for_its_retry() -> None:
    attempt = Attempt(1, "w.0", T0, T0 + 1, "ValueError", "no")
    waiting = event(
        1,
        waiting=True,
        attempt=2,
        error_type="ValueError",
        error_message="no",
        history=(attempt,),
        not_before_ms=T0 + 9_000,
    )
    told = info(event(), status(JobStatus.RETRYING, error_type="ValueError", error_message="no"), waiting)
    assert (told.status, told.attempt, told.delivery) == (JobStatus.RETRYING, 2, 1)
    assert (told.error, told.error_type) == ("no", "ValueError")
    assert told.attempts == (attempt,)
    assert told.not_before is not None
    assert told.finished_at is None


def test_a_new_life_has_not_finished_and_knows_no_error() -> None:
    told = info(
        status(JobStatus.FAILED, 4, error_type="E", error_message="old"),
        event(5, redrives=1),
        status(JobStatus.PENDING, 5, redrives=1, started_at=None),
    )
    assert told.status is JobStatus.PENDING
    assert (told.finished_at, told.started_at, told.error) == (None, None, None)
    assert told.redrives == 1


def test_a_succeeded_job_has_times_output_and_no_error() -> None:
    told = info(event(), status(JobStatus.SUCCEEDED, at=T0 + 20, output='{"n":1}', metrics={"bytes": 2.0}))
    assert told.output == {"n": 1}
    assert told.metrics == {"bytes": 2.0}
    assert told.to_json() == {
        "id": ID,
        "type": "t",
        "priority": "normal",
        "status": "succeeded",
        "attempt": 1,
        "key": None,
        "worker": "w.0",
        "created_at": "2023-11-14T22:13:20.000Z",
        "started_at": "2023-11-14T22:13:20.005Z",
        "finished_at": "2023-11-14T22:13:20.020Z",
        "error": None,
    }


def test_a_job_whose_record_was_trimmed_is_told_from_its_status() -> None:
    told = info(status(JobStatus.SUCCEEDED))
    assert told.fields is None
    assert told.type == "t"


def test_fields_that_cannot_be_decoded_are_none_and_nothing_breaks() -> None:
    def broken(value: bytes) -> dict[str, Any]:
        raise BadRecord("no")

    assert job_info(ID, fold([event()])[ID], broken).fields is None


def test_whatever_a_field_holds_becomes_json() -> None:
    import json
    import uuid
    from datetime import UTC, datetime
    from decimal import Decimal

    fields = {
        "a": b"\x00\xff",
        "b": datetime(2024, 1, 1, tzinfo=UTC),
        "c": Decimal("1.5"),
        "d": [uuid.UUID(int=1)],
    }
    assert json.loads(json.dumps(jsonable(fields))) == {
        "a": "00ff",
        "b": "2024-01-01T00:00:00.000Z",
        "c": "1.5",
        "d": ["00000000-0000-0000-0000-000000000001"],
    }


def test_a_job_filter_matches_all_its_fields() -> None:
    state = JobState()
    state.see(event())
    assert matches(JobFilter(), state)
    assert matches(JobFilter(JobStatus.PENDING, "t", JobPriority.NORMAL), state)
    for other in (
        JobFilter(status=JobStatus.RUNNING),
        JobFilter(job_type="u"),
        JobFilter(priority=JobPriority.LOW),
        JobFilter(key="k"),
    ):
        assert not matches(other, state)
    by_name: Any = {"status": "pending", "priority": "normal"}
    assert matches(JobFilter(**by_name), state)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("limit", -1), ("limit", "10"), ("limit", True), ("status", "open"), ("priority", 3)],
)
def test_a_filter_that_could_match_nothing_is_refused_by_name(name: str, wrong: Any) -> None:
    options: Any = {name: wrong}
    with pytest.raises(ValueError, match=f"{name} is {wrong!r}"):
        JobFilter(**options)


IDS = st.sampled_from([ID, ID[:-1] + "2"])
EVENTS = st.builds(
    event,
    st.integers(0, 2),
    waiting=st.booleans(),
    offset=st.integers(0, 50),
    job_id=IDS,
    attempt=st.integers(1, 3),
    redrives=st.integers(0, 1),
)
STATUSES = st.builds(
    status,
    st.sampled_from(JobStatus),
    st.integers(0, 2),
    # Few values: what decides between equals has to be met.
    at=st.integers(T0, T0 + 1),
    offset=st.integers(0, 50),
    job_id=IDS,
    redrives=st.integers(0, 1),
    attempt=st.integers(1, 3),
)
TOMBSTONES = st.builds(lambda job_id, offset: Tombstone(job_id, (STATUS, 0, offset)), IDS, st.integers(0, 50))


def place_of(sighting: Sighting) -> Any:
    return sighting.place


@st.composite
def shuffled(draw: Any) -> tuple[list[Sighting], list[Sighting]]:
    # One place holds one record.
    sightings = draw(st.lists(EVENTS | STATUSES | TOMBSTONES, max_size=12, unique_by=place_of))
    return sightings, draw(st.permutations(sightings))


@given(shuffled())
def test_any_interleaving_of_topics_tells_the_same(orders: tuple[list[Sighting], list[Sighting]]) -> None:
    """Topics have no order between them: whatever arrives first, and even twice, the answer is one."""
    one, other = orders
    first, second = fold(one), fold([*other, *other])
    assert first.keys() == second.keys()
    for job_id, state in first.items():
        assert state.gone == second[job_id].gone
        if not state.gone:
            assert job_info(job_id, state) == job_info(job_id, second[job_id])


@pytest.mark.parametrize("levels", [1, 99, 150, 900, 100_000])
def test_an_output_of_many_levels_is_shown_as_text(levels: int) -> None:
    """One status whose output nobody could read again ended every `jobs list`."""
    output = "[" * levels + "]" * levels
    told = info(event(), status(JobStatus.SUCCEEDED, output=output))
    assert isinstance(told.output, str) == (levels > 99)
    assert output in json.dumps(told.to_full_json())
    told = info(event(), status(JobStatus.SUCCEEDED, output="[" * levels))
    assert told.output == "[" * levels
