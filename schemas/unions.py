"""Unions whose branches cannot be told apart on the wire: a value would come back as another, or not at all.

In:  the type of a field, as Avro and as Python see it. Out: the two branches in question, or None. Pure.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator
from itertools import combinations
from typing import Any, Final, NamedTuple

#: What a value of a type may be taken for. Two branches that share a word are one too many. Text and bytes share
#: one since a reader with another version of the schema takes either for the other; a list is taken for bytes
#: (and bytes for a list), and an empty map for an empty tuple.
_TAKEN_FOR: Final[dict[str, frozenset[str]]] = {
    "null": frozenset(),
    "boolean": frozenset({"truth"}),
    "int": frozenset({"number"}),
    "long": frozenset({"number"}),
    "float": frozenset({"number"}),
    "double": frozenset({"number"}),
    "string": frozenset({"text"}),
    "enum": frozenset({"text"}),
    "bytes": frozenset({"text", "bytes"}),
    "fixed": frozenset({"text", "bytes"}),
    "array": frozenset({"array", "bytes", "map"}),
    "map": frozenset({"map", "record"}),
    "record": frozenset({"record"}),
}
#: fastavro reads a text as a day.
_DATE: Final = frozenset({"number", "text"})
_PYTHON: Final[dict[str, str]] = {
    "null": "None",
    "boolean": "bool",
    "int": "Int32",
    "long": "int",
    "float": "Float32",
    "double": "float",
    "string": "str",
    "timestamp-millis": "datetime",
    "timestamp-micros": "datetime",
    "local-timestamp-millis": "datetime",
    "local-timestamp-micros": "datetime",
    "time-millis": "time",
    "time-micros": "time",
    "uuid": "UUID",
    "decimal": "Decimal",
    "dataclasses-avroschema-timedelta": "timedelta",
}
_SEQUENCES: Final = (list, tuple)


class Clash(NamedTuple):
    """Two branches of one union, and where it stands: the field, and those of nested records below it."""

    path: str
    one: str
    other: str


def clash_in(path: str, schema: Any, named: dict[str, Any]) -> Clash | None:
    """The first two branches that Avro cannot tell apart. ``named`` collects the types that the schema defines."""
    return next(_clashes(path, schema, named), None)


def _clashes(path: str, schema: Any, named: dict[str, Any]) -> Iterator[Clash]:
    match schema:
        case list():
            for branch in schema:
                yield from _clashes(path, branch, named)
            for one, other in combinations(schema, 2):
                if _taken_for(one, named) & _taken_for(other, named):
                    yield Clash(path, _spoken(one), _spoken(other))
        case {"type": "array", "items": inner} | {"type": "map", "values": inner}:
            yield from _clashes(path, inner, named)
        case {"type": "record", "name": name, "fields": fields}:
            named[name] = schema
            for field in fields:
                yield from _clashes(f"{path}.{field['name']}", field["type"], named)
        case {"type": "enum" | "fixed", "name": name}:
            named[name] = schema
        case {"type": dict() | list() as inner}:
            yield from _clashes(path, inner, named)


def _taken_for(schema: Any, named: dict[str, Any]) -> frozenset[str]:
    match schema:
        case {"logicalType": "date"}:
            return _DATE
        case {"type": inner}:
            return _taken_for(inner, named)
        case str() if schema in named:
            return _taken_for(named[schema], named)
        case str():
            return _TAKEN_FOR.get(schema, frozenset())
        case _:
            return frozenset()


def _spoken(schema: Any) -> str:  # noqa: PLR0911 - one for each kind of type
    """A type as it is written in Python."""
    match schema:
        case list():
            return " | ".join(map(_spoken, schema))
        case {"logicalType": str(name)}:
            return _PYTHON.get(name, name)
        case {"type": "array", "items": items}:
            return f"list[{_spoken(items)}]"
        case {"type": "map", "values": values}:
            return f"dict[str, {_spoken(values)}]"
        case {"type": "record" | "enum" | "fixed", "name": name}:
            return str(name)
        case {"type": inner}:
            return _spoken(inner)
        case _:
            return _PYTHON.get(schema, str(schema))


def sequences_in(path: str, hint: Any, inside: tuple[Any, ...] = ()) -> Clash | None:
    """A list and a tuple in one union: to Avro they are one type, so it is not seen in the schema."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        branches = typing.get_args(hint)
        pair = [branch for branch in branches if (typing.get_origin(branch) or branch) in _SEQUENCES]
        if len(pair) > 1:
            return Clash(path, _written(pair[0]), _written(pair[1]))
    nested = [(path, argument) for argument in typing.get_args(hint)]
    if isinstance(hint, type) and dataclasses.is_dataclass(hint) and hint not in inside:
        nested = [(f"{path}.{name}", kind) for name, kind in typing.get_type_hints(hint).items()]
        inside = (*inside, hint)
    found = (sequences_in(where, kind, inside) for where, kind in nested)
    return next((clash for clash in found if clash is not None), None)


def _written(hint: Any) -> str:
    return str(hint) if typing.get_origin(hint) else hint.__name__
