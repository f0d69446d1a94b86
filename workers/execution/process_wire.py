"""What a worker and its handler processes tell each other, in words that JSON has.

In:  contexts, results, options of child jobs, refusals. Out: headers of frames, and all of it back. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from schemas.codec import Codec
from schemas.errors import InvalidJob, JobRefused, JobTypeError, PayloadTooLarge, UnknownJobType
from schemas.headers import MAX_MESSAGE_BYTES, MAX_NAME_BYTES, MAX_STACKTRACE_BYTES, clip, clip_trace
from schemas.records import MAX_OUTPUT_BYTES
from schemas.topics import JobPriority
from workers.context import WorkerContext
from workers.execution import frames
from workers.results import Failed, JobResult, Skipped, Snooze, Success

#: Child jobs travel in the single-object frame: its fingerprint shows when two processes know different fields.
CODEC: Final = Codec()

_FACTS: Final = (
    "job_id",
    "job_type",
    "attempt",
    "key",
    "worker_id",
    "fence",
    "created_at_ms",
    "redrives",
    "traceparent",
)
_MICROSECOND: Final = timedelta(microseconds=1)
#: The event loop reads results: none may hold it up.
_MAX_RESULT_BYTES: Final = 1024 * 1024
_ERRORS: Final[Mapping[str, type[Exception]]] = {
    error.__name__: error for error in (InvalidJob, JobTypeError, TypeError)
}


def facts(context: WorkerContext) -> frames.Header:
    """What a handler may know of its run."""
    return {"priority": context.priority.value, **{name: getattr(context, name) for name in _FACTS}}


def arguments(said: frames.Header) -> dict[str, Any]:
    """The same, as arguments of ``WorkerContext``."""
    return {**said, "priority": JobPriority(said["priority"])}


def result_frame(result: JobResult, news: Mapping[str, Any]) -> bytes:
    """The last frame of a run. A result that cannot be written is a failure that says so."""
    try:
        frame = _pack(result, news)
        if len(frame) > _MAX_RESULT_BYTES and isinstance(result, Success):
            text = json.dumps(result.output, separators=(",", ":"), ensure_ascii=False, default=str)
            frame = _pack(Success({"truncated": clip(text, MAX_OUTPUT_BYTES // 2)}), news)
    except Exception as error:  # noqa: BLE001 - __str__ of the user's values: it may raise anything
        reason = f"the handler's {type(result).__name__} cannot be written: {type(error).__name__}: {error}"
        failed = Failed(reason, retryable=False, error_type="BadResult")
        try:
            frame = _pack(failed, news)
        except Exception:  # noqa: BLE001 - it is the news that cannot be written: a number of thousands of digits, say
            frame = _pack(failed, {})
    return frame


def result_of(said: frames.Header) -> JobResult:
    """The result in a last frame."""
    match said["kind"]:
        case "success":
            return Success(said["output"])
        case "skipped":
            return Skipped(said["reason"])
        case "snooze":
            return Snooze(timedelta(microseconds=said["delay_us"]), said["reason"])
        case _:
            return Failed(said["reason"], said["retryable"], said["error_type"], said["stacktrace"])


def options_text(options: Mapping[str, Any]) -> dict[str, Any]:
    """How a child job is to be scheduled.

    Raises:
        InvalidJob: an option has a value that none can have.
    """
    return {name: _text(name, value) for name, value in options.items()}


def options_of(said: Mapping[str, Any]) -> dict[str, Any]:
    """The same, as arguments of ``WorkerContext.schedule``."""
    return {name: _value(value) for name, value in said.items()}


def refusal(error: Exception) -> frames.Header:
    """Why a child job was refused."""
    match error:
        case PayloadTooLarge():
            return {"refused": "PayloadTooLarge", "arguments": [error.size, error.limit]}
        case UnknownJobType():
            return {"refused": "UnknownJobType", "arguments": [error.job_type, error.known]}
        case JobRefused():
            return {"refused": "InvalidJob", "arguments": [str(error)]}
        case JobTypeError() | TypeError():
            return {"refused": type(error).__name__, "arguments": [str(error)]}
        case _:
            return {"refused": "other", "arguments": [f"{type(error).__name__}: {error}"]}


def refusal_of(said: frames.Header) -> Exception:
    """The same, to raise where the job was scheduled."""
    match said:
        case {"refused": "PayloadTooLarge", "arguments": [int(size), int(limit)]}:
            return PayloadTooLarge(size, limit)
        case {"refused": "UnknownJobType", "arguments": [str(name), list(known)]}:
            return UnknownJobType(name, known)
        case {"refused": str(name), "arguments": [str(text)]}:
            return _ERRORS.get(name, RuntimeError)(text)
        case _:
            raise ValueError(f"not a refusal: {said!r:.200}")


def _pack(result: JobResult, news: Mapping[str, Any]) -> bytes:
    return frames.pack({"say": "result", **news, **_said(result)})


def _said(result: JobResult) -> frames.Header:
    # Texts are cut here as they are when they are published: one of gigabytes must not come this far.
    match result:
        case Success(output):
            return {"kind": "success", "output": None if output is None else dict(output)}
        case Skipped(reason):
            return {"kind": "skipped", "reason": clip(str(reason), MAX_MESSAGE_BYTES)}
        case Snooze(delay, reason):
            said = clip(str(reason), MAX_MESSAGE_BYTES)
            return {"kind": "snooze", "delay_us": delay // _MICROSECOND, "reason": said}
        case Failed():
            return {
                "kind": "failed",
                "reason": clip(str(result.reason), MAX_MESSAGE_BYTES),
                "retryable": bool(result.retryable),
                "error_type": clip(str(result.error_type), MAX_NAME_BYTES),
                "stacktrace": clip_trace(str(result.stacktrace), MAX_STACKTRACE_BYTES),
            }
        case _:
            raise TypeError(f"{type(result).__qualname__} is none of the four results")


def _text(name: str, value: Any) -> Any:
    match value:
        case JobPriority():
            return {"priority": value.value}
        case timedelta():
            return {"us": value // _MICROSECOND}
        case datetime():
            return {"time": value.isoformat()}
        case None | bool() | int() | float() | str():
            return value
        case _:
            raise InvalidJob(f"{name} is {value!r:.80}; no job can be scheduled with that")


def _value(said: Any) -> Any:
    match said:
        case {"priority": str(name)}:
            return JobPriority(name)
        case {"us": int(count)}:
            return timedelta(microseconds=count)
        case {"time": str(text)}:
            return datetime.fromisoformat(text)
        case _:
            return said
