"""What a handler may return, and what becomes of a return value that cannot be used."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from schemas.errors import PermanentError
from workers.committing.router import as_result
from workers.results import Failed, JobResult, Skipped, Snooze, Success, failed_by

pytestmark = pytest.mark.job_processing

NOT_TEXT: Any = ValueError("an exception object")
NOT_A_DELAY: Any = 5
LOOP: dict[str, Any] = {}
LOOP["itself"] = LOOP


@pytest.mark.parametrize(
    "value",
    [
        Success({("a", "tuple"): 1}),  # type: ignore[dict-item]
        {("a", "tuple"): 1},
        Success(LOOP),
        {"share": float("nan")},
        Success({"shares": [0.5, float("inf")]}),
        Success({"deep": {"low": (float("-inf"),)}}),
        Success({float("nan"): 1}),  # type: ignore[dict-item]
        Success({"long": "x" * 100_000, "share": float("nan")}),
        Failed(NOT_TEXT),
        Failed("reason", error_type=NOT_TEXT),
        Skipped(NOT_TEXT),
        Snooze(NOT_A_DELAY),
        Snooze(timedelta(seconds=1), NOT_TEXT),
        object,
        7,
    ],
    ids=lambda value: repr(value)[:60],
)
def test_a_result_that_cannot_be_written_fails_its_own_job_for_good(value: object) -> None:
    """Raised later, while the outcome is made, it would end the worker."""
    result = as_result(value)
    assert isinstance(result, Failed)
    assert (result.error_type, result.retryable) == ("BadResult", False)


@pytest.mark.parametrize(
    "result", [Success(), Success({"n": 1}), Failed("no"), Skipped("done"), Snooze(timedelta(seconds=1))]
)
def test_a_good_result_is_taken_as_it_is(result: JobResult) -> None:
    assert as_result(result) is result


def test_nothing_and_a_mapping_are_successes() -> None:
    assert as_result(None) == Success()
    assert as_result({"n": 1}) == Success({"n": 1})


def test_a_result_without_details_may_be_returned_by_its_name() -> None:
    assert as_result(JobResult.Success) == Success()
    assert as_result(JobResult.Skipped) == Skipped()
    no_reason = as_result(JobResult.Failed)
    assert isinstance(no_reason, Failed)
    assert no_reason.error_type == "BadResult"


@pytest.mark.parametrize(
    ("error", "name", "reason", "retryable"),
    [
        (ValueError("bad"), "ValueError", "bad", True),
        (PermanentError("never"), "PermanentError", "never", False),
        (ExceptionGroup("tasks", [ValueError("bad")]), "ValueError", "bad", True),
        (ExceptionGroup("tasks", [PermanentError("never")]), "PermanentError", "never", False),
        (
            ExceptionGroup("tasks", [ValueError("bad"), ExceptionGroup("more", [PermanentError("never"), KeyError("k")])]),
            "ExceptionGroup",
            "ValueError: bad; PermanentError: never; KeyError: 'k'",
            False,
        ),
    ],
)  # fmt: skip
def test_a_failure_names_what_went_wrong_in_a_group_and_not_the_group(
    error: Exception, name: str, reason: str, *, retryable: bool
) -> None:
    """``unhandled errors in a TaskGroup (1 sub-exception)`` tells nobody anything, and all dead letters say the same."""
    failure = failed_by(error)
    assert (failure.error_type, failure.reason, failure.retryable) == (name, reason, retryable)
    assert type(error).__name__ in failure.stacktrace


def test_a_group_of_very_many_errors_costs_no_more_than_some() -> None:
    failure = failed_by(ExceptionGroup("tasks", [ValueError(str(number)) for number in range(50_000)]))
    assert failure.reason.count("ValueError") == 100
