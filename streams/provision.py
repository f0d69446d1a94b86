"""Create what a deployment needs on a cluster, and verify what is there.

In:  settings. Out: topics that keep the guarantees and an initialised group, or a ``TopicsMismatch`` that
lists each difference with its remedy. Nothing that exists is changed, but for Kafka's own topics (min ISR).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import structlog
from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # it has no __all__
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    ResourceType,
)

from schemas.errors import GroupNotInitialised, PipelineError, TopicsMismatch
from schemas.offsetmap import parse
from schemas.topics import TopicSpec
from streams import transactional_ids
from streams.clients import KafkaRefused, admin_config, kafka_failed, producer_config
from streams.group_setup import GroupState, group_state, set_up_group
from streams.settings import Settings
from streams.topic_rules import (
    INTERNAL_TOPICS,
    MIN_ISR,
    SAFE_COPIES,
    SAFE_MIN_ISR,
    TRANSACTIONS_VERIFIED,
    Cluster,
    Finding,
    Level,
    TopicState,
    broker_findings,
    copies,
    copies_findings,
    full_config,
    internal_findings,
    problems,
    topic_findings,
)

log = structlog.get_logger("rustfs_workers.provision")

_KAFKA_S: Final = 30.0
_LEADER_PAUSE_S: Final = 0.05
#: Broker settings that ``check`` looks at.
_BROKER_SETTINGS: Final = frozenset(
    {
        "offsets.retention.minutes",
        "group.consumer.session.timeout.ms",
        "group.consumer.heartbeat.interval.ms",
        "transaction.abort.timed.out.transaction.cleanup.interval.ms",
    }
)
#: And those that must not be "false".
_BROKER_SWITCHES: Final = frozenset({TRANSACTIONS_VERIFIED})
#: For these a smaller value is the less safe one.
_SMALLER_IS_WORSE: Final = frozenset({"offsets.retention.minutes"})


@dataclass(frozen=True, slots=True)
class ProvisionReport:
    """What ``provision`` found and did."""

    cluster_id: str
    replication_factor: int
    created: tuple[str, ...]
    existing: tuple[str, ...]
    #: Whether this call gave the workers' group its starting point.
    group_initialised: bool
    warnings: tuple[Finding, ...] = ()


def provision(settings: Settings) -> ProvisionReport:
    """Make the deployment ready, or say why it cannot be. Repeatable, safe beside others. Blocks.

    Raises:
        KafkaUnreachable: no broker answered in time.
        TopicsMismatch: topics exist with settings that break a guarantee; nothing was created.
        GroupNotInitialised: the group has worked, but lost offsets.
    """
    admin = AdminClient(admin_config(settings))
    cluster = _describe_cluster(settings, admin)
    specs = settings.topics.specs(settings.partitions)
    before = _describe_topics(settings, admin, [spec.name for spec in specs])
    _refuse(topic_findings(specs, before, settings.replication_factor))
    factor = copies(settings.replication_factor, cluster.brokers)
    missing = [spec for spec in specs if spec.name not in before]
    if missing and settings.replication_factor is None and cluster.brokers == SAFE_COPIES - 1:
        raise TopicsMismatch(
            f"{cluster.brokers} brokers answer: topics made now would have one copy, for good. If one of {SAFE_COPIES} is down, start "
            "it first; if there are no more, say how many copies with RUSTFS_WORKERS_REPLICATION_FACTOR"
        )
    created = _create(settings, admin, missing, factor)
    _wait_for_leaders(settings, admin, specs)
    # Another one may have created them meanwhile, in its own way.
    after = _describe_topics(settings, admin, [spec.name for spec in specs])
    _refuse(topic_findings(specs, after, settings.replication_factor))
    if factor >= SAFE_COPIES:
        _secure_internal_topics(settings, admin)
        internal = internal_findings(_describe_topics(settings, admin, INTERNAL_TOPICS), cluster.brokers)
        _refuse(internal)
    initialised = set_up_group(settings, admin, cluster.cluster_id)
    log.info(
        "topics ready",
        created=len(created),
        existing=len(before),
        replication_factor=factor,
        group_initialised=initialised,
    )
    return ProvisionReport(
        cluster_id=cluster.cluster_id,
        replication_factor=factor,
        created=tuple(created),
        existing=tuple(spec.name for spec in specs if spec.name not in created),
        group_initialised=initialised,
        warnings=tuple(copies_findings(specs, after, cluster.brokers)),
    )


def check(settings: Settings) -> list[Finding]:
    """Everything that ``topics check`` tells; changes nothing. Blocks.

    Raises:
        KafkaUnreachable: no broker answered in time.
    """
    admin = AdminClient(admin_config(settings))
    cluster = _describe_cluster(settings, admin)
    specs = settings.topics.specs(settings.partitions)
    actual = _describe_topics(settings, admin, [spec.name for spec in specs])
    missing = [spec.name for spec in specs if spec.name not in actual]
    findings = [
        Finding(Level.ERROR, name, "does not exist", "create it with `rustfs-workers topics create`")
        for name in missing
    ]
    findings += topic_findings(specs, actual, settings.replication_factor)
    if not findings:
        findings.append(Finding(Level.OK, "topics", f"{len(specs)} topics are as they must be"))
    findings += copies_findings(specs, actual, cluster.brokers)
    findings += internal_findings(_describe_topics(settings, admin, INTERNAL_TOPICS), cluster.brokers)
    if not missing:
        findings += look_at_group(settings, admin, cluster.cluster_id)
    try:
        times = group_times(settings, admin)
    except KafkaRefused as error:
        times = None
        findings.append(
            Finding(Level.WARNING, settings.topics.group, f"its session is not known: {error}", ASK_FOR_TIMES)
        )
    return [*findings, *broker_findings(cluster, times.session_ms if times is not None else None)]


def look_at_group(settings: Settings, admin: AdminClient, cluster_id: str) -> list[Finding]:
    """What there is of the group, and whether workers can start. Blocks.

    Raises:
        KafkaUnreachable: no broker answered in time.
    """
    try:
        state = group_state(settings, admin)
    except GroupNotInitialised as error:
        fact, _, remedy = str(error).partition("; ")
        return [Finding(Level.ERROR, settings.topics.group, fact, remedy)]
    return group_findings(settings, state, cluster_id)


def group_findings(settings: Settings, state: GroupState, cluster_id: str) -> list[Finding]:
    """Whether workers can start."""
    name = settings.topics.group
    if state.marker is None:
        return [
            Finding(
                Level.ERROR,
                name,
                "has no starting point yet",
                "give it one with `rustfs-workers topics create`",
            )
        ]
    findings = []
    if state.marker.cluster_id != cluster_id:
        findings.append(
            Finding(
                Level.ERROR,
                name,
                f"was set up on cluster {state.marker.cluster_id}, and this is {cluster_id}",
                "use another RUSTFS_WORKERS_TOPIC_PREFIX",
            )
        )
    bad = [
        f"{topic}/{number}"
        for topic, number in state.partitions
        if not _readable(state.committed.get((topic, number)))
    ]
    if bad:
        findings.append(
            Finding(
                Level.ERROR,
                name,
                f"{len(bad)} partition(s) have no committed offset with a map ({', '.join(bad[:10])}): "
                "it expired, or somebody else commits for this group; workers refuse to start",
                "use another RUSTFS_WORKERS_TOPIC_PREFIX; offsets.retention.minutes at its maximum keeps it from "
                "happening again",
            )
        )
    return findings or [Finding(Level.OK, name, f"set up at {state.marker.created_at}")]


#: What brokers that know nothing of them say.
_NO_GROUP_SETTINGS: Final = frozenset({KafkaError.INVALID_REQUEST, KafkaError.UNSUPPORTED_VERSION})
#: A worker that takes a session of six seconds for one of 45 goes on for 23 s when others have its partitions already.
ASK_FOR_TIMES: Final = (
    "permit DESCRIBE_CONFIGS on the group, or set session_timeout_s to what the brokers have as "
    "group.consumer.session.timeout.ms"
)


@dataclass(frozen=True, slots=True)
class GroupTimes:
    """What Kafka grants the members of a group, and asks of them."""

    #: After so long a silence it gives a member up.
    session_ms: int
    #: So often it wants to hear of each.
    heartbeat_ms: int


def group_times(settings: Settings, admin: AdminClient) -> GroupTimes | None:
    """Those of the workers' group; None: this Kafka has no settings for groups. Blocks.

    Raises:
        KafkaUnreachable: no answer. KafkaRefused: we may not ask.
    """
    resource = ConfigResource(ResourceType.GROUP, settings.topics.group)
    try:
        config = admin.describe_configs([resource], request_timeout=_KAFKA_S)[resource].result()
    except KafkaException as error:
        if error.args[0].code() in _NO_GROUP_SETTINGS:
            return None
        raise kafka_failed(settings, error, _KAFKA_S) from error
    found = [config.get(f"consumer.{name}.ms") for name in ("session.timeout", "heartbeat.interval")]
    session, heartbeat = [str(entry.value) if entry is not None else "" for entry in found]
    return GroupTimes(int(session), int(heartbeat)) if session.isdigit() and heartbeat.isdigit() else None


def _readable(committed: tuple[int, str] | None) -> bool:
    if committed is None:
        return False
    try:
        parse(*committed)
    except GroupNotInitialised:
        return False
    return True


def _refuse(findings: list[Finding]) -> None:
    wrong = problems(findings)
    if wrong:
        listed = "".join(f"\n  {finding}" for finding in wrong)
        raise TopicsMismatch(f"{len(wrong)} setting(s) of existing topics would break a guarantee:{listed}")


def _describe_cluster(settings: Settings, admin: AdminClient) -> Cluster:
    try:
        described = admin.describe_cluster(request_timeout=_KAFKA_S).result()
        # One call for each: librdkafka refuses to ask several brokers in one. All of them, then their answers.
        answers = [
            admin.describe_configs(
                [ConfigResource(ResourceType.BROKER, str(node.id))], request_timeout=_KAFKA_S
            )
            for node in described.nodes
        ]
        configs = [config for answer in answers for config in map(_config_if_allowed, answer.values())]
    except KafkaException as error:
        raise kafka_failed(settings, error, _KAFKA_S) from error
    worst: dict[str, str] = {}
    for name in _BROKER_SETTINGS:
        texts = [str(config[name].value) for config in configs if name in config]
        values = [int(text) for text in texts if text.isdigit()]
        if values:
            worst[name] = str(min(values) if name in _SMALLER_IS_WORSE else max(values))
    for name in _BROKER_SWITCHES:
        if any(name in config and config[name].value == "false" for config in configs):
            worst[name] = "false"
    return Cluster(str(described.cluster_id), len(described.nodes), worst)


def _config_if_allowed(answer: Any) -> Mapping[str, ConfigEntry]:
    """A broker's settings; none where we may not see them: topics can be provisioned all the same."""
    try:
        config: Mapping[str, ConfigEntry] = answer.result()
    except KafkaException as error:
        if error.args[0].code() == KafkaError.CLUSTER_AUTHORIZATION_FAILED:
            return {}
        raise
    return config


def _describe_topics(settings: Settings, admin: AdminClient, names: Iterable[str]) -> dict[str, TopicState]:
    """Those that exist."""
    names = list(names)
    try:
        known = admin.list_topics(timeout=_KAFKA_S).topics
        there = [name for name in names if name in known and known[name].partitions]
        resources = [ConfigResource(ResourceType.TOPIC, name) for name in there]
        answers = admin.describe_configs(resources, request_timeout=_KAFKA_S) if resources else {}
        configs = {resource.name: _config_or_none(answer) for resource, answer in answers.items()}
    except KafkaException as error:
        raise kafka_failed(settings, error, _KAFKA_S) from error
    return {
        name: TopicState(
            partitions=len(known[name].partitions),
            replicas=min(len(partition.replicas) for partition in known[name].partitions.values()),
            config=config,
        )
        for name in there
        if (config := configs[name]) is not None
    }


def _config_or_none(answer: Any) -> Mapping[str, str] | None:
    """None: deleted between two questions."""
    try:
        return {name: str(entry.value) for name, entry in answer.result().items()}
    except KafkaException as error:
        if error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
            return None
        raise


def _create(settings: Settings, admin: AdminClient, specs: list[TopicSpec], factor: int) -> list[str]:
    if not specs:
        return []
    new = [
        NewTopic(
            spec.name,
            num_partitions=spec.partitions,
            replication_factor=factor,
            config=full_config(spec, factor),
        )
        for spec in specs
    ]
    created = []
    for name, answer in admin.create_topics(
        new, operation_timeout=_KAFKA_S, request_timeout=_KAFKA_S
    ).items():
        try:
            answer.result()
        except KafkaException as error:
            code = error.args[0].code()
            if code == KafkaError.TOPIC_ALREADY_EXISTS:
                continue  # another one was quicker
            if code in (KafkaError.INVALID_REPLICATION_FACTOR, KafkaError.POLICY_VIOLATION):
                raise TopicsMismatch(
                    f"{name} cannot be created with {factor} copies: {error.args[0].str()}; "
                    "set RUSTFS_WORKERS_REPLICATION_FACTOR"
                ) from error
            if code in (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED):
                raise TopicsMismatch(
                    f"{name} cannot be created: {error.args[0].str()}; let an administrator run "
                    "`rustfs-workers topics create`"
                ) from error
            raise kafka_failed(settings, error, _KAFKA_S) from error
        created.append(name)
    return created


def _wait_for_leaders(settings: Settings, admin: AdminClient, specs: Iterable[TopicSpec]) -> None:
    """A topic that has just been created is not usable at once."""
    wanted = {spec.name for spec in specs}
    deadline = time.monotonic() + _KAFKA_S
    while True:
        try:
            known = admin.list_topics(timeout=_KAFKA_S).topics
        except KafkaException as error:
            raise kafka_failed(settings, error, _KAFKA_S) from error
        led = {
            name
            for name, topic in known.items()
            if topic.partitions and all(partition.leader >= 0 for partition in topic.partitions.values())
        }
        if wanted <= led:
            return
        if time.monotonic() > deadline:
            raise PipelineError(
                f"not every partition has a leader after {_KAFKA_S:.0f} s: {', '.join(sorted(wanted - led))}; look whether all brokers run, "
                "and whether this user may describe these topics"
            )
        time.sleep(_LEADER_PAUSE_S)


def _secure_internal_topics(settings: Settings, admin: AdminClient) -> None:
    """Kafka makes its own topics when they are first needed, with min ISR 1 whatever the brokers' default."""
    # They come into being when somebody asks for their coordinators, as these two lines do.
    producer = Producer(
        producer_config(
            settings, transactional_id=transactional_ids.of_provisioning(settings.topics), linger_ms=0
        )
    )
    try:
        producer.init_transactions(_KAFKA_S)
        group_state(settings, admin)
        there = _describe_topics(settings, admin, INTERNAL_TOPICS)
        weak = [
            name
            for name, state in there.items()
            if state.replicas >= SAFE_COPIES and int(state.config.get(MIN_ISR, "1")) < SAFE_MIN_ISR
        ]
        resources = [
            ConfigResource(
                ResourceType.TOPIC,
                name,
                incremental_configs=[
                    ConfigEntry(MIN_ISR, str(SAFE_MIN_ISR), incremental_operation=AlterConfigOpType.SET)
                ],
            )
            for name in weak
        ]
        if resources:
            for answer in admin.incremental_alter_configs(resources, request_timeout=_KAFKA_S).values():
                answer.result()
            log.info("min ISR raised", topics=weak, value=SAFE_MIN_ISR)
    except KafkaException as error:
        raise kafka_failed(settings, error, _KAFKA_S) from error
