"""A job class, compiled for the wire: its Avro schema, and the way between objects and records.

A job event is one flat record: the envelope's fields, the same for all types and in this order, then
the job's own. The id comes first, so it can be read from the bytes without decoding them.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
import re
import threading
import typing
from collections.abc import Iterator
from datetime import timedelta
from io import BytesIO
from typing import Any, Final

import fastavro

from schemas.backoff import Backoff
from schemas.errors import BadRecord, InvalidJob, JobTypeError, reason_of
from schemas.fieldcheck import Check, check_for, remedy
from schemas.job import Job, declared_job_types
from schemas.unions import clash_in, sequences_in
from schemas.wire import Record, Schema, WireSchema, load_avsc

NAMESPACE: Final = "rustfs.jobs"

ENVELOPE_FIELDS: Final[list[Schema]] = load_avsc("envelope")["fields"]
ENVELOPE_NAMES: Final = tuple(field["name"] for field in ENVELOPE_FIELDS)
_PRIMITIVE: Final = frozenset(ENVELOPE_NAMES)
#: Attributes of the class, not of a job: an annotation would make them fields that nobody reads.
_CLASS_ATTRIBUTES: Final = frozenset(typing.get_type_hints(Job))
_METHODS: Final = frozenset(name for name in vars(Job) if not name.startswith("_")) - _CLASS_ATTRIBUTES
#: What the schema library calls on the class that it makes of the fields: a field's default would stand in its place.
_LIBRARY_METHODS: Final = frozenset(
    {"parse_obj", "avro_schema_to_python", "generate_schema", "_generate_parser", "_reset_parser"}
)
_AVRO_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

_compiled: dict[type[Job], JobType] = {}
# The library keeps a schema's state on the user's own nested classes while it derives one.
_compiling = threading.RLock()


def record_name(job_type: str) -> str:
    """Avro record name of a job type: ``thumb_nail.v2`` is ``ThumbNailV2``."""
    return "".join(word.capitalize() for word in re.split(r"[_.-]", job_type))


class JobType:
    """What the codec needs to know about one job class. Immutable; safe from any thread."""

    def __init__(self, cls: type[Job]) -> None:
        fields = _fields_of(cls)
        _check_settings(cls)
        self.cls = cls
        self.name = cls.job_type
        self.own_names = tuple(field.name for field in fields)
        _check_identity(self.cls, self.name, self.own_names)
        self._model: Any = None
        if cls.schema_file:
            schema = load_avsc(cls.schema_file)
        else:
            schema, self._model = _derive(cls)
        own = schema["fields"][len(ENVELOPE_FIELDS) :]
        if tuple(field["name"] for field in own) != self.own_names:
            raise JobTypeError(
                f"{cls.__qualname__}: its fields are {', '.join(self.own_names) or 'none'}, "
                f"but {cls.schema_file}.avsc has {', '.join(field['name'] for field in own) or 'none'}"
            )
        _check_type_names(cls, own)
        _check_unions(cls, own)
        # Enums, nested records, durations and tuples need the library's converters; the rest is itself.
        self.plain = not (
            any(_needs_conversion(field["type"]) for field in own)
            or any(_has_tuple(hint) for hint in typing.get_type_hints(cls).values())
        )
        if not self.plain and self._model is None:
            _, self._model = _derive(cls)
        named: dict[str, Check | None] = {}
        self._checks = tuple(
            (field["name"], check) for field in own if (check := check_for(field["type"], named)) is not None
        )
        have_defaults = frozenset(
            field.name
            for field in fields
            if field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        )
        try:
            self.wire = WireSchema(schema, primitive=_PRIMITIVE, own_defaults=have_defaults)
        except Exception as error:
            raise JobTypeError(f"{cls.__qualname__}: {error}") from error

    def to_record(self, job: Job, envelope: Record) -> Record:
        """The flat record of a job: ``envelope``, with the job's own fields put into it.

        Raises:
            InvalidJob: a field is missing or has a value of another type.
        """
        record = envelope
        name = ""
        try:
            if self.plain:
                for name in self.own_names:
                    record[name] = getattr(job, name)
            else:
                for name in self.own_names:
                    record[name] = _to_avro(getattr(job, name))
        except AttributeError as error:
            raise InvalidJob(f"{self.name}.{name}: the {type(job).__qualname__} does not have it") from error
        except RecursionError as error:
            raise InvalidJob(
                f"{self.name}.{name}: the value is nested too deep or contains itself"
            ) from error
        for name, check in self._checks:
            if not check(record[name]):
                raise self._not_taken(name, record[name])
        return record

    def _not_taken(self, name: str, value: Any) -> InvalidJob:
        schema = self.wire.schema
        kind = next(field["type"] for field in schema["fields"] if field["name"] == name)
        what_to_do = remedy(kind, value, schema)
        return InvalidJob(
            f"{self.name}.{name}: {value!r:.100} is not what the field takes"
            + (f"; {what_to_do}" if what_to_do else "")
        )

    def refusal(self, record: Record, error: Exception) -> InvalidJob:
        """Why ``record`` could not be encoded, with the name of the field."""
        schema = self.wire.schema
        for count, field in enumerate(schema["fields"], 1):
            # Up to this field and no further: later ones may use a type that an earlier one defines.
            part = fastavro.parse_schema({**schema, "fields": schema["fields"][:count]})
            try:
                fastavro.schemaless_writer(BytesIO(), part, record)
            except Exception as reason:  # noqa: BLE001 - fastavro raises nearly anything
                value = record.get(field["name"])
                return InvalidJob(
                    f"{self.name}.{field['name']}: {value!r:.100} does not fit: {reason!s:.300}"
                )
        return InvalidJob(f"{self.name}: {type(error).__name__}: {error!s:.300}")

    def from_record(self, record: Record) -> Job:
        """The job object in a decoded record. Fields that its writer did not know have the class's defaults.

        Raises:
            BadRecord: the class refuses the values, in whatever way.
        """
        try:
            try:
                own = {name: record[name] for name in self.own_names}
            except KeyError:
                own = {name: record[name] for name in self.own_names if name in record}
            if not self.plain:
                model = self._model.parse_obj(own)
                own = {name: getattr(model, name) for name in own}
            return self.cls(**own)
        except KeyboardInterrupt:
            raise  # somebody's Ctrl-C, in a program that has a worker in it
        except BaseException as error:
            # __post_init__ is the user's: sys.exit in it, or a panic of native code, must not end the worker and each of its heirs.
            raise BadRecord(f"{self.name}: {type(error).__name__}: {reason_of(error)}"[:500]) from error


def job_type(cls: type[Job]) -> JobType:
    """The compiled form of a job class, made once. Safe from any thread.

    Raises:
        JobTypeError: the class is declared in a way that cannot work.
    """
    known = _compiled.get(cls)
    if known is None:
        with _compiling:
            known = _compiled.get(cls) or JobType(cls)
            _compiled[cls] = known
    return known


def derive_schema(cls: type[Job]) -> Schema:
    """The Avro schema of a job class, from its dataclass fields.

    Raises:
        JobTypeError: a field has a type that Avro cannot hold.
    """
    return _derive(cls)[0]


def _derive(cls: type[Job]) -> tuple[Schema, Any]:
    """The schema, and the library's model of the class that it comes from."""
    try:
        with _compiling:
            model = _avro_model(cls)
            own = model.avro_schema_to_python()["fields"]
    except Exception as error:  # the library raises its own and the typing module's errors
        raise JobTypeError(
            f"{cls.__qualname__}: its fields have no Avro schema: {error}; use simple types, lists, maps, "
            "enums, or (for nested records) subclasses of dataclasses_avroschema.AvroModel"
        ) from error
    schema = {
        "type": "record",
        "name": record_name(cls.job_type),
        "namespace": NAMESPACE,
        "fields": [*ENVELOPE_FIELDS, *own],
    }
    return schema, model


def _fields_of(cls: type[Job]) -> tuple[dataclasses.Field[Any], ...]:
    """The dataclass fields, if they can travel: all are arguments of the class, no name is taken."""
    decorated = "__dataclass_fields__" in vars(cls) or not inspect.get_annotations(cls)
    if not decorated or not hasattr(cls, "__dataclass_fields__"):
        raise JobTypeError(f"{cls.__qualname__} must be a dataclass: put @dataclass above it")
    if not cls.job_type:
        raise JobTypeError(f"{cls.__qualname__} needs a job_type")
    fields = dataclasses.fields(typing.cast("Any", cls))
    names = [field.name for field in fields]
    if settings := [name for name in names if name in _CLASS_ATTRIBUTES]:
        raise JobTypeError(
            f"{cls.__qualname__}: {', '.join(settings)} must not be a field; "
            f"write `{settings[0]} = …` without an annotation"
        )
    if taken := [name for name in names if name in ENVELOPE_NAMES or name in _METHODS]:
        raise JobTypeError(
            f"{cls.__qualname__}: the names {', '.join(taken)} belong to every job; choose other names"
        )
    if taken := [name for name in names if name in _LIBRARY_METHODS]:
        raise JobTypeError(
            f"{cls.__qualname__}: the names {', '.join(taken)} belong to the schema library; choose other names"
        )
    if unfit := [name for name in names if not _AVRO_NAME.fullmatch(name)]:
        raise JobTypeError(
            f"{cls.__qualname__}: {', '.join(unfit)}: Avro names have ASCII letters, digits and _"
        )
    parameters = inspect.signature(cls).parameters
    missing = [name for name in names if name not in parameters]
    extra = [
        parameter.name
        for parameter in parameters.values()
        if parameter.name not in names and parameter.default is parameter.empty
    ]
    if missing or extra:
        raise JobTypeError(
            f"{cls.__qualname__}: a worker makes it from its fields, which does not work with "
            f"{', '.join([*missing, *extra])}: no field(init=False), no InitVar without a default"
        )
    return fields


def _check_settings(cls: type[Job]) -> None:
    max_retries: Any = cls.max_retries
    timeout: Any = cls.timeout
    if max_retries is not None and (type(max_retries) is not int or not 0 <= max_retries < 2**31):
        raise JobTypeError(
            f"{cls.__qualname__}.max_retries is {max_retries!r}; use a number from 0 on, or None"
        )
    if timeout is not None and not (isinstance(timeout, timedelta) and timeout > timedelta(0)):
        raise JobTypeError(f"{cls.__qualname__}.timeout is {timeout!r}; use a timedelta above zero, or None")
    if not isinstance(cls.backoff, Backoff):
        raise JobTypeError(f"{cls.__qualname__}.backoff is {cls.backoff!r}; use a Backoff")
    if cls.execution not in (None, "async", "thread", "process"):
        raise JobTypeError(f"{cls.__qualname__}.execution is {cls.execution!r}; use async, thread or process")


def _check_identity(cls: type[Job], name: str, own_names: tuple[str, ...]) -> None:
    declared = declared_job_types()
    parent = declared.get(name)
    if parent is not None and "job_type" not in vars(cls) and tuple(_names(parent)) != own_names:
        raise JobTypeError(
            f"{cls.__qualname__} has other fields than {parent.__qualname__}, whose job type {name!r} "
            "it inherits; give it a job_type of its own"
        )
    for other in declared:
        if other != name and record_name(other) == record_name(name):
            raise JobTypeError(
                f"job types {name!r} and {other!r} would both be Avro record {record_name(name)}; rename one"
            )


def _check_type_names(cls: type[Job], own: list[Schema]) -> None:
    # In one Avro schema a name is defined once, and the envelope's types and the job's record are there already.
    taken = {record_name(cls.job_type), *(name for field in ENVELOPE_FIELDS for name in _defined_in(field))}
    for field in own:
        for name in _defined_in(field):
            if name in taken:
                raise JobTypeError(
                    f"{cls.__qualname__}.{field['name']}: a job's schema has a type called {name} already; "
                    "use a class of your own under another name"
                )


def _defined_in(schema: Any) -> Iterator[str]:
    """The names of the types that a schema defines where it is."""
    match schema:
        case list():
            for branch in schema:
                yield from _defined_in(branch)
        case {"namespace": _}:
            return  # they are called otherwise
        case {"type": "record", "name": name, "fields": fields}:
            yield name
            yield from _defined_in(fields)
        case {"type": "enum" | "fixed", "name": name}:
            yield name
        case {"type": "array", "items": inner} | {"type": "map", "values": inner} | {"type": inner}:
            yield from _defined_in(inner)


def _check_unions(cls: type[Job], own: list[Schema]) -> None:
    # Else a value would be changed without a word, or be a dead letter once a worker reads it.
    hints = typing.get_type_hints(cls)
    named: dict[str, Any] = {}
    for field in own:
        name = field["name"]
        clash = sequences_in(name, hints[name]) or clash_in(name, field["type"], named)
        if clash is not None:
            raise JobTypeError(
                f"{cls.__qualname__}.{clash.path}: {clash.one} and {clash.other} in one union cannot be told apart "
                "when they are read; give it one type, or make it two optional fields"
            )


def _names(cls: type[Job]) -> list[str]:
    return list(getattr(cls, "__dataclass_fields__", ()))


def _avro_model(cls: type[Job]) -> Any:
    """The library's view of the class: its fields and nothing else (a ``__post_init__`` would run twice)."""
    from dataclasses_avroschema import AvroModel  # 0.2 s to import; not needed for built-in types

    hints = typing.get_type_hints(cls, include_extras=True)
    members: list[tuple[str, Any, Any]] = []
    for field in dataclasses.fields(typing.cast("Any", cls)):
        _resolve_annotations(hints[field.name])
        default: dict[str, Any] = {"default": field.default}
        if field.default_factory is not dataclasses.MISSING:
            default = {"default_factory": field.default_factory}
        spec = dataclasses.field(**default, metadata=field.metadata)
        members.append((field.name, hints[field.name], spec))
    return dataclasses.make_dataclass(cls.__name__, members, bases=(AvroModel,), kw_only=True)


def _resolve_annotations(hint: Any) -> None:
    # The library takes a nested record's annotations as they are; under `from __future__ import annotations`
    # they are text.
    for argument in typing.get_args(hint):
        _resolve_annotations(argument)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint, include_extras=True)
        unresolved = [field for field in dataclasses.fields(hint) if isinstance(field.type, str)]
        for field in unresolved:
            field.type = hints[field.name]
        for field in unresolved:
            _resolve_annotations(field.type)


def _has_tuple(hint: Any) -> bool:
    return hint is tuple or typing.get_origin(hint) is tuple or any(map(_has_tuple, typing.get_args(hint)))


def _needs_conversion(schema: Any) -> bool:
    match schema:
        case list():
            return any(_needs_conversion(branch) for branch in schema)
        case {"type": "array", "items": items}:
            return _needs_conversion(items)
        case {"type": "map", "values": values}:
            return _needs_conversion(values)
        case {"type": "record" | "enum" | "fixed"}:
            return True
        case {"logicalType": str(name)}:
            return name.startswith("dataclasses-avroschema")
        case _:
            return False


def _to_avro(value: Any) -> Any:
    match value:
        case enum.Enum():
            return value.value
        case timedelta():
            return value.total_seconds()
        case list() | tuple():
            return [_to_avro(item) for item in value]
        case dict():
            return {key: _to_avro(item) for key, item in value.items()}
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {field.name: _to_avro(getattr(value, field.name)) for field in dataclasses.fields(value)}
        case _:
            return value
