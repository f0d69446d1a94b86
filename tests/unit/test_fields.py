"""Field values as people type them, and the builder that takes them."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Literal
from uuid import UUID

import pytest
from dataclasses_avroschema import types

from schemas import Job, JobPriority
from schemas.errors import InvalidJob, JobTypeError, UnknownJobType
from workers import JobBuilder
from workers.fields import duration, parse_fields

pytestmark = pytest.mark.job_processing


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Everything(Job):
    """One field of each kind that can be typed."""

    job_type = "test_everything_typed"
    path: str
    count: int = 0
    share: float = 0.0
    deep: bool = False
    nodes: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    colour: Colour = Colour.RED
    wait: timedelta = timedelta(0)
    when: datetime | None = None
    raw: bytes = b""
    day: date = date(2026, 1, 1)
    hour: time = time(0)
    tag: UUID | None = None
    price: types.condecimal(max_digits=10, decimal_places=2) = Decimal(0)  # type: ignore[valid-type]
    labels: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError("count must not be negative")


@dataclass
class Choices(Job):
    """Fields that take one of several types, or of several values."""

    job_type = "test_choices_typed"
    number: int | str = 0
    share: str | float | None = None
    flag: str | bool | int = False
    at: str | datetime | None = None
    shade: Colour | int | None = None
    sizes: list[int] | str | None = None
    labels: dict[str, str] | str | None = None
    strict: bool | int = 0
    speed: Literal["fast", "slow"] = "fast"
    level: Literal[1, 2] | None = None
    sure: Literal[True] | None = None
    speeds: list[Literal["fast", "slow"]] = field(default_factory=list)
    maps: list[dict[str, int]] = field(default_factory=list)
    mixed: list[int | str | None] = field(default_factory=list)
    shades: list[Colour] = field(default_factory=list)
    waits: list[timedelta] = field(default_factory=list)
    matrix: list[list[float]] = field(default_factory=list)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("number=12", 12),
        ("number=abc", "abc"),
        ("number=", ""),
        ("share=0.5", 0.5),
        ("share=half", "half"),
        ("share=", None),
        ("flag=1", 1),
        ("flag=yes", True),
        ("flag=perhaps", "perhaps"),
        ("at=2026-01-31T12:00:00+00:00", datetime(2026, 1, 31, 12, tzinfo=UTC)),
        ("at=noon", "noon"),
        ("shade=blue", Colour.BLUE),
        ("shade=7", 7),
        ("sizes=1,2", [1, 2]),
        ("sizes=all", "all"),
        ('labels={"a": "b"}', {"a": "b"}),
        ("labels=5", "5"),
        ("strict=false", False),
        ("speed=slow", "slow"),
        ("level=2", 2),
        ("level=", None),
        ("sure=true", True),
        ("speeds=slow,fast", ["slow", "fast"]),
        ('speeds=["slow", "fast"]', ["slow", "fast"]),
        ('mixed=[1, "a", null]', [1, "a", None]),
        ('shades=["blue"]', [Colour.BLUE]),
        ('waits=["2m", 3]', [timedelta(minutes=2), timedelta(seconds=3)]),
        ("matrix=[[1, 0.5], []]", [[1.0, 0.5], []]),
        ('maps={"a": 1, "b": 2}', [{"a": 1, "b": 2}]),
        ('maps=[{"a": 1}, {"b": 2}]', [{"a": 1}, {"b": 2}]),
    ],
)
def test_a_field_of_several_types_takes_the_first_that_fits_and_a_text_last(text: str, value: Any) -> None:
    parsed = parse_fields(Choices, [text])[text.partition("=")[0]]
    assert (type(parsed), parsed) == (type(value), value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("strict=maybe", "is 'maybe': it takes a whole number, or it takes true or false"),
        ("shade=green", "it takes a whole number, or it takes one of red, blue"),
        ("speed=medium", "test_choices_typed.speed is 'medium': it takes one of fast, slow"),
        ("level=3", "it takes one of 1, 2"),
        ("speeds=fast,medium", "it takes one of fast, slow"),
        ("speeds=[1]", "it takes one of fast, slow"),
        ("maps=[1]", "1 is none of its items; an item is dict"),
        ("mixed=[[1]]", "[1] is none of its items"),
    ],
)
def test_what_none_of_several_types_or_values_takes_is_refused_with_all_of_them(text: str, said: str) -> None:
    with pytest.raises(InvalidJob) as refusal:
        parse_fields(Choices, [text])
    assert said in str(refusal.value)


def test_a_field_is_given_once() -> None:
    """The last one would win, and the first be gone without a word."""
    with pytest.raises(
        InvalidJob, match=r"test_everything_typed\.nodes is given twice; a list is written nodes=A,B"
    ):
        parse_fields(Everything, ["path=a", "nodes=n1", "nodes=n2"])
    with pytest.raises(InvalidJob, match=r"test_everything_typed\.path is given twice$"):
        parse_fields(Everything, ["path=a", "path=b"])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("path=a=b, c", "a=b, c"),
        ("path=", ""),
        ("count=-12", -12),
        ("share=0.5", 0.5),
        ("deep=yes", True),
        ("deep=FALSE", False),
        ("nodes=n1, n2,", ["n1", "n2"]),
        ("nodes=", []),
        ("sizes=1,2", [1, 2]),
        ("colour=blue", Colour.BLUE),
        ("wait=90s", timedelta(seconds=90)),
        ("when=2026-01-31T12:00:00+00:00", datetime(2026, 1, 31, 12, tzinfo=UTC)),
        ("when=", None),
        ("raw=ü", "ü".encode()),
        ("day=2026-01-31", date(2026, 1, 31)),
        ("hour=12:30:00", time(12, 30)),
        ("tag=01a20bd1-1946-743e-922d-c32f1fd9b001", UUID("01a20bd1-1946-743e-922d-c32f1fd9b001")),
        ("price=12.50", Decimal("12.50")),
        ('labels={"a": "b"}', {"a": "b"}),
    ],
)
def test_values_are_parsed_by_the_type_of_their_field(text: str, value: Any) -> None:
    assert parse_fields(Everything, [text]) == {text.partition("=")[0]: value}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("count=1.5", "test_everything_typed.count is '1.5': it takes a whole number"),
        ("share=half", "it takes a number"),
        ("deep=maybe", "it takes true or false"),
        ("sizes=1,two", "test_everything_typed.sizes is '1,two': it takes a whole number"),
        ("colour=green", "it takes one of red, blue"),
        ("wait=long", "test_everything_typed.wait is 'long': 'long' is not a duration; write 500ms"),
        ("when=noon", "it takes a time with a time zone, such as 2026-01-31"),
        ("when=2026-01-31T12:00:00", "it takes a time with a time zone, such as 2026-01-31T12:00:00+00:00"),
        ("hour=12:00:00+00:00", "it takes a time of day such as 12:00:00, without a time zone"),
        ("labels=a", "it takes JSON"),
        ("labels=5", 'it takes JSON such as {"name": "value"}'),
        ("day=tomorrow", "it takes a day such as 2026-01-31"),
        ("tag=a", "it takes a UUID"),
        ("price=much", "it takes a decimal number"),
        ("nodes=[1,2]", "test_everything_typed.nodes is '[1,2]': 1 is none of its items; an item is a text"),
        ('nodes={"a": 1}', '{"a": 1} is none of its items; an item is a text'),
        ("nodes=[null]", "null is none of its items"),
        ("nodes=[[]]", "[] is none of its items"),
        ("sizes=[1.5]", "it takes a whole number"),
        ("sizes=[true]", "true is none of its items; an item is a whole number"),
        ('sizes=["two"]', "it takes a whole number"),
        ("cuont=1", "no field 'cuont'; did you mean count?"),
        ("path", "'path': write FIELD=VALUE"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_with_what_its_field_takes(text: str, said: str) -> None:
    with pytest.raises(InvalidJob) as refusal:
        parse_fields(Everything, [text])

    assert said in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "seconds"), [("250ms", 0.25), ("30s", 30), ("1.5m", 90), ("2h", 7200), ("1d", 86400), (" 7 ", 7)]
)
def test_durations_have_units_and_a_bare_number_is_seconds(text: str, seconds: float) -> None:
    assert duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "-1s", "1 week", "s", "1e3s", "inf"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(InvalidJob, match="is not a duration"):
        duration(text)


def test_the_builder_builds_a_job_and_keeps_how_to_schedule_it() -> None:
    builder = (
        JobBuilder("test_everything_typed")
        .field("path", "a/b")
        .fields(count=2, deep=True)
        .parse(["nodes=n1,n2"])
        .priority(JobPriority.HIGH)
        .delay(timedelta(seconds=3))
        .key("a/b")
        .max_retries(7)
        .timeout(timedelta(minutes=1))
    )

    assert builder.build() == Everything("a/b", count=2, deep=True, nodes=["n1", "n2"])
    assert builder.options == {
        "priority": JobPriority.HIGH,
        "delay": timedelta(seconds=3),
        "key": "a/b",
        "max_retries": 7,
        "timeout": timedelta(minutes=1),
    }


def test_the_builder_says_what_a_class_lacks() -> None:
    class Undeclared(Job):
        job_type = "test_undeclared"
        path: str

    with pytest.raises(JobTypeError, match="put @dataclass above it"):
        JobBuilder("test_undeclared")


def test_the_builder_names_what_is_missing_unknown_or_refused() -> None:
    with pytest.raises(InvalidJob, match="test_everything_typed needs path; its fields: path, count, "):
        JobBuilder("test_everything_typed").build()
    with pytest.raises(InvalidJob, match="has no field 'pth'; did you mean path"):
        JobBuilder("test_everything_typed").field("pth", "a").build()
    with pytest.raises(InvalidJob, match="test_everything_typed: count must not be negative"):
        JobBuilder("test_everything_typed").fields(path="a", count=-1).build()
    with pytest.raises(UnknownJobType, match="import the module that declares it"):
        JobBuilder("test_no_such_type")
    nothing: Any = None
    with pytest.raises(InvalidJob, match="None is no name of a job type"):
        JobBuilder(nothing)
