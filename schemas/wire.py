"""One Avro schema, ready for use: parsed, fingerprinted, with and without logical types.

In:  an Avro schema as Python data. Out: bytes from records and records from bytes, without any frame.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from importlib.resources import files
from io import BytesIO
from typing import Any, Final, NamedTuple, cast

import fastavro
from fastavro.schema import fingerprint, to_parsing_canonical_form

from schemas.errors import BadRecord, BadSchema

Schema = dict[str, Any]
Record = dict[str, Any]

#: Of which a record may be made for each byte that it takes, with empty lists and texts: a megabyte is not to become tens of gigabytes.
_MOST_VALUES: Final = 16
_PRIMITIVES: Final = frozenset({"null", "boolean", "int", "long", "float", "double", "bytes", "string"})


class WireSchema:
    """A schema and what is derived from it once. Immutable; safe from any thread.

    ``primitive`` names the fields whose logical types are left undone when encoding and decoding (times
    stay milliseconds, ids stay text): the bytes are the same, and a worker saves about 3 µs for each.

    ``own_defaults`` names the fields whose defaults the reader knows better than the schema does: a record
    written before they existed comes back without them.

    Raises:
        BadSchema: not an Avro record, or one whose data could exhaust the process that reads it.
    """

    def __init__(
        self,
        schema: Schema,
        *,
        primitive: frozenset[str] = frozenset(),
        own_defaults: frozenset[str] = frozenset(),
    ) -> None:
        try:
            stripped = copy.deepcopy(schema)
            stripped.pop("__fastavro_parsed", None)  # fastavro would believe it
            for field in stripped["fields"]:
                if field["name"] in primitive:
                    field["type"] = _without_logical_types(field["type"])
            self._parsed = cast("Schema", fastavro.parse_schema(stripped))
            _least(self._parsed, {})
            canonical = to_parsing_canonical_form(schema)
            #: Name of each field to the names that a writer may have used for it.
            self._known_as = {
                field["name"]: {field["name"], *field.get("aliases", ())} for field in self._parsed["fields"]
            }
            self.full_name: str = self._parsed["name"]
            self.json = json.dumps(schema, separators=(",", ":"), ensure_ascii=False)
            #: CRC-64-AVRO of the parsing canonical form, 8 bytes little-endian, as in the single-object frame.
            self.fingerprint = bytes.fromhex(fingerprint(canonical, "CRC-64-AVRO"))
        except BadSchema:
            raise
        except Exception as error:  # it may come from anyone: KeyError, TypeError, RecursionError, …
            reason = f"{type(error).__name__}: {error}"[:300]
            raise BadSchema(f"not a usable Avro record schema: {reason}") from error
        self.schema = schema
        self._own_defaults = own_defaults

    def encode(self, record: Record) -> bytes:
        """The Avro body of a record.

        Raises:
            ValueError, TypeError, KeyError: fastavro's words for a value that does not fit.
        """
        out = BytesIO()
        fastavro.schemaless_writer(out, self._parsed, record)
        return out.getvalue()

    def decode(self, body: BytesIO, *, as_schema: WireSchema | None = None) -> Record:
        """The record in ``body``, written with this schema, seen through ``as_schema`` (default: this one).

        Raises:
            BadRecord: whatever is wrong with the bytes; they may come from anyone.
        """
        reader = None if as_schema is None or as_schema is self else as_schema
        try:
            wanted = None if reader is None else reader._parsed
            record = fastavro.schemaless_reader(body, self._parsed, wanted)
            left_over = body.read(1)
        except Exception as error:  # hostile bytes make fastavro raise nearly anything
            raise BadRecord(f"not a {self.full_name}: {type(error).__name__}: {error}"[:500]) from error
        if left_over:
            raise BadRecord(f"not a {self.full_name}: it ends before the value does")
        if reader is not None:
            self._settle_defaults(cast("Record", record), reader)
        return cast("Record", record)

    def _settle_defaults(self, record: Record, reader: WireSchema) -> None:
        # fastavro hands out one and the same list or map for every record, and a date as a number.
        for name, known_as in reader._known_as.items():
            if known_as.isdisjoint(self._known_as):
                if name in reader._own_defaults:
                    del record[name]
                else:
                    record[name] = copy.deepcopy(record[name])

    def __repr__(self) -> str:
        return f"WireSchema({self.full_name}, {self.fingerprint.hex()})"


def load_avsc(name: str) -> Schema:
    """One of the schema files in ``schemas/avro``, such as ``"status_change"``."""
    text = files("schemas").joinpath("avro", f"{name}.avsc").read_text("utf-8")
    return cast("Schema", json.loads(text))


def _without_logical_types(schema: Any) -> Any:  # noqa: PLR0911 - one for each shape of a type
    match schema:
        case list():
            return [_without_logical_types(branch) for branch in schema]
        case {"logicalType": _, "type": str(plain)} if plain in _PRIMITIVES:
            return plain
        case {"logicalType": _}:
            return {name: value for name, value in schema.items() if name != "logicalType"}
        case {"items": items}:
            return {**schema, "items": _without_logical_types(items)}
        case {"values": values}:
            return {**schema, "values": _without_logical_types(values)}
        case {"fields": fields}:
            return {**schema, "fields": [{**f, "type": _without_logical_types(f["type"])} for f in fields]}
        case {"type": dict() | list() as inner}:
            return {**schema, "type": _without_logical_types(inner)}
        case _:
            return schema


class _Least(NamedTuple):
    """A value of a type in which every list, map and text is empty: how many bytes it takes, and how many values it is made of."""

    bytes: int
    values: int


def _least(schema: Any, defined: dict[str, _Least]) -> _Least:  # noqa: PLR0911 - one for each type
    """Refuses schemas that let a short value take the process down.

    An array of items without bytes may claim 2**62 of them, and fastavro would make them all; records of records of nulls are
    as many values as one likes, of no bytes at all; a type that contains itself can be nested until the C stack ends, which no
    ``except`` catches.
    """
    match schema:
        case str() if schema in _PRIMITIVES:
            return _Least(0 if schema == "null" else 1, 1)
        case str():
            if schema not in defined:
                raise BadSchema(f"{schema} contains itself; use a list of flat records, or text")
            return defined[schema]
        case list():
            # The one that is worst for the rule below, which is the same as the worst for every record around it: they add up.
            worst = max(
                (_least(branch, defined) for branch in schema),
                key=lambda one: one.values - _MOST_VALUES * one.bytes,
                default=_Least(0, 1),
            )
            return _Least(1 + worst.bytes, worst.values)
        case {"type": "array", "items": items}:
            if not _least(items, defined).bytes:
                raise BadSchema("an array of items that take no bytes may claim any length")
            return _Least(1, 1)
        case {"type": "map", "values": values}:
            _least(values, defined)
            return _Least(1, 1)
        case {"type": "record" | "error", "name": name, "fields": fields}:
            inside = [_least(field["type"], defined) for field in fields]
            whole = _Least(sum(one.bytes for one in inside), 1 + sum(one.values for one in inside))
            if whole.values > _MOST_VALUES * max(whole.bytes, 1):
                raise BadSchema(f"{name} makes {whole.values:,} values of {whole.bytes:,} bytes")
            defined[name] = whole
            return whole
        case {"type": "enum", "name": name}:
            defined[name] = _Least(1, 1)
            return defined[name]
        case {"type": "fixed", "name": name, "size": size}:
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise BadSchema(f"{name} is fixed at {size!r:.40} bytes; at least one is needed")
            defined[name] = _Least(size, 1)
            return defined[name]
        case Mapping():
            return _least(schema["type"], defined)
        case _:
            raise BadSchema(f"{schema!r:.100} is not an Avro type")
