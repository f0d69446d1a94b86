"""How many partitions a deployment's topics have: the same number everywhere, or one key has two owners.

In:  what a cluster says of its topics. Out: the number, or a ``TopicsMismatch`` that says which topic differs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sized
from typing import Protocol

from schemas.errors import TopicsMismatch

REMEDY = (
    "counts never change in place: stop producers and workers, let the jobs end, and create the topics anew "
    "with `rustfs-workers topics create`; see `rustfs-workers topics check`"
)


class TopicKnown(Protocol):
    """What confluent-kafka's ``list_topics`` tells of a topic."""

    @property
    def partitions(self) -> Sized:
        """Its partitions by number."""
        ...


def equal_count(known: Mapping[str, TopicKnown], names: Iterable[str], also: Iterable[str] = ()) -> int:
    """The number of partitions that all of ``names`` have; topics in ``also`` need only exist.

    Raises:
        TopicsMismatch: one does not exist, or has another number than most.
    """
    counts = {name: len(known[name].partitions) if name in known else 0 for name in names}
    missing = [name for name, count in counts.items() if not count]
    missing += [name for name in also if name not in known]
    if missing:
        raise TopicsMismatch(
            f"these topics do not exist: {', '.join(missing)}; "
            "create them with `rustfs-workers topics create`"
        )
    ((usual, _),) = Counter(counts.values()).most_common(1)
    others = [f"{name} has {count}" for name, count in counts.items() if count != usual]
    if others:
        raise TopicsMismatch(
            f"job and retry topics have unequal partition counts: {', '.join(others)}, the others {usual}; "
            f"one object's jobs would run side by side. {REMEDY}"
        )
    return usual


def changed(before: int, now: int) -> TopicsMismatch:
    """What to raise where the number is another one than at the start."""
    return TopicsMismatch(
        f"the job and retry topics have {now} partitions now, and had {before} when this worker started: "
        f"keys have moved to other partitions, and one object's jobs would run side by side. {REMEDY}"
    )
