"""Which jobs are scheduled, by the seed. Pure.

Out: an endless sequence of (job, priority, delay).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import timedelta
from typing import Final, NamedTuple

from schemas import JobPriority
from tests.guarantees.jobs import (
    AlwaysFails,
    CampaignJob,
    FailsThenSucceeds,
    InOrder,
    InProcess,
    InThread,
    Long,
    Parent,
    Quick,
    Snoozes,
)

PRIORITIES: Final = tuple(JobPriority)
#: Keys that are shared by jobs of every kind, hot enough that several of one key wait at any time.
_KEYS: Final = 40
#: Longer than the shorter delay tiers, so that a job hops from one to the next.
_FAR_MS: Final = (31_000, 150_000)
#: One of so many delayed ones is.
_FAR_OF: Final = 10
#: Two long ones of one key meet now and then; with fewer keys some would wait for half a dozen others at the end.
_LONG_KEYS: Final = 240
#: One of so many that run in processes takes longer than its worker's drain, and outlives that worker if it can.
_LONG_PROCESS_OF: Final = 20
_LONG_PROCESS_S: Final = 7.0


class Order(NamedTuple):
    """One job as it is to be scheduled."""

    job: CampaignJob
    priority: JobPriority
    delay: timedelta | None


def orders(seed: int, *, long_s: float = 30.0, far: int = 0) -> Iterator[Order]:
    """Jobs without end, the same for the same seed.

    Args:
        seed: decides everything.
        long_s: seconds that the long ones take.
        far: of so many, the first ones, some are put off for minutes.
    """
    dice = random.Random(f"traffic {seed}")
    number = 0
    while True:
        number += 1
        priority = dice.choice(PRIORITIES)
        delay = None
        # Half of each kind that can have one, so that a key meets retries, snoozes and delays as well.
        key = dice.choice(("", f"key-{dice.randrange(_KEYS)}"))
        match dice.choices(range(10), (620, 100, 60, 20, 4, 60, 16, 30, 30, 60))[0]:
            case 0:
                job: CampaignJob = Quick()
            case 1:
                job = InOrder(f"key-{dice.randrange(_KEYS)}", number)
            case 2:
                job = InThread(key)
            case 3:
                job = InProcess(key)
                if not dice.randrange(_LONG_PROCESS_OF):
                    job = InProcess(f"long-{dice.randrange(_LONG_KEYS)}", min(_LONG_PROCESS_S, long_s))
            case 4:
                job = Long(f"long-{dice.randrange(_LONG_KEYS)}", long_s)
            case 5:
                job = FailsThenSucceeds(key, dice.randint(1, 3))
            case 6:
                job = AlwaysFails(key)
            case 7:
                job = Snoozes(key, dice.randint(500, 4_000))
            case 8:
                job = Parent(dice.randint(1, 3))
            case _:
                bounds = _FAR_MS if number <= far and not dice.randrange(_FAR_OF) else (1, 20_000)
                job, delay = Quick(key), timedelta(milliseconds=dice.randint(*bounds))
        yield Order(job, priority, delay)
