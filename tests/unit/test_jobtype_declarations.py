from __future__ import annotations

import dataclasses
import enum
from dataclasses import InitVar, dataclass, field
from datetime import date, datetime, time, timedelta
from typing import Any, Literal
from uuid import UUID

import pytest
from dataclasses_avroschema import AvroModel, types

import schemas
import schemas.job as job_module
from schemas.backoff import Backoff
from schemas.codec import Codec
from schemas.errors import JobTypeError, UnknownJobType
from schemas.ids import new_job_id
from schemas.job import Job, declared_job_types, job_class
from schemas.jobtype import ENVELOPE_NAMES, job_type

pytestmark = pytest.mark.job_processing


@dataclass
class Tree(AvroModel):
    value: int
    children: list[Tree] = field(default_factory=list)


@dataclass
class Nothing(AvroModel):
    pass


@dataclass
class Simple(Job):
    job_type = "decl_simple"
    path: str


@dataclass(slots=True)
class Slotted(Job):
    job_type = "decl_slotted"
    path: str


@dataclass
class Base(Job):
    path: str


@pytest.fixture(autouse=True)
def _catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test declares is forgotten after it."""
    monkeypatch.setattr(job_module, "_declared", declared_job_types())


# The catalogue


def test_a_type_is_found_by_its_name() -> None:
    assert job_class("decl_simple") is declared_job_types()["decl_simple"] is Simple
    with pytest.raises(UnknownJobType, match=r"decl_never.*import the module") as unknown:
        job_class("decl_never")
    assert "decl_simple" in unknown.value.known
    declared_job_types().clear()
    assert "decl_simple" in declared_job_types()


def test_a_slotted_class_stands_in_the_catalogue_and_not_its_first_draft() -> None:
    assert job_class("decl_slotted") is Slotted
    assert not hasattr(Slotted("a"), "__dict__")


@pytest.mark.parametrize(
    "name",
    ["", "Upper", "a b", "_a", "a_", "a__b", "1a", "ä", "a\n", "a/b", "x" * 65, 5, "a.b.", "-"],
    ids=repr,
)
def test_names_that_cannot_travel_are_refused(name: Any) -> None:
    with pytest.raises(JobTypeError, match="job_type"):
        type("Misnamed", (Job,), {"job_type": name})
    assert name not in declared_job_types()


@pytest.mark.parametrize("name", ["a", "a1", "a_b", "a-b", "a.b", "a.b_c-d2", "x" * 64])
def test_names_that_can_travel_are_taken(name: str) -> None:
    cls = type("Named", (Job,), {"job_type": name})
    assert job_class(name) is cls


def test_a_name_declared_twice_is_refused() -> None:
    class First(Job):
        job_type = "decl_twice"

    with pytest.raises(JobTypeError, match=r"decl_twice.*twice.*First.*Second"):

        class Second(Job):
            job_type = "decl_twice"

    assert job_class("decl_twice") is First


def test_the_same_class_may_be_declared_again() -> None:
    """A module that is reloaded, a cell of a notebook that runs again."""

    def declare() -> type[Job]:
        class Again(Job):
            job_type = "decl_again"

        return Again

    first, second = declare(), declare()
    assert first is not second
    assert job_class("decl_again") is second


# Names of fields, settings


@pytest.mark.parametrize("name", ENVELOPE_NAMES)
def test_the_envelopes_names_are_taken(name: str) -> None:
    cls = dataclasses.make_dataclass(
        "Taking", [(name, int)], bases=(Job,), namespace={"job_type": "decl_taking"}
    )
    with pytest.raises(JobTypeError, match=name):
        job_type(cls)


@pytest.mark.parametrize("name", ["execute", "ordering_key", "runs_itself"])
def test_the_names_of_methods_are_taken(name: str) -> None:
    cls = dataclasses.make_dataclass(
        "Taking", [(name, int)], bases=(Job,), namespace={"job_type": "decl_taking"}
    )
    with pytest.raises(JobTypeError, match=f"{name} belong"):
        job_type(cls)


@pytest.mark.parametrize(
    "name", ["job_type", "max_retries", "timeout", "backoff", "execution", "schema_file"]
)
def test_a_setting_with_an_annotation_is_refused_with_the_remedy(name: str) -> None:
    """It would be a field, sent with each job and read by nobody."""
    cls: Any = dataclasses.make_dataclass("Setting", [(name, str, "x")], bases=(Job,))
    cls.job_type = "decl_setting"
    with pytest.raises(JobTypeError, match=rf"`{name} = …` without an annotation"):
        job_type(cls)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_retries", -1),
        ("max_retries", True),
        ("max_retries", "3"),
        ("max_retries", 2**31),
        ("timeout", timedelta(0)),
        ("timeout", 30),
        ("backoff", 2.0),
        ("backoff", None),
        ("execution", "fork"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_by_name(name: str, value: Any) -> None:
    cls: type[Job] = dataclass(type("Wrong", (Job,), {"job_type": "decl_wrong", name: value}))
    with pytest.raises(JobTypeError, match=rf"Wrong\.{name}"):
        job_type(cls)


def test_settings_that_can_work_are_taken() -> None:
    @dataclass
    class Set(Job):
        job_type = "decl_set"
        max_retries = 0
        timeout = timedelta(milliseconds=1)
        backoff = Backoff(factor=1)
        execution = "process"

    assert job_type(Set).own_names == ()


# Classes


def test_what_is_no_dataclass_is_refused_with_the_remedy() -> None:
    class Bare(Job):
        job_type = "decl_bare"
        path: str

    @dataclass
    class Decorated(Job):
        path: str

    class Forgot(Decorated):
        job_type = "decl_forgot"
        more: str = "m"

    for cls in (Bare, Forgot):
        with pytest.raises(JobTypeError, match="@dataclass above it"):
            job_type(cls)


def test_a_class_without_a_type_name_is_refused() -> None:
    with pytest.raises(JobTypeError, match="needs a job_type"):
        job_type(Base)


def test_a_subclass_with_more_fields_needs_a_name_of_its_own() -> None:
    """The worker makes the declared class, and what that does not have would be lost."""

    @dataclass
    class More(Simple):
        extra: int = 0

    class Same(Simple):
        max_retries = 7

    with pytest.raises(JobTypeError, match="job_type of its own"):
        job_type(More)
    assert job_type(Same).wire.fingerprint == job_type(Simple).wire.fingerprint


def test_two_names_for_one_record_are_refused() -> None:
    """A registry would take one for a new version of the other."""

    @dataclass
    class Dotted(Job):
        job_type = "decl.clash"

    @dataclass
    class Dashed(Job):
        job_type = "decl-clash"

    del Dotted
    with pytest.raises(JobTypeError, match="DeclClash"):
        job_type(Dashed)


@dataclass
class NotInit(Job):
    job_type = "decl_not_init"
    path: str
    size: int = field(init=False, default=0)


@dataclass
class NeedsMore(Job):
    job_type = "decl_needs_more"
    path: str
    secret: InitVar[str]


@dataclass(init=False)
class OwnInit(Job):
    job_type = "decl_own_init"
    path: str

    def __init__(self, where: str) -> None:
        self.path = where


@pytest.mark.parametrize(
    ("cls", "name"), [(NotInit, "size"), (NeedsMore, "secret"), (OwnInit, "path, where")]
)
def test_a_class_that_cannot_be_made_from_its_fields_is_refused(cls: type[Job], name: str) -> None:
    """Else it could be scheduled, and every one of its jobs would end among the dead letters."""
    with pytest.raises(JobTypeError, match=f"does not work with {name}:"):
        job_type(cls)


def test_a_file_with_other_fields_than_the_class_is_refused() -> None:
    @dataclass
    class Misfiled(Job):
        job_type = "decl_misfiled"
        schema_file = "replication"
        source_path: str

    with pytest.raises(JobTypeError, match=r"source_path, but replication\.avsc has"):
        job_type(Misfiled)


# Types of fields


class Code(enum.IntEnum):
    OK = 200


class JobPriority(enum.Enum):
    MINE = "mine"


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Any, "Any"),
        (object, "object"),
        (set[str], "set"),
        (dict[int, str], "str"),
        (Tree, "contains itself"),
        (list[Nothing], "take no bytes"),
        (Code, "Symbol 200"),
        (Simple, "Simple"),
        ("Unheard", "Unheard"),
    ],
    ids=str,
)
def test_a_field_that_avro_cannot_hold_is_refused(kind: Any, reason: str) -> None:
    cls = dataclasses.make_dataclass("Odd", [("it", kind)], bases=(Job,), namespace={"job_type": "decl_odd"})
    with pytest.raises(JobTypeError, match=f"^Odd: .*{reason}"):
        job_type(cls)


class Colour(enum.Enum):
    RED = "red"


@dataclass
class Left(AvroModel):
    x: int = 0


@dataclass
class Right(AvroModel):
    x: int = 0


@dataclass
class Around(AvroModel):
    inner: int | float = 0


@dataclass
class Above(AvroModel):
    around: list[Around]


PRICE: Any = types.condecimal(max_digits=10, decimal_places=2)


@pytest.mark.parametrize(
    ("kind", "path", "said"),
    [
        (Left | Right, "it", "Left and Right"),
        (Left | dict[str, str], "it", r"Left and dict\[str, str\]"),
        (datetime | int, "it", "datetime and int"),
        (datetime | float, "it", "datetime and float"),
        (date | datetime, "it", "date and datetime"),
        (time | int, "it", "time and int"),
        (timedelta | float, "it", "timedelta and float"),
        (Colour | str, "it", "Colour and str"),
        (Colour | Literal["blue"], "it", "Colour and str"),
        (float | int, "it", "float and int"),
        (int | types.Int32, "it", "int and Int32"),
        (UUID | str, "it", "UUID and str"),
        (date | str, "it", "date and str"),
        (bytes | str, "it", "bytes and str"),
        (bytes | PRICE, "it", "bytes and Decimal"),
        (bytes | list[int], "it", r"bytes and list\[int\]"),
        (list[int] | list[str], "it", r"list\[int\] and list\[str\]"),
        (list[int] | tuple[int, ...], "it", r"list\[int\] and tuple\[int, \.\.\.\]"),
        (tuple[str, ...] | dict[str, str], "it", r"list\[str\] and dict\[str, str\]"),
        (dict[str, int] | dict[str, str], "it", r"dict\[str, int\] and dict\[str, str\]"),
        (int | str | float, "it", "int and float"),
        (int | float | None, "it", "int and float"),
        (list[int | float], "it", "int and float"),
        (dict[str, list[int | float]], "it", "int and float"),
        (list[list[int] | tuple[int, ...]], "it", r"list\[int\] and tuple"),
        (Above | None, r"it\.around\.inner", "int and float"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,  # some types show an address
)
def test_a_union_of_what_avro_cannot_tell_apart_is_refused_by_name(kind: Any, path: str, said: str) -> None:
    """Its values would come back as others, or be dead letters."""
    cls = dataclasses.make_dataclass("Odd", [("it", kind)], bases=(Job,), namespace={"job_type": "decl_odd"})
    with pytest.raises(
        JobTypeError, match=rf"^Odd\.{path}: {said}.* cannot be told apart.* two optional fields"
    ):
        job_type(cls)


def test_a_union_with_a_type_that_an_earlier_field_defines_is_refused_as_well() -> None:
    cls = dataclasses.make_dataclass(
        "Odd",
        [("first", Left), ("it", dict[str, str] | Left)],
        bases=(Job,),
        namespace={"job_type": "decl_odd"},
    )
    with pytest.raises(JobTypeError, match=r"^Odd\.it: dict\[str, str\] and Left"):
        job_type(cls)


@dataclass
class Hidden(AvroModel):
    deep: list[schemas.JobPriority]


@dataclass
class DeclOdd(AvroModel):
    x: int = 0


@pytest.mark.parametrize(
    ("kind", "taken"),
    [
        (JobPriority, "JobPriority"),
        (schemas.JobPriority, "JobPriority"),
        (schemas.JobPriority | None, "JobPriority"),
        (list[schemas.JobPriority], "JobPriority"),
        (dict[str, Hidden], "JobPriority"),
        (DeclOdd, "DeclOdd"),
    ],
    ids=str,
)
def test_a_type_called_like_one_that_the_schema_has_already_is_refused_with_the_remedy(
    kind: Any, taken: str
) -> None:
    cls = dataclasses.make_dataclass("Odd", [("it", kind)], bases=(Job,), namespace={"job_type": "decl_odd"})
    with pytest.raises(JobTypeError, match=rf"^Odd\.it: .* called {taken} already; .*under another name"):
        job_type(cls)


LIBRARY_METHODS = [
    "parse_obj",
    "avro_schema_to_python",
    "generate_schema",
    "_generate_parser",
    "_reset_parser",
]


def called(name: str, kind: Any, value: Any) -> type[Job]:
    """A class with one field, which has a default."""
    return dataclasses.make_dataclass(
        "Odd", [(name, kind, value)], bases=(Job,), namespace={"job_type": "decl_odd"}
    )


@pytest.mark.parametrize("name", LIBRARY_METHODS)
@pytest.mark.parametrize(("kind", "value"), [(Colour, Colour.RED), (str, "red")])
def test_a_field_called_like_what_the_schema_library_calls_is_refused(
    name: str, kind: Any, value: Any
) -> None:
    """Its default would stand in place of the method: all of its jobs would be dead letters."""
    with pytest.raises(JobTypeError, match=f"{name} belong to the schema library; choose other names"):
        job_type(called(name, kind, value))


@pytest.mark.parametrize(
    "name", [name for name in dir(AvroModel) if not name.startswith("__") and name not in LIBRARY_METHODS]
)
def test_a_field_called_like_anything_else_of_the_schema_library_comes_back(name: str) -> None:
    cls = called(name, Colour, Colour.RED)
    kind = job_type(cls)
    envelope = dict.fromkeys(ENVELOPE_NAMES) | {"id": new_job_id(), "type": kind.name, "priority": "normal"}
    value = Codec().encode_job(kind, cls(), envelope | {"created_at": 0, "source": ""})
    assert kind.from_record(Codec().decode(kind.wire, value)) == cls()


def test_a_field_whose_name_is_not_ascii_is_refused() -> None:
    cls = dataclasses.make_dataclass(
        "Odd", [("größe", int)], bases=(Job,), namespace={"job_type": "decl_odd"}
    )
    with pytest.raises(JobTypeError, match="größe"):
        job_type(cls)


def test_a_job_without_execute_says_what_to_do() -> None:
    assert not Simple.runs_itself()
    with pytest.raises(JobTypeError, match="register a Worker"):
        Simple("a").execute(None).send(None)
