"""What topics and brokers must be like for the guarantees to hold. Pure: compares values, talks to nobody.

In:  the specification of topics, and what a cluster says of them and of itself. Out: findings, each with its
remedy.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from schemas.topics import MAX_BATCH_BYTES, TopicSpec

MIN_ISR: Final = "min.insync.replicas"
TRANSACTIONS_VERIFIED: Final = "transaction.partition.verification.enable"
UNCLEAN: Final = "unclean.leader.election.enable"
#: Kafka's own topics that hold committed offsets and open transactions.
INTERNAL_TOPICS: Final = ("__consumer_offsets", "__transaction_state")
#: From so many copies on, one may fail without losing an acknowledged record.
SAFE_COPIES: Final = 3
SAFE_MIN_ISR: Final = 2

_MAX_BYTES: Final = "max.message.bytes"
_AT_LEAST: Final = frozenset({"min.compaction.lag.ms", MIN_ISR, _MAX_BYTES})
_RETENTIONS: Final = frozenset({"retention.ms", "retention.bytes"})

_MAX_INT: Final = 2_147_483_647
_WEEK_MINUTES: Final = 7 * 24 * 60


class Level(enum.StrEnum):
    """How bad a finding is."""

    OK = "ok"
    #: Slower or less robust than it could be.
    WARNING = "warning"
    #: A guarantee does not hold.
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of ``topics check``."""

    level: Level
    subject: str
    fact: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.subject}: {self.fact}" + (f"; {self.remedy}" if self.remedy else "")


@dataclass(frozen=True, slots=True)
class TopicState:
    """What a cluster says of a topic."""

    partitions: int
    #: Copies of its least replicated partition.
    replicas: int
    config: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Cluster:
    """What a cluster says of itself: the least safe value of its brokers, where they differ."""

    cluster_id: str
    brokers: int
    config: Mapping[str, str] = field(default_factory=dict)


def copies(wanted: int | None, brokers: int) -> int:
    """How many copies a new topic gets."""
    if wanted is not None:
        return wanted
    return SAFE_COPIES if brokers >= SAFE_COPIES else 1


def full_config(spec: TopicSpec, replication_factor: int) -> dict[str, str]:
    """The settings of a topic with so many copies."""
    config = {**spec.config, _MAX_BYTES: str(MAX_BATCH_BYTES)}
    if replication_factor >= SAFE_COPIES:
        config[MIN_ISR] = str(SAFE_MIN_ISR)
    return config


def topic_findings(
    specs: Iterable[TopicSpec], actual: Mapping[str, TopicState], wanted_copies: int | None
) -> list[Finding]:
    """What is wrong with topics that exist; missing ones are not looked at."""
    return [
        finding
        for spec in specs
        if (state := actual.get(spec.name)) is not None
        for finding in _one_topic(spec, state, wanted_copies)
    ]


def _one_topic(spec: TopicSpec, state: TopicState, wanted_copies: int | None) -> list[Finding]:
    findings = []
    if state.partitions != spec.partitions:
        findings.append(
            Finding(
                Level.ERROR,
                spec.name,
                f"has {state.partitions} partition(s), not {spec.partitions}",
                "counts never change in place: set RUSTFS_WORKERS_PARTITIONS to what is there, or drain, "
                "delete the topics and create them again"
                if spec.partitions != 1
                else "delete it and create it again",
            )
        )
    if wanted_copies is not None and state.replicas < wanted_copies:
        findings.append(
            Finding(
                Level.ERROR,
                spec.name,
                f"has {state.replicas} copies, not {wanted_copies}",
                "raise them with kafka-reassign-partitions.sh, or set RUSTFS_WORKERS_REPLICATION_FACTOR",
            )
        )
    for name, value in full_config(spec, state.replicas).items():
        is_value = state.config.get(name, "")
        if not _satisfies(name, value, is_value):
            findings.append(
                Finding(
                    Level.ERROR,
                    spec.name,
                    f"{name} is {is_value or 'not set'}, not {value}",
                    _alter(spec.name, name, value),
                )
            )
    if state.replicas > 1 and state.config.get(UNCLEAN) == "true":
        findings.append(
            Finding(
                Level.ERROR,
                spec.name,
                f"{UNCLEAN} is true: a copy that lacks acknowledged records may become the topic's truth",
                _alter(spec.name, UNCLEAN, "false"),
            )
        )
    if int(state.config.get(MIN_ISR, "1")) > state.replicas:
        findings.append(
            Finding(
                Level.ERROR,
                spec.name,
                f"{MIN_ISR} is {state.config[MIN_ISR]} with {state.replicas} copies: nothing can be written",
                _alter(spec.name, MIN_ISR, "1"),
            )
        )
    return findings


def copies_findings(
    specs: Iterable[TopicSpec], actual: Mapping[str, TopicState], brokers: int
) -> list[Finding]:
    """Topics that could have more copies than they have: they were made when there were fewer brokers."""
    if brokers < SAFE_COPIES:
        return []
    return [
        Finding(
            Level.WARNING,
            spec.name,
            f"has {state.replicas} copies though there are {brokers} brokers: a disk lost is jobs lost",
            "raise them with kafka-reassign-partitions.sh",
        )
        for spec in specs
        if (state := actual.get(spec.name)) is not None and state.replicas < SAFE_COPIES
    ]


def internal_findings(actual: Mapping[str, TopicState], brokers: int) -> list[Finding]:
    """Kafka's own topics: an acknowledged offset that vanishes with a broker is a job that runs twice."""
    findings = []
    for name in INTERNAL_TOPICS:
        state = actual.get(name)
        if state is None:
            continue
        if brokers >= SAFE_COPIES and state.replicas < SAFE_COPIES:
            findings.append(
                Finding(
                    Level.ERROR,
                    name,
                    f"has {state.replicas} copies though there are {brokers} brokers",
                    "raise them with kafka-reassign-partitions.sh",
                )
            )
        if state.replicas >= SAFE_COPIES and int(state.config.get(MIN_ISR, "1")) < SAFE_MIN_ISR:
            findings.append(
                Finding(
                    Level.ERROR,
                    name,
                    f"{MIN_ISR} is {state.config.get(MIN_ISR, '1')}, not {SAFE_MIN_ISR}",
                    _alter(name, MIN_ISR, str(SAFE_MIN_ISR)),
                )
            )
    return findings


def broker_findings(cluster: Cluster, session_timeout_ms: int | None) -> list[Finding]:
    """Settings of the brokers that decide how long things take, and how long offsets are kept."""
    retention = _number(cluster.config, "offsets.retention.minutes", _WEEK_MINUTES)
    session = session_timeout_ms or _number(cluster.config, "group.consumer.session.timeout.ms", 45_000)
    heartbeat = _number(cluster.config, "group.consumer.heartbeat.interval.ms", 5_000)
    cleanup = _number(cluster.config, "transaction.abort.timed.out.transaction.cleanup.interval.ms", 10_000)
    days = retention / (24 * 60)
    return [
        _judge(
            "offsets.retention.minutes",
            retention >= _MAX_INT,
            f"{retention:,}: committed offsets are never forgotten"
            if retention >= _MAX_INT
            else f"{retention:,}: {days:g} days after the last worker left its offsets are forgotten, and "
            "workers refuse to start",
            f"set offsets.retention.minutes={_MAX_INT} on the brokers",
        ),
        _judge(
            "group session timeout",
            session <= 10_000,  # noqa: PLR2004 - the bar of the guarantees' own tests
            f"{session / 1000:g} s until a dead worker's jobs are taken over",
            "set group.consumer.min.session.timeout.ms=6000 and group.consumer.session.timeout.ms=6000 "
            "on the brokers",
        ),
        _judge(
            "group heartbeat interval",
            heartbeat <= 1_000,  # noqa: PLR2004
            f"{heartbeat / 1000:g} s: a join or leave takes one or two of them",
            "set group.consumer.min.heartbeat.interval.ms=500 and group.consumer.heartbeat.interval.ms=500 "
            "on the brokers",
        ),
        _judge(
            "transaction clean-up interval",
            cleanup <= 1_000,  # noqa: PLR2004
            f"{cleanup / 1000:g} s: so long, beyond its time-out, a dead worker's transaction hides records",
            "set transaction.abort.timed.out.transaction.cleanup.interval.ms=1000 on the brokers",
        ),
        *_unverified(cluster),
    ]


def _unverified(cluster: Cluster) -> list[Finding]:
    """Kafka's default, since 3.7, is not worth a line: KIP-890, part 1.

    Without it a partition takes whatever record of a transaction comes first. If one was refused before that, the client library
    concludes from the next one's answer that both were written.
    """
    if cluster.config.get(TRANSACTIONS_VERIFIED) != "false":
        return []
    return [
        Finding(
            Level.ERROR,
            TRANSACTIONS_VERIFIED,
            "false: a transaction can be committed without its first record, and that job is lost",
            f"set {TRANSACTIONS_VERIFIED}=true on the brokers; it can be changed while they run",
        )
    ]


def problems(findings: Sequence[Finding]) -> list[Finding]:
    """Those that break a guarantee."""
    return [finding for finding in findings if finding.level is Level.ERROR]


def _judge(subject: str, good: bool, fact: str, remedy: str) -> Finding:  # noqa: FBT001 - the verdict
    return Finding(Level.OK, subject, fact) if good else Finding(Level.WARNING, subject, fact, remedy)


def _satisfies(name: str, wanted: str, actual: str) -> bool:
    if name in _AT_LEAST:
        return actual.isdigit() and int(actual) >= int(wanted)
    if name in _RETENTIONS:
        # Kept for longer is as good; -1 is for ever.
        if wanted == "-1" or actual == "-1":
            return actual == "-1"
        return actual.isdigit() and int(actual) >= int(wanted)
    if name == "cleanup.policy":
        return _parts(actual) == _parts(wanted)
    return actual == wanted


def _parts(policy: str) -> set[str]:
    return {part.strip() for part in policy.split(",") if part.strip()}


def _number(config: Mapping[str, str], name: str, default: int) -> int:
    value = config.get(name, "")
    return int(value) if value.lstrip("-").isdigit() else default


def _alter(topic: str, name: str, value: str) -> str:
    return f"kafka-configs.sh --alter --entity-type topics --entity-name {topic} --add-config {name}={value}"
