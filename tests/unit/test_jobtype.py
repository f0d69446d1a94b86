from __future__ import annotations

import enum
import threading
import uuid
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from typing import Any, ClassVar

import pytest
from dataclasses_avroschema import AvroModel
from dataclasses_avroschema.types import DateTimeMicro, Float32, Int32, TimeMicro
from hypothesis import given
from hypothesis import strategies as st

import schemas.job as job_module
import schemas.jobtype as jobtype_module
from schemas.codec import Codec
from schemas.errors import BadRecord, InvalidJob
from schemas.job import Job, declared_job_types
from schemas.jobtype import ENVELOPE_FIELDS, ENVELOPE_NAMES, JobType, derive_schema, job_type, record_name

pytestmark = pytest.mark.job_processing


class Shade(enum.Enum):
    LIGHT = "light"
    DARK = "dark"


class Mode(enum.StrEnum):
    FAST = "fast"
    SAFE = "safe"


@dataclass
class Point(AvroModel):
    x: int
    y: float = 0.5


@dataclass
class Line(AvroModel):
    ends: list[Point]
    shade: Shade = Shade.LIGHT


@dataclass
class Simple(Job):
    job_type = "jt_simple"
    path: str
    count: int = 3
    ratio: float = 0.5
    flag: bool = False
    raw: bytes = b""
    note: str | None = None
    tags: list[str] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    matrix: list[list[int]] = field(default_factory=list)
    either: int | str = 0


@dataclass
class Shaded(Job):
    job_type = "jt_shaded"
    shade: Shade
    maybe: Shade | None = None
    many: list[Shade] = field(default_factory=list)
    named: dict[str, Shade] = field(default_factory=dict)
    mode: Mode = Mode.SAFE


@dataclass
class Nested(Job):
    job_type = "jt_nested"
    point: Point
    line: Line | None = None
    points: list[Point] = field(default_factory=list)
    named: dict[str, Point] = field(default_factory=dict)


@dataclass
class Timed(Job):
    job_type = "jt_timed"
    wait: timedelta
    at: datetime
    pause: timedelta | None = None
    until: datetime | None = None
    waits: list[timedelta] = field(default_factory=list)
    usual: timedelta = timedelta(seconds=5)
    first: datetime = datetime(2025, 1, 1, tzinfo=UTC)


@dataclass
class Dated(Job):
    job_type = "jt_dated"
    day: date
    hour: time
    tag: uuid.UUID


@dataclass
class Either(Job):
    job_type = "jt_either"
    scalar: bool | int | str = 0
    point: Point | list[Point] | str | None = None
    items: list[int | str] = field(default_factory=list)
    named: dict[str, float | bool | None] = field(default_factory=dict)
    shade: Shade | int | None = None
    raw: bytes | int = 0


@dataclass
class EitherPlain(Job):
    job_type = "jt_either_plain"
    scalar: int | bool | str = 0
    at: datetime | str | None = None
    tag: uuid.UUID | int | None = None
    day: date | bool | None = None
    numbers: list[int] | str | None = None


@dataclass
class Moment(AvroModel):
    at: datetime


@dataclass
class Precise(Job):
    job_type = "jt_precise"
    at: DateTimeMicro | None = None
    hour: TimeMicro | None = None
    small: Float32 | None = None
    ratio: float | None = None
    ratios: dict[str, float | bool | None] = field(default_factory=dict)
    moments: list[Moment] = field(default_factory=list)
    latest: Moment | None = None


@dataclass(slots=True)
class Slotted(Job):
    job_type = "jt_slotted"
    path: str
    many: list[int] = field(default_factory=list)
    shade: Shade = Shade.LIGHT


@dataclass(frozen=True, slots=True, kw_only=True)
class Frozen(Job):
    job_type = "jt_frozen"
    path: str
    shade: Shade
    pair: tuple[int, ...] = ()


@dataclass(frozen=True)
class Tupled(Job):
    job_type = "jt_tupled"
    pair: tuple[str, ...]
    maybe: tuple[int, ...] | None = None
    small: Int32 = 0


@dataclass
class Base(Job):
    path: str
    count: int = 1


@dataclass
class Child(Base):
    job_type = "jt_child"
    extra: str = "e"


@dataclass
class Grandchild(Child):
    job_type = "jt_grandchild"
    more: int = 0


class Renamed(Child):
    job_type = "jt_renamed"


@dataclass
class Empty(Job):
    job_type = "jt_empty"


AT = datetime(2025, 10, 9, 8, 7, 6, 543_000, UTC)
SAMPLES: list[Job] = [
    Simple("a"),
    Simple("ä", -1, 2.0, True, b"\x00\xff", "n", ["x", ""], {"k": 2**40}, [[1], []], "text"),
    Simple("a", either=7),
    Shaded(Shade.DARK),
    Shaded(Shade.DARK, Shade.LIGHT, [Shade.DARK, Shade.LIGHT], {"k": Shade.DARK}, Mode.FAST),
    Nested(Point(1)),
    Nested(Point(1, 2.5), Line([Point(3)], Shade.DARK), [Point(4), Point(5)], {"k": Point(6)}),
    Timed(timedelta(seconds=1.5), AT),
    Timed(timedelta(-1, 1), AT, timedelta(microseconds=1), AT, [timedelta(days=400)], timedelta(0), AT),
    Dated(date(2025, 10, 9), time(8, 7, 6), uuid.UUID("01970c4e-8c00-7abc-8def-0123456789ab")),
    Either(True, Point(1), [1, "1"], {"k": 2.0, "l": True, "m": None}, Shade.DARK, b"1"),
    Either(1, [Point(1)], ["dark"], {}, 1, 1),
    Either("1", "point"),
    EitherPlain(False, AT, uuid.UUID(int=7), date(2025, 10, 9), [1]),
    EitherPlain(0, "2025-10-09", 7, True, "1"),
    EitherPlain("0"),
    Precise(AT, time(8), 0.5, 2.0**60, {"a": 0.5, "b": True, "c": None}, [Moment(AT)], Moment(AT)),
    Slotted("a", [1, 2], Shade.DARK),
    Frozen(path="a", shade=Shade.DARK, pair=(1, 2)),
    Frozen(path="a", shade=Shade.DARK),
    Tupled(("a", "b")),
    Tupled((), (1,), 2**31 - 1),
    Child("a", 2, "f"),
    Grandchild("a", 2, "f", 9),
    Renamed("a", 2, "f"),
    Empty(),
]


@pytest.fixture(autouse=True)
def _catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test declares is forgotten after it."""
    monkeypatch.setattr(job_module, "_declared", declared_job_types())


def envelope(kind: JobType) -> dict[str, Any]:
    return {
        "id": "01970c4e-8c00-7abc-8def-0123456789ab",
        "type": kind.name,
        "priority": "normal",
        "key": None,
        "created_at": 1_760_000_000_123,
        "max_retries": None,
        "timeout_ms": None,
        "source": "",
        "parent_id": None,
    }


def encoded(job: Job) -> bytes:
    kind = job_type(type(job))
    return Codec().encode_job(kind, job, envelope(kind))


def returned(job: Job) -> Job:
    kind = job_type(type(job))
    return kind.from_record(Codec().decode(kind.wire, encoded(job)))


# The way there and back


@pytest.mark.parametrize("job", SAMPLES, ids=lambda job: type(job).__name__)
def test_a_job_comes_back_as_it_was(job: Job) -> None:
    back = returned(job)
    assert back == job
    assert type(back) is type(job)
    for name in job_type(type(job)).own_names:
        assert type(getattr(back, name)) is type(getattr(job, name)), name


int64s = st.integers(-(2**63), 2**63 - 1)


@given(
    st.builds(
        Simple,
        path=st.text(),
        count=int64s,
        ratio=st.floats(allow_nan=False),
        flag=st.booleans(),
        raw=st.binary(),
        note=st.none() | st.text(),
        tags=st.lists(st.text()),
        sizes=st.dictionaries(st.text(), int64s),
        matrix=st.lists(st.lists(int64s)),
        either=st.text() | int64s,
    )
)
def test_any_plain_job_comes_back_as_it_was(job: Simple) -> None:
    assert returned(job) == job


@given(
    st.timedeltas(timedelta(days=-10_000), timedelta(days=10_000)),
    st.datetimes(datetime(1970, 1, 1), datetime(9999, 12, 31), timezones=st.just(UTC)),  # noqa: DTZ001
)
def test_durations_are_kept_to_the_microsecond_and_times_to_the_millisecond(
    wait: timedelta, at: datetime
) -> None:
    back = returned(Timed(wait, at))
    assert isinstance(back, Timed)
    assert back.wait == wait
    assert back.at == at.replace(microsecond=at.microsecond // 1000 * 1000)


def test_post_init_runs_once_where_the_job_is_made_again() -> None:
    @dataclass
    class Counting(Job):
        job_type = "jt_counting"
        runs: int = 0
        shade: str = "x"
        pair: tuple[int, ...] = ()

        def __post_init__(self) -> None:
            self.runs += 1

    back = returned(Counting())
    assert isinstance(back, Counting)
    assert back.runs == 2  # once when it was scheduled, once when it was read


class Panic(BaseException):
    """As native code raises it."""


class Speechless(Exception):
    """Its author forgot something."""

    def __str__(self) -> str:
        return self.reason  # type: ignore[attr-defined, no-any-return]


@dataclass
class Picky(Job):
    """Takes whatever it is given, or raises."""

    job_type = "jt_picky"
    count: int = 0
    raises: ClassVar[BaseException | None] = None

    def __post_init__(self) -> None:
        if Picky.raises is not None:
            raise Picky.raises


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (SystemError("not today"), "SystemError: not today"),
        (SystemExit(3), "SystemExit: 3"),
        (Panic("from below"), "Panic: from below"),
        (Speechless(), "Speechless, which cannot say why"),
    ],
)
def test_a_class_that_refuses_its_values_makes_a_bad_record(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, said: str
) -> None:
    """Anything else would end the worker that reads it, and each of its heirs."""
    value = encoded(Picky())
    monkeypatch.setattr(Picky, "raises", error)
    kind = job_type(Picky)
    with pytest.raises(BadRecord, match=said):
        kind.from_record(Codec().decode(kind.wire, value))


def test_a_record_without_the_fields_of_its_class_is_a_bad_one() -> None:
    with pytest.raises(BadRecord):
        job_type(Simple).from_record({})


# The schema


def test_a_job_event_is_the_envelope_and_then_the_jobs_own_fields() -> None:
    schema = derive_schema(Simple)
    assert (schema["name"], schema["namespace"]) == ("JtSimple", "rustfs.jobs")
    assert schema["fields"][: len(ENVELOPE_FIELDS)] == ENVELOPE_FIELDS
    assert [f["name"] for f in schema["fields"][len(ENVELOPE_FIELDS) :]] == [
        "path",
        "count",
        "ratio",
        "flag",
        "raw",
        "note",
        "tags",
        "sizes",
        "matrix",
        "either",
    ]
    assert ENVELOPE_NAMES[0] == "id"


@pytest.mark.parametrize(
    ("name", "record"),
    [("replication", "Replication"), ("thumb_nail.v2", "ThumbNailV2"), ("a-b", "AB"), ("x1", "X1")],
)
def test_record_names(name: str, record: str) -> None:
    assert record_name(name) == record


def test_deriving_a_schema_twice_gives_the_same_one() -> None:
    """Nested classes are shared between job types, and the library keeps state on them."""
    before = [JobType(type(job)).wire.fingerprint for job in SAMPLES]
    assert [JobType(type(job)).wire.fingerprint for job in reversed(SAMPLES)] == before[::-1]


class Crowd(dict[type[Job], JobType]):
    """Lets nobody past the first look until eight have come."""

    def __init__(self) -> None:
        super().__init__()
        self.barrier = threading.Barrier(8, timeout=20)
        self.seen = threading.local()

    def get(self, key: type[Job], default: Any = None) -> Any:
        found = super().get(key, default)
        if not hasattr(self.seen, "once"):
            self.seen.once = True
            self.barrier.wait()
        return found


def test_a_class_is_compiled_once_whoever_asks_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobtype_module, "_compiled", Crowd())
    found: list[JobType] = []
    threads = [threading.Thread(target=lambda: found.append(job_type(Nested))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len({id(kind) for kind in found}) == 1


# Values that do not fit


@pytest.mark.parametrize(
    ("job", "name"),
    [
        (Simple(5), "path"),  # type: ignore[arg-type]
        (Simple(b"x"), "path"),  # type: ignore[arg-type]
        (Simple(None), "path"),  # type: ignore[arg-type]
        (Simple("\ud800"), "path"),
        (Simple("a", True), "count"),
        (Simple("a", 3.7), "count"),  # type: ignore[arg-type]
        (Simple("a", "7"), "count"),  # type: ignore[arg-type]
        (Simple("a", 2**63), "count"),
        (Simple("a", ratio="7"), "ratio"),  # type: ignore[arg-type]
        (Simple("a", ratio=True), "ratio"),
        (Simple("a", flag=1), "flag"),  # type: ignore[arg-type]
        (Simple("a", raw="x"), "raw"),  # type: ignore[arg-type]
        (Simple("a", note=5), "note"),  # type: ignore[arg-type]
        (Simple("a", tags="abc"), "tags"),  # type: ignore[arg-type]
        (Simple("a", tags=["x", 5]), "tags"),  # type: ignore[list-item]
        (Simple("a", tags={"x"}), "tags"),  # type: ignore[arg-type]
        (Simple("a", tags=["\udcff"]), "tags"),
        (Simple("a", sizes={"k": 3.7}), "sizes"),  # type: ignore[dict-item]
        (Simple("a", sizes={"k": True}), "sizes"),
        (Simple("a", sizes={1: 2}), "sizes"),  # type: ignore[dict-item]
        (Simple("a", sizes=[("k", 1)]), "sizes"),  # type: ignore[arg-type]
        (Simple("a", matrix=[[1], "ab"]), "matrix"),  # type: ignore[list-item]
        (Simple("a", matrix=[[1.5]]), "matrix"),  # type: ignore[list-item]
        (Simple("a", either=2.5), "either"),  # type: ignore[arg-type]
        (Simple("a", either=True), "either"),
        (Shaded("green"), "shade"),  # type: ignore[arg-type]
        (Shaded(Shade.DARK, many=[Shade.DARK, "green"]), "many"),  # type: ignore[list-item]
        (Nested(5), "point"),  # type: ignore[arg-type]
        (Nested(Point(True)), "point"),
        (Nested(Point(1.5)), "point"),  # type: ignore[arg-type]
        (Nested(Point(1), points=[Point("x")]), "points"),  # type: ignore[arg-type]
        (Nested(Point(1), named={"k": Point(2, "0.5")}), "named"),  # type: ignore[arg-type]
        (Nested(Point(1), Line([Point(1)], "green")), "line"),  # type: ignore[arg-type]
        (Tupled((), small=2**31), "small"),
        (Tupled((), small=-(2**31) - 1), "small"),
        (Timed("x", AT), "wait"),  # type: ignore[arg-type]
        (Timed(timedelta(1), 5), "at"),  # type: ignore[arg-type]
        (Timed(timedelta(1), "2025-01-01"), "at"),  # type: ignore[arg-type]
        (Timed(timedelta(1), AT, until=5), "until"),  # type: ignore[arg-type]
        (EitherPlain(tag="no uuid"), "tag"),  # type: ignore[arg-type]
        (EitherPlain(day=AT), "day"),
        (EitherPlain(day="2025-10-09"), "day"),  # type: ignore[arg-type]
        (EitherPlain(numbers=b"ab"), "numbers"),  # type: ignore[arg-type]
        (Either(shade="green"), "shade"),  # type: ignore[arg-type]
        (Either(shade=1.5), "shade"),  # type: ignore[arg-type]
        (Dated(AT, time(1), uuid.UUID(int=7)), "day"),
        (Dated(date(2025, 1, 1), 5, uuid.UUID(int=7)), "hour"),  # type: ignore[arg-type]
        (Dated(date(2025, 1, 1), time(1), "no uuid"), "tag"),  # type: ignore[arg-type]
    ],
    ids=lambda value: repr(value)[:60],
)
def test_a_value_that_does_not_fit_is_refused_with_the_fields_name(job: Job, name: str) -> None:
    with pytest.raises(InvalidJob, match=rf"^{type(job).job_type}\.{name}: "):
        encoded(job)


EAST, WEST = timezone(timedelta(hours=3)), timezone(timedelta(hours=-3))
NAIVE = datetime(2026, 1, 31, 12)  # noqa: DTZ001 - what is refused
ZONE = r"give it a time zone: datetime\.now\(UTC\)$"
YEARS = "outside the years 1 to 9999"
LONG = "longer than a timedelta can be"
WHOLE = "declare the field as int"


@pytest.mark.parametrize(
    ("job", "name", "said"),
    [
        (Timed(timedelta(1), NAIVE), "at", ZONE),
        (Timed(timedelta(1), AT, until=NAIVE), "until", ZONE),
        (EitherPlain(at=NAIVE), "at", ZONE),
        (Precise(at=NAIVE), "at", ZONE),
        (Precise(moments=[Moment(AT), Moment(NAIVE)]), "moments", ZONE),
        (Precise(latest=Moment(NAIVE)), "latest", ZONE),
        (Timed(timedelta(1), datetime.min.replace(tzinfo=EAST)), "at", YEARS),
        (Timed(timedelta(1), datetime.max.replace(tzinfo=WEST)), "at", YEARS),
        (Timed(timedelta.max, AT), "wait", LONG),
        (Timed(timedelta(1), AT, pause=timedelta.max), "pause", LONG),
        (Timed(timedelta(1), AT, waits=[timedelta.max]), "waits", LONG),
        (Dated(date(2026, 1, 1), time(1, tzinfo=UTC), uuid.UUID(int=7)), "hour", "a time of day keeps no"),
        (Precise(hour=time(1, tzinfo=UTC)), "hour", "a time of day keeps no"),
        (Simple("a", ratio=2**53 + 1), "ratio", WHOLE),
        (Simple("a", ratio=-(2**53) - 1), "ratio", WHOLE),
        (Simple("a", ratio=10**400), "ratio", WHOLE),
        (Precise(ratio=2**53 + 1), "ratio", WHOLE),
        (Precise(ratios={"a": 2**53 + 1}), "ratios", WHOLE),
        (Precise(small=2**24 + 1), "small", "32 bits"),
        (Precise(small=1e39), "small", "32 bits"),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_what_would_come_back_as_something_else_or_not_at_all_is_refused_with_a_remedy(
    job: Job, name: str, said: str
) -> None:
    with pytest.raises(InvalidJob, match=rf"^{type(job).job_type}\.{name}: .*{said}"):
        encoded(job)


def test_a_remedy_is_named_only_where_the_type_is_right() -> None:
    with pytest.raises(InvalidJob, match=r"is not what the field takes$"):
        encoded(Dated(NAIVE, time(1), uuid.UUID(int=7)))


first_and_last_day = st.tuples(
    st.sampled_from([datetime.min, datetime.max - timedelta(days=1)]),  # noqa: DTZ901
    st.timedeltas(timedelta(0), timedelta(days=1)),
).map(lambda day: day[0] + day[1])


@given(
    st.builds(datetime.replace, first_and_last_day, tzinfo=st.sampled_from([UTC, EAST, WEST])),
    st.timedeltas(timedelta.max - timedelta(seconds=1), timedelta.max),
    st.none() | st.integers(2**53, 2**60) | st.floats(allow_nan=False),
)
def test_whatever_is_accepted_can_be_read_again(at: datetime, wait: timedelta, ratio: float | None) -> None:
    for job in (Timed(wait, at), Precise(ratio=ratio, ratios={"a": ratio})):
        try:
            value = encoded(job)
        except InvalidJob:
            continue
        kind = job_type(type(job))
        back = kind.from_record(Codec().decode(kind.wire, value))
        if isinstance(back, Precise):
            assert (back.ratio, back.ratios["a"]) == (ratio, ratio)
        else:
            assert isinstance(back, Timed)
            assert timedelta(0) <= at - back.at < timedelta(milliseconds=1)


def test_a_missing_field_is_refused_with_its_name() -> None:
    job = Simple("a")
    del job.path
    with pytest.raises(InvalidJob, match=r"jt_simple\.path"):
        encoded(job)
    with pytest.raises(InvalidJob, match=r"jt_simple\.path"):
        Codec().encode_job(job_type(Simple), Empty(), envelope(job_type(Simple)))


def test_a_value_that_contains_itself_is_refused_with_the_fields_name() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(InvalidJob, match=r"jt_nested\.points"):
        encoded(Nested(Point(1), points=endless))
