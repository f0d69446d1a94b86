"""Job types whose records are damaged: every kind of field, every way to run. None of them minds its values.

None is retried, so that each record comes to its end soon, however it was damaged.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Final

from dataclasses_avroschema import AvroModel, types

from schemas import Job
from workers.results import Success


class Colour(enum.Enum):
    """An Avro enum."""

    RED = "red"
    BLUE = "blue"


@dataclass
class Part(AvroModel):
    """A nested record."""

    name: str = "wheel"
    count: int = 4


@dataclass
class Plain(Job):
    """Strings and numbers, as most jobs have them."""

    job_type = "bad_plain"
    max_retries = 0
    text: str = ""
    number: int = 0
    ratio: float = 0.5
    yes: bool = False
    maybe: str | None = None

    async def execute(self) -> None:
        return None


@dataclass
class Rich(Job):
    """One field of each kind that the wire has."""

    job_type = "bad_rich"
    max_retries = 0
    raw: bytes = b"raw"
    words: list[str] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    colour: Colour = Colour.RED
    part: Part = field(default_factory=Part)
    parts: list[Part] = field(default_factory=list)
    when: datetime = datetime(2026, 1, 2, tzinfo=UTC)
    day: date = date(2026, 1, 2)
    price: types.condecimal(max_digits=10, decimal_places=2) = Decimal("1.50")  # type: ignore[valid-type]
    either: int | str | None = None

    async def execute(self) -> Success:
        return Success({"words": len(self.words)})


@dataclass
class Threaded(Job):
    """Runs in a thread, and has a key."""

    job_type = "bad_threaded"
    max_retries = 0
    order_key: str = "k"

    def ordering_key(self) -> str | None:
        return self.order_key

    def execute(self) -> None:
        return None


@dataclass
class Processed(Job):
    """Runs in a process of its own: its record is written once more, for the child."""

    job_type = "bad_processed"
    execution = "process"
    max_retries = 0
    text: str = ""
    words: list[str] = field(default_factory=list)

    def execute(self) -> None:
        return None


@dataclass
class Nobodys(Job):
    """Of a type that no worker is told of: ``--import`` of this module declares it, and ``execute`` is what it lacks."""

    job_type = "bad_nobodys"
    max_retries = 0
    text: str = ""


SAMPLES: Final[tuple[Job, ...]] = (
    Plain("a text of some length", 1_000_000, maybe="perhaps"),
    Rich(words=["a", "bc"], sizes={"a": 1}, parts=[Part()], either="x"),
    Threaded(),
)
