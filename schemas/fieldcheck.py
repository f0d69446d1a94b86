"""Checks for values that fastavro would take and change, or write and not read again.

A text as a list of letters, 3.7 as 3, True as 1, a time without a zone as one of this machine's.

In:  the Avro type of a field. Out: a function that says whether a value may go there, or None where
fastavro is strict enough itself (it is inside unions, and about text and bytes in lists and maps).
"""

from __future__ import annotations

import datetime as dt
import struct
import uuid
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any, Final

Check = Callable[[Any], bool]

#: Durations travel as seconds in a double, where the longest ones are rounded up to what no ``timedelta`` holds.
_LEAST_S: Final = dt.timedelta.min.total_seconds()
_OVER_S: Final = dt.timedelta.max.total_seconds()


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_int32(value: Any) -> bool:
    return _is_int(value) and -(2**31) <= value < 2**31


def _is_int64(value: Any) -> bool:
    return _is_int(value) and -(2**63) <= value < 2**63


def _is_double(value: Any) -> bool:
    if isinstance(value, float):
        return True
    try:
        return _is_int(value) and float(value) == value
    except OverflowError:
        return False


def _is_float32(value: Any) -> bool:
    if not _is_double(value):
        return False
    try:
        held = struct.unpack("<f", struct.pack("<f", value))[0]
    except OverflowError:  # fastavro would make it infinite
        return False
    return isinstance(value, float) or bool(held == value)


def _is_seconds(value: Any) -> bool:
    return _is_double(value) and _LEAST_S <= value < _OVER_S


def _is_moment(value: Any) -> bool:
    return (
        isinstance(value, dt.datetime)
        and value.tzinfo is not None
        and (dt.MINYEAR < value.year < dt.MAXYEAR or _is_in_utc(value))
    )


def _is_in_utc(value: dt.datetime) -> bool:
    try:
        value.astimezone(dt.UTC)
    except OverflowError:
        return False
    return True


def _is_local(value: Any) -> bool:
    return isinstance(value, dt.datetime) and value.tzinfo is None


def _is_time(value: Any) -> bool:
    return isinstance(value, dt.time) and value.tzinfo is None


def _is_date(value: Any) -> bool:
    return isinstance(value, dt.date) and not isinstance(value, dt.datetime)


_LENIENT: Final[dict[str, Check]] = {
    "boolean": lambda value: isinstance(value, bool),
    "int": _is_int32,
    "long": _is_int64,
    "float": _is_float32,
    "double": _is_double,
}
#: What a whole number may be too long for, also inside unions.
_ROUNDED: Final = frozenset({"float", "double"})
_STRICT: Final[dict[str, Check]] = {
    "null": lambda value: value is None,
    "string": lambda value: isinstance(value, str),
    "bytes": lambda value: isinstance(value, bytes | bytearray),
}
_LOGICAL: Final[dict[str, Check]] = {
    "timestamp-millis": _is_moment,
    "timestamp-micros": _is_moment,
    "local-timestamp-millis": _is_local,
    "local-timestamp-micros": _is_local,
    "date": _is_date,
    "time-millis": _is_time,
    "time-micros": _is_time,
    "dataclasses-avroschema-timedelta": _is_seconds,
    "uuid": lambda value: isinstance(value, uuid.UUID),
    "decimal": lambda value: isinstance(value, Decimal),
}


def check_for(schema: Any, named: dict[str, Check | None]) -> Check | None:
    """The check of a whole field. ``named`` collects the records that the schema defines, for later uses."""
    if isinstance(schema, str) and schema in _STRICT:
        return _STRICT[schema]
    return _lenient(schema, named)


def _lenient(schema: Any, named: dict[str, Check | None]) -> Check | None:  # noqa: PLR0911 - one for each type
    match schema:
        case list():
            return _one_of(schema, named)
        case str():
            return _LENIENT.get(schema) or named.get(schema)
        case {"logicalType": str(name)} if name in _LOGICAL:
            return _LOGICAL[name]
        case {"logicalType": _, "type": plain}:
            return _lenient(plain, named)
        case {"type": "array", "items": items}:
            return _each(list | tuple, _lenient(items, named), values=False)
        case {"type": "map", "values": values}:
            return _each(dict, _lenient(values, named), values=True)
        case {"type": "record", "name": name, "fields": fields}:
            checks = [(field["name"], _lenient(field["type"], named)) for field in fields]
            named[name] = _record([(field, check) for field, check in checks if check is not None])
            return named[name]
        case {"type": "enum", "name": name}:
            named[name] = _STRICT["string"]  # the library has made it one; fastavro knows the symbols
            return named[name]
        case {"type": dict() | list() | str() as inner} if inner != "fixed":
            return _lenient(inner, named)
        case _:
            return None


def _one_of(branches: list[Any], named: dict[str, Check | None]) -> Check | None:
    if all(isinstance(branch, str) and branch not in named and branch not in _ROUNDED for branch in branches):
        return None  # between plain types fastavro chooses by what the value is
    checks = [check_for(branch, named) for branch in branches if branch != "null"]
    if len(checks) == 1 < len(branches):
        only = checks[0]
        return None if only is None else lambda value: value is None or only(value)
    if len(checks) < len(branches):
        checks.insert(0, _STRICT["null"])
    return lambda value: any(check is None or check(value) for check in checks)


def _each(container: Any, item: Check | None, *, values: bool) -> Check:
    if item is None:
        return lambda value: isinstance(value, container)
    if values:
        return lambda value: isinstance(value, container) and all(map(item, value.values()))
    return lambda value: isinstance(value, container) and all(map(item, value))


def _record(checks: list[tuple[str, Check]]) -> Check:
    return lambda value: (
        isinstance(value, dict) and all(name in value and check(value[name]) for name, check in checks)
    )


_MOMENTS: Final = frozenset({"timestamp-millis", "timestamp-micros"})
_LOCAL: Final = frozenset({"local-timestamp-millis", "local-timestamp-micros"})
_TIMES: Final = frozenset({"time-millis", "time-micros"})
#: What is wrong with a value of the right type, and what to do about it, by the types of Avro that it may be meant for.
#: The first that fits is said.
_REMEDIES: Final[tuple[tuple[frozenset[str], Check, str], ...]] = (
    (
        _MOMENTS,
        lambda value: isinstance(value, dt.datetime) and value.tzinfo is None,
        "give it a time zone: datetime.now(UTC)",
    ),
    (
        _MOMENTS,
        lambda value: isinstance(value, dt.datetime) and not _is_moment(value),
        "in UTC it is outside the years 1 to 9999; use a time within them",
    ),
    (
        _LOCAL,
        lambda value: isinstance(value, dt.datetime) and not _is_local(value),
        "the field keeps no time zone: use value.replace(tzinfo=None)",
    ),
    (
        _TIMES,
        lambda value: isinstance(value, dt.time) and not _is_time(value),
        "a time of day keeps no time zone: use value.replace(tzinfo=None), or a datetime",
    ),
    (
        frozenset({"float"}),
        lambda value: (_is_int(value) or isinstance(value, float)) and not _is_float32(value),
        "32 bits of a float do not hold it; declare the field as float, or as int",
    ),
    (
        frozenset({"double"}),
        lambda value: _is_int(value) and not _is_double(value),
        "a float does not hold this whole number; declare the field as int, or round it: float(value)",
    ),
    (
        frozenset({"dataclasses-avroschema-timedelta"}),
        lambda value: isinstance(value, int | float) and not _is_seconds(value),
        "as seconds in a float it is longer than a timedelta can be; use a shorter one",
    ),
)


def remedy(schema: Any, value: Any, record: Any) -> str:
    """What to do about a value that a field's check has refused; "" where its type alone says it.

    ``record``: the whole schema, which may define the types that the field's names.
    """
    named = {defined["name"]: defined for defined in _records_in(record)}
    return next(
        (
            said
            for kind, item in _leaves(schema, value, named)
            for kinds, is_wrong, said in _REMEDIES
            if kind in kinds and is_wrong(item)
        ),
        "",
    )


def _records_in(schema: Any) -> Iterator[dict[str, Any]]:
    match schema:
        case list():
            for item in schema:
                yield from _records_in(item)
        case dict():
            if schema.get("type") == "record":
                yield schema
            yield from _records_in([item for name, item in schema.items() if name != "default"])


def _leaves(schema: Any, value: Any, named: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The simple values in one, with the Avro types that they may be meant for."""
    match schema, value:
        case list(), _:
            for branch in schema:
                yield from _leaves(branch, value, named)
        case str(), _ if schema in named:
            yield from _leaves(named[schema], value, named)
        case str(), _:
            yield schema, value
        case {"logicalType": str(name)}, _:
            yield name, value
        case {"type": "array", "items": items}, list() | tuple():
            for item in value:
                yield from _leaves(items, item, named)
        case {"type": "map", "values": values}, dict():
            for item in value.values():
                yield from _leaves(values, item, named)
        case {"type": "record", "fields": fields}, dict():
            for field in fields:
                yield from _leaves(field["type"], value.get(field["name"]), named)
        case {"type": dict() | list() as inner}, _:
            yield from _leaves(inner, value, named)
