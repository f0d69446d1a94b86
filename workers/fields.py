"""Field values as people type them on a command line, turned into what a job's class wants.

In:  ``name=value`` and the class's annotations. Out: Python values, or an error that names the field.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import re
import types
import typing
from datetime import datetime, timedelta
from typing import Any, Final

from schemas.errors import InvalidJob
from schemas.job import Job

_UNITS: Final = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)?")


def duration(text: str) -> timedelta:
    """``500ms``, ``30s``, ``5m``, ``2h``, ``1d``; a bare number is seconds.

    Raises:
        InvalidJob: not a duration.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise InvalidJob(f"{text!r} is not a duration; write 500ms, 30s, 5m, 2h or 1d")
    return timedelta(milliseconds=float(match[1]) * _UNITS[match[2] or "s"])


def parse_fields(cls: type[Job], assignments: list[str]) -> dict[str, Any]:
    """Values for the fields of a job class.

    Raises:
        InvalidJob: an unknown field, or a value that its type does not take.
    """
    hints = typing.get_type_hints(cls)
    known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for assignment in assignments:
        name, separator, text = assignment.partition("=")
        if not separator:
            raise InvalidJob(f"{assignment!r}: write FIELD=VALUE")
        if name not in known:
            raise InvalidJob(f"{cls.job_type} has no field {name!r}; it has {', '.join(known)}")
        try:
            values[name] = _value(hints[name], text)
        except ValueError as error:
            raise InvalidJob(f"{cls.job_type}.{name}: {text!r}: {error}") from error
    return values


def _value(kind: Any, text: str) -> Any:  # noqa: PLR0911 - one line per kind
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        others = [argument for argument in arguments if argument is not type(None)]
        if text == "" and len(others) < len(arguments):
            return None
        return _value(others[0], text)
    if origin in (list, tuple):
        item = arguments[0] if arguments else str
        return [_value(item, part.strip()) for part in text.split(",") if part.strip()]
    if kind is bool:
        if text.lower() not in ("true", "false", "1", "0", "yes", "no"):
            raise ValueError("true or false")
        return text.lower() in ("true", "1", "yes")
    if kind in (int, float, str):
        return kind(text)
    if kind is bytes:
        return text.encode()
    if kind is timedelta:
        return duration(text)
    if kind is datetime:
        return datetime.fromisoformat(text)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return kind(text)
    return json.loads(text)
