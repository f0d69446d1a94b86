"""Names and duties of every topic.

In:  a prefix and a partition count. Out: topic names, delay tiers, and the specification that
provisioning creates and verifies. Nothing here talks to Kafka.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

#: One partition: the name of its topic, and its number.
Partition = tuple[str, int]

DEFAULT_PREFIX = "rustfs."
DEFAULT_PARTITIONS = 12
#: Largest batch of records that a topic takes, in bytes; Kafka's own default. Producers keep to it.
MAX_BATCH_BYTES = 1_048_588

_DAY_MS = 86_400_000


class JobPriority(enum.StrEnum):
    """The four priorities, most urgent first; each is a topic."""

    CRITICAL = "critical"
    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"

    @classmethod
    def _missing_(cls, value: object) -> JobPriority | None:
        return cls.__members__.get(value.upper()) if isinstance(value, str) else None


PRIORITIES: tuple[JobPriority, ...] = tuple(JobPriority)


@dataclass(frozen=True)
class Tier:
    """A retry topic: every record in it waits for the same delay, so its partitions are in due order."""

    name: str
    delay_ms: int


TIERS: tuple[Tier, ...] = (
    Tier("1s", 1_000),
    Tier("5s", 5_000),
    Tier("30s", 30_000),
    Tier("2m", 120_000),
    Tier("10m", 600_000),
    Tier("1h", 3_600_000),
    Tier("6h", 21_600_000),
    Tier("1d", _DAY_MS),
)


def tier_for(remaining_ms: int) -> Tier | None:
    """The largest tier that is not longer than what remains; None under a second (wait in memory).

    An arbitrary time is reached by asking again after each hop, so no job ever starts early.
    """
    chosen: Tier | None = None
    for tier in TIERS:
        if tier.delay_ms > remaining_ms:
            break
        chosen = tier
    return chosen


@dataclass(frozen=True)
class TopicSpec:
    """What provisioning creates, and verifies where the topic exists already."""

    name: str
    partitions: int
    config: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Topics:
    """All topic names under one prefix. Deployments that must not see each other use different prefixes."""

    prefix: str = DEFAULT_PREFIX

    @cached_property
    def jobs(self) -> Mapping[JobPriority, str]:
        """Priority to job topic."""
        return {priority: f"{self.prefix}jobs.{priority.value}" for priority in PRIORITIES}

    @cached_property
    def retry(self) -> Mapping[Tier, str]:
        """Delay tier to retry topic."""
        return {tier: f"{self.prefix}jobs.retry.{tier.name}" for tier in TIERS}

    @cached_property
    def priority_of(self) -> Mapping[str, JobPriority]:
        """Job topic to priority."""
        return {name: priority for priority, name in self.jobs.items()}

    @cached_property
    def tier_of(self) -> Mapping[str, Tier]:
        """Retry topic to tier."""
        return {name: tier for tier, name in self.retry.items()}

    @cached_property
    def consumed(self) -> tuple[str, ...]:
        """What a worker's group subscribes to: the job topics and the retry topics."""
        return (*self.jobs.values(), *self.retry.values())

    @property
    def dlq(self) -> str:
        """Dead letters."""
        return f"{self.prefix}jobs.dlq"

    @property
    def status(self) -> str:
        """State changes, keyed by job id, compacted."""
        return f"{self.prefix}jobs.status"

    @property
    def transactional(self) -> tuple[str, ...]:
        """What workers write in the transactions that carry their offsets; schemas of child jobs apart."""
        return (*self.consumed, self.dlq, self.status)

    @property
    def commands(self) -> str:
        """The marker of an initialised group; later what operators say: cancel, pause, limits."""
        return f"{self.prefix}jobs.commands"

    @property
    def reports(self) -> str:
        """One report per worker per second."""
        return f"{self.prefix}workers.reports"

    @property
    def schemas(self) -> str:
        """Fingerprint to Avro schema."""
        return f"{self.prefix}schemas"

    @property
    def group(self) -> str:
        """The consumer group of the workers."""
        return f"{self.prefix}workers"

    def specs(self, partitions: int = DEFAULT_PARTITIONS) -> tuple[TopicSpec, ...]:
        """Every topic, with the settings that the guarantees depend on."""
        # A job that waits longer than a retention would be lost: job and retry topics never expire by time.
        kept = {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"}
        # The tier's delay counts from the broker's clock, not from the producer's.
        tier = {**kept, "message.timestamp.type": "LogAppendTime"}
        return (
            *(TopicSpec(name, partitions, kept) for name in self.jobs.values()),
            *(TopicSpec(name, partitions, tier) for name in self.retry.values()),
            TopicSpec(
                self.dlq,
                partitions,
                {"cleanup.policy": "delete", "retention.ms": str(30 * _DAY_MS), "retention.bytes": "-1"},
            ),
            TopicSpec(
                self.status, partitions, {"cleanup.policy": "compact", "min.compaction.lag.ms": str(_DAY_MS)}
            ),
            TopicSpec(self.commands, 1, {"cleanup.policy": "compact"}),
            TopicSpec(
                self.reports,
                1,
                {
                    "cleanup.policy": "delete",
                    "retention.ms": str(_DAY_MS),
                    "message.timestamp.type": "LogAppendTime",
                },
            ),
            TopicSpec(self.schemas, 1, {"cleanup.policy": "compact"}),
        )
