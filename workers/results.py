"""What a handler says about its run. Values, not exceptions: every branch is visible where it is handled."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from typing import Any, ClassVar, Final

from schemas.errors import PermanentError, reason_of

#: Of a group's errors so many are looked at. A reason has room for 1 KiB.
_MOST_INSIDE: Final = 100


class JobResult:
    """Base of the four results, which are also reachable as ``JobResult.Success(...)`` and so on."""

    __slots__ = ()

    Success: ClassVar[type[Success]]
    Failed: ClassVar[type[Failed]]
    Skipped: ClassVar[type[Skipped]]
    Snooze: ClassVar[type[Snooze]]


@dataclass(frozen=True, slots=True)
class Success(JobResult):
    """The work is done.

    Attributes:
        output: kept with the job's final status as JSON, at most 16 KiB. JSON has neither NaN nor infinity: the
            run fails with ``BadResult``.
    """

    output: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Failed(JobResult):
    """The run failed.

    Attributes:
        reason: for people; 1 KiB of it is kept.
        retryable: False dead-letters at once, since no later run could succeed.
        error_type: a short name to group and filter by.
        stacktrace: 8 KiB of it are kept with the dead letter.
    """

    reason: str
    retryable: bool = True
    error_type: str = "Failed"
    stacktrace: str = ""


@dataclass(frozen=True, slots=True)
class Skipped(JobResult):
    """There was nothing to do; final, and not a failure."""

    reason: str = ""


@dataclass(frozen=True, slots=True)
class Snooze(JobResult):
    """Not now: run it again after ``delay``. Uses up no attempt."""

    delay: timedelta
    reason: str = ""


def failed_by(error: BaseException, *, retryable: bool | None = None) -> Failed:
    """The failure that an exception stands for. What it says of itself is the user's code, and may raise as well.

    Of a group (``asyncio.TaskGroup`` raises them) its errors are named, not that there is a group: a single one stands for it.

    Args:
        error: what a handler raised.
        retryable: if not given, it is so unless this is a ``PermanentError``, or one is among a group's errors.
    """
    inside = list(islice(_errors_in(error), _MOST_INSIDE))
    if retryable is None:
        retryable = not any(isinstance(one, PermanentError) for one in inside)
    if len(inside) == 1:
        (one,) = inside
        name, reason = type(one).__name__, reason_of(one)
    else:
        name = type(error).__name__
        reason = "; ".join(f"{type(one).__name__}: {reason_of(one)}" for one in inside)
    try:
        trace = "".join(traceback.format_exception(error))
    except Exception as broken:  # noqa: BLE001 - groups that are nested too deep, for one
        trace = f"{name}, whose stack trace cannot be written: {type(broken).__name__}"
    return Failed(reason, retryable, name, trace)


def _errors_in(error: BaseException) -> Iterator[BaseException]:
    """Itself; those of a group, whatever is nested, in their order. Without recursion, which the depth could exhaust."""
    waiting = [error]
    while waiting:
        one = waiting.pop()
        if isinstance(one, BaseExceptionGroup):
            waiting.extend(reversed(one.exceptions))
        else:
            yield one


JobResult.Success = Success
JobResult.Failed = Failed
JobResult.Skipped = Skipped
JobResult.Snooze = Snooze
