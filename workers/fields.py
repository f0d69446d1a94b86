"""Field values as people type them on a command line, turned into what a job's class wants.

In:  ``name=value`` and the class's annotations. Out: Python values, or an error that names the field.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import json
import re
import types
import typing
from collections.abc import Callable, Iterable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from schemas.errors import InvalidJob
from schemas.job import Job


def _moment(text: str) -> datetime:
    when = datetime.fromisoformat(text)
    if when.utcoffset() is None:
        raise ValueError("no time zone")
    return when


def _time_of_day(text: str) -> time:
    hour = time.fromisoformat(text)
    if hour.tzinfo is not None:
        raise ValueError("a time zone")
    return hour


_UNITS: Final = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_PARSERS: Final[dict[type, tuple[Callable[[str], Any], str]]] = {
    int: (int, "a whole number"),
    float: (float, "a number"),
    datetime: (_moment, "a time with a time zone, such as 2026-01-31T12:00:00+00:00"),
    date: (date.fromisoformat, "a day such as 2026-01-31"),
    time: (_time_of_day, "a time of day such as 12:00:00, without a time zone"),
    UUID: (UUID, "a UUID"),
    Decimal: (Decimal, "a decimal number"),
}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)?")


def duration(text: str) -> timedelta:
    """``500ms``, ``30s``, ``5m``, ``2h``, ``1d``; a bare number is seconds.

    Raises:
        InvalidJob: not a duration, or one that no clock holds.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise InvalidJob(f"{text!r} is not a duration; write 500ms, 30s, 5m, 2h or 1d")
    try:
        return timedelta(milliseconds=float(match[1]) * _UNITS[match[2] or "s"])
    except OverflowError:
        raise InvalidJob(f"{text!r} is too long for a duration") from None


def parse_fields(cls: type[Job], assignments: list[str]) -> dict[str, Any]:
    """Values for the fields of a job class.

    Raises:
        InvalidJob: an unknown field, one that is given twice, or a value that its type does not take.
    """
    hints = typing.get_type_hints(cls)
    known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for assignment in assignments:
        name, separator, text = assignment.partition("=")
        if not separator:
            raise InvalidJob(f"{assignment!r}: write FIELD=VALUE")
        if name not in known:
            raise no_such_field(cls, name)
        if name in values:
            is_list = typing.get_origin(hints[name]) in (list, tuple)
            hint = f"; a list is written {name}=A,B" if is_list else ""
            raise InvalidJob(f"{cls.job_type}.{name} is given twice{hint}")
        try:
            values[name] = _value(hints[name], text)
        except (ValueError, InvalidJob) as error:
            raise InvalidJob(f"{cls.job_type}.{name} is {text!r}: {error}") from error
    return values


def no_such_field(cls: type[Job], name: str) -> InvalidJob:
    """What to raise for a field that the class does not have."""
    known = [field.name for field in dataclasses.fields(typing.cast("Any", cls))]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(known) or 'none'}"
    return InvalidJob(f"{cls.job_type} has no field {name!r}; {hint}")


def _value(kind: Any, text: str) -> Any:  # noqa: PLR0911 - one line per kind
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _first_that_takes(arguments, text)
    if origin is typing.Literal:
        return _listed(arguments, text)
    if origin in (list, tuple):
        return _items(arguments[0] if arguments else str, text)
    if kind is bool:
        if text.lower() not in ("true", "false", "1", "0", "yes", "no"):
            raise ValueError("it takes true or false")
        return text.lower() in ("true", "1", "yes")
    if kind is str:
        return text
    if kind is bytes:
        return text.encode()
    if kind is timedelta:
        return duration(text)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return _member(kind, text)
    for parsed, (parse, what) in _PARSERS.items():
        if kind is parsed:
            return _parsed(parse, text, what)
    if kind is dict or origin is dict or dataclasses.is_dataclass(kind):
        return _parsed(_object, text, 'JSON such as {"name": "value"}')
    return _parsed(json.loads, text, "JSON")


def _items(kind: Any, text: str) -> list[Any]:
    """``A,B``, or JSON: an array of all, or one object."""
    if text.lstrip().startswith(("[", "{")):
        try:
            items = json.loads(text)
        except (ValueError, RecursionError):
            pass  # a text that begins like that
        else:
            items = items if isinstance(items, list) else [items]
            return [_item(kind, item) for item in items]
    return [_value(kind, part.strip()) for part in text.split(",") if part.strip()]


def _item(kind: Any, item: Any) -> Any:
    """One of a JSON list: a text is read like a field's, a number is no text."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _first_of(arguments, lambda kind: _item(kind, item))
    match item:
        case str():
            return _value(kind, item)
        case None:
            fits = kind is type(None) or (origin is typing.Literal and None in arguments)
        case bool():
            fits = kind is bool or origin is typing.Literal
        case int() | float():
            is_enum = isinstance(kind, type) and issubclass(kind, enum.Enum)
            fits = kind in (int, float, Decimal, timedelta) or origin is typing.Literal or is_enum
        case list():
            if kind is list or origin in (list, tuple):
                return [_item(arguments[0], inner) for inner in item] if arguments else item
            fits = False
        case _:
            if kind is dict or origin is dict or dataclasses.is_dataclass(kind):
                return item
            fits = False
    if not fits:
        raise ValueError(f"{json.dumps(item):.80} is none of its items; {_taken_by(kind)}")
    return None if item is None else _value(kind, json.dumps(item))


def _taken_by(kind: Any) -> str:
    if kind in (str, bytes):
        return 'an item is a text, such as "a"'
    if kind is bool:
        return "an item is true or false"
    what = _PARSERS[kind][1] if kind in _PARSERS else getattr(kind, "__name__", str(kind))
    return f"an item is {what}"


def _first_that_takes(kinds: tuple[Any, ...], text: str) -> Any:
    others = [kind for kind in kinds if kind is not type(None)]
    if text == "" and len(others) < len(kinds):
        return None
    return _first_of(others, lambda kind: _value(kind, text))


def _first_of(kinds: Iterable[Any], read: Callable[[Any], Any]) -> Any:
    """What the first of a union's types makes of it that takes it."""
    refusals: list[str] = []
    for kind in sorted(kinds, key=_rank):
        try:
            return read(kind)
        except (ValueError, InvalidJob) as error:
            refusals.append(str(error))
    raise ValueError(", or ".join(refusals))


def _rank(kind: Any) -> int:
    """Where in a union a type is tried: "1" is a number before it is a truth, and what nothing else takes is a text."""
    first, last = (int, float, bool), (str, bytes)
    return first.index(kind) if kind in first else len(first) + (kind in last)


def _listed(values: tuple[Any, ...], text: str) -> Any:
    written = {_as_typed(value): value for value in values}
    if text not in written:
        raise ValueError(f"it takes one of {', '.join(written)}")
    return written[text]


def _as_typed(value: Any) -> str:
    """A value of a Literal as people type it."""
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case bytes():
            return value.decode(errors="replace")
        case enum.Enum():
            return str(value.value)
        case _:
            return str(value)


def _object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError("no object")  # noqa: TRY004 - the text is wrong, not its type
    return value


def _parsed(parse: Callable[[str], Any], text: str, what: str) -> Any:
    try:
        return parse(text)
    except (ValueError, ArithmeticError, RecursionError) as error:  # a decimal's error is no ValueError
        raise ValueError(f"it takes {what}") from error


def _member(kind: type[enum.Enum], text: str) -> enum.Enum:
    for member in kind:
        if text in (str(member.value), member.name):
            return member
    raise ValueError(f"it takes one of {', '.join(str(member.value) for member in kind)}")
