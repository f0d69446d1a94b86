"""Checks for values that fastavro would take and change: a text as a list of letters, 3.7 as 3, True as 1.

In:  the Avro type of a field. Out: a function that says whether a value may go there, or None where
fastavro is strict enough itself (it is inside unions, and about text and bytes in lists and maps).
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Final

Check = Callable[[Any], bool]


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_int32(value: Any) -> bool:
    return _is_int(value) and -(2**31) <= value < 2**31


def _is_int64(value: Any) -> bool:
    return _is_int(value) and -(2**63) <= value < 2**63


def _is_number(value: Any) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool)


def _is_date(value: Any) -> bool:
    return isinstance(value, dt.date) and not isinstance(value, dt.datetime)


_LENIENT: Final[dict[str, Check]] = {
    "boolean": lambda value: isinstance(value, bool),
    "int": _is_int32,
    "long": _is_int64,
    "float": _is_number,
    "double": _is_number,
}
_STRICT: Final[dict[str, Check]] = {
    "null": lambda value: value is None,
    "string": lambda value: isinstance(value, str),
    "bytes": lambda value: isinstance(value, bytes | bytearray),
}
_LOGICAL: Final[dict[str, Check]] = {
    "timestamp-millis": lambda value: isinstance(value, dt.datetime),
    "timestamp-micros": lambda value: isinstance(value, dt.datetime),
    "local-timestamp-millis": lambda value: isinstance(value, dt.datetime),
    "local-timestamp-micros": lambda value: isinstance(value, dt.datetime),
    "date": _is_date,
    "time-millis": lambda value: isinstance(value, dt.time),
    "time-micros": lambda value: isinstance(value, dt.time),
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
    if all(isinstance(branch, str) and branch not in named for branch in branches):
        return None  # between plain types fastavro chooses by what the value is
    checks = [check_for(branch, named) for branch in branches]
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
