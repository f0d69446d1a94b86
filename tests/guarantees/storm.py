"""Which faults happen when, by the seed. Pure.

Out: an endless sequence of faults, each with the pause before it. Whom a fault meets is decided by a number that is
taken modulo whoever is there, so that a seed means the same storm whatever came before.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator
from enum import Enum
from typing import Final, NamedTuple


class Kind(Enum):
    """What can go wrong, or be done on purpose."""

    WORKER_KILL = "worker_kill"
    WORKER_FREEZE = "worker_freeze"
    WORKER_LEAVE = "worker_leave"
    WORKER_JOIN = "worker_join"
    ROLLING_RESTART = "rolling_restart"
    BROKER_KILL = "broker_kill"
    TRANSACTION_LEADER_KILL = "transaction_leader_kill"
    BROKER_FREEZE = "broker_freeze"
    KAFKA_RESTART = "kafka_restart"


class Fault(NamedTuple):
    """One of them."""

    kind: Kind
    #: Seconds of quiet before it.
    pause_s: float
    #: Whom it meets.
    pick: int
    #: How long a frozen or stopped one stays so.
    lasts_s: float


#: How often each comes up. Whatever takes the whole cluster away is rarer: little else can be seen meanwhile.
_WEIGHTS: Final = {
    Kind.WORKER_KILL: 8,
    Kind.WORKER_FREEZE: 4,
    Kind.WORKER_LEAVE: 4,
    Kind.WORKER_JOIN: 4,
    Kind.ROLLING_RESTART: 2,
    Kind.BROKER_KILL: 3,
    Kind.TRANSACTION_LEADER_KILL: 3,
    Kind.BROKER_FREEZE: 3,
    Kind.KAFKA_RESTART: 1,
}


def storm(
    seed: int,
    *,
    pause_s: tuple[float, float] = (1.0, 5.0),
    only: Collection[Kind] = tuple(Kind),
    session_s: float = 6.0,
) -> Iterator[Fault]:
    """Faults without end, the same for the same seed: every kind once in each round, and some more by weight.

    Args:
        seed: decides everything.
        pause_s: bounds of the quiet between two faults.
        only: the kinds that there are.
        session_s: a frozen worker stays so for longer than this, so that it loses its partitions.
    """
    dice = random.Random(f"storm {seed}")
    kinds = [kind for kind in Kind if kind in only]
    while True:
        dice.shuffle(kinds)
        more = dice.choices(kinds, [_WEIGHTS[kind] for kind in kinds], k=len(kinds) // 2)
        for kind in (*kinds, *more):
            longest = {Kind.WORKER_FREEZE: session_s + 4, Kind.BROKER_FREEZE: 8.0}.get(kind, 4.0)
            shortest = session_s + 1 if kind is Kind.WORKER_FREEZE else 0.5
            yield Fault(kind, dice.uniform(*pause_s), dice.randrange(2**16), dice.uniform(shortest, longest))
