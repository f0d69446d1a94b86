from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from confluent_kafka.admin import AdminClient

from schemas.errors import GroupNotInitialised
from schemas.offsetmap import EMPTY_MAP, OffsetMap
from schemas.topics import Topics, TopicSpec
from streams import group_setup
from streams.group_setup import GroupState, Marker, partitions_to_start
from streams.provision import group_findings, look_at_group
from streams.settings import load_settings
from streams.topic_rules import (
    TRANSACTIONS_VERIFIED,
    Cluster,
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

pytestmark = pytest.mark.job_processing

SPECS = Topics("p.").specs(12)


def as_specified(spec: TopicSpec, replicas: int = 1) -> TopicState:
    return TopicState(spec.partitions, replicas, {"min.insync.replicas": "1", **full_config(spec, replicas)})


def spec_of(name: str) -> TopicSpec:
    return next(spec for spec in SPECS if spec.name == name)


def facts(name: str, state: TopicState, wanted_copies: int | None = None) -> list[str]:
    return [finding.fact for finding in topic_findings([spec_of(name)], {name: state}, wanted_copies)]


def test_topics_as_specified_are_fine() -> None:
    for replicas in (1, 3):
        actual = {spec.name: as_specified(spec, replicas) for spec in SPECS}
        assert topic_findings(SPECS, actual, replicas) == []


def test_missing_topics_are_not_differences() -> None:
    assert topic_findings(SPECS, {}, None) == []


def test_a_job_topic_that_expires_by_time_loses_jobs() -> None:
    state = as_specified(spec_of("p.jobs.normal"))
    assert facts("p.jobs.normal", replace(state, config={**state.config, "retention.ms": "604800000"})) == [
        "retention.ms is 604800000, not -1"
    ]


def test_dead_letters_may_be_kept_for_longer_but_not_for_less() -> None:
    state = as_specified(spec_of("p.jobs.dlq"))
    for kept, wrong in (("-1", 0), ("9999999999999", 0), ("1000", 1)):
        assert (
            len(facts("p.jobs.dlq", replace(state, config={**state.config, "retention.ms": kept}))) == wrong
        )


def test_dead_letters_may_not_make_room_for_others() -> None:
    """A limit that the brokers have for all topics holds for this one as well."""
    state = as_specified(spec_of("p.jobs.dlq"))
    config = {**state.config, "retention.bytes": "1073741824"}
    assert facts("p.jobs.dlq", replace(state, config=config)) == ["retention.bytes is 1073741824, not -1"]


def test_compaction_of_jobs_and_another_clock_are_refused() -> None:
    state = as_specified(spec_of("p.jobs.retry.1s"))
    config = {**state.config, "cleanup.policy": "compact", "message.timestamp.type": "CreateTime"}
    assert len(facts("p.jobs.retry.1s", replace(state, config=config))) == 2


def test_a_topic_that_takes_only_small_records_is_refused() -> None:
    """Its jobs would be refused one by one: a retry or a dead letter, only when it is too late to tell anybody."""
    for spec in SPECS:
        state = as_specified(spec)
        for most, wrong in (("1048587", 1), ("1048588", 0), ("10485760", 0)):
            found = facts(spec.name, replace(state, config={**state.config, "max.message.bytes": most}))
            assert found == [f"max.message.bytes is {most}, not 1048588"] * wrong


def test_partition_counts_never_change_in_place() -> None:
    (finding,) = topic_findings(
        [spec_of("p.jobs.low")],
        {"p.jobs.low": replace(as_specified(spec_of("p.jobs.low")), partitions=6)},
        None,
    )
    assert "6 partition(s), not 12" in finding.fact
    assert "RUSTFS_WORKERS_PARTITIONS" in finding.remedy


def test_three_copies_need_two_that_are_in_sync() -> None:
    state = as_specified(spec_of("p.jobs.low"), 3)
    assert facts("p.jobs.low", replace(state, config={**state.config, "min.insync.replicas": "1"})) == [
        "min.insync.replicas is 1, not 2"
    ]


@pytest.mark.parametrize(("replicas", "wrong"), [(1, 0), (3, 1)])
def test_a_copy_that_lacks_acknowledged_jobs_may_not_lead(replicas: int, wrong: int) -> None:
    for spec in SPECS:
        state = as_specified(spec, replicas)
        found = facts(
            spec.name, replace(state, config={**state.config, "unclean.leader.election.enable": "true"})
        )
        assert [fact.startswith("unclean.leader.election.enable is true") for fact in found] == [True] * wrong


def test_more_in_sync_than_copies_means_that_nothing_can_be_written() -> None:
    state = as_specified(spec_of("p.jobs.low"))
    (fact,) = facts("p.jobs.low", replace(state, config={**state.config, "min.insync.replicas": "2"}))
    assert "nothing can be written" in fact


def test_fewer_copies_than_asked_for_is_an_error_and_than_possible_a_warning() -> None:
    state = as_specified(spec_of("p.jobs.low"))
    assert facts("p.jobs.low", state, 3) == ["has 1 copies, not 3"]
    assert facts("p.jobs.low", state, None) == []
    (warning,) = copies_findings([spec_of("p.jobs.low")], {"p.jobs.low": state}, 3)
    assert warning.level is Level.WARNING
    assert copies_findings([spec_of("p.jobs.low")], {"p.jobs.low": state}, 2) == []


def test_new_topics_get_three_copies_where_there_are_three_brokers() -> None:
    assert [copies(None, 1), copies(None, 2), copies(None, 3), copies(None, 5), copies(2, 5)] == [
        1,
        1,
        3,
        3,
        2,
    ]


def test_kafkas_own_topics_are_looked_at_where_a_broker_may_fail() -> None:
    weak = {"__consumer_offsets": TopicState(50, 3, {"min.insync.replicas": "1"})}
    assert len(problems(internal_findings(weak, 3))) == 1
    assert internal_findings({"__consumer_offsets": TopicState(50, 1, {"min.insync.replicas": "1"})}, 1) == []
    assert len(internal_findings({"__transaction_state": TopicState(50, 1, {})}, 3)) == 1


def test_broker_settings_are_judged() -> None:
    defaults = broker_findings(Cluster("c", 1), None)
    assert [finding.level for finding in defaults] == [Level.WARNING] * 4
    assert all(finding.remedy for finding in defaults)
    ours = {
        "offsets.retention.minutes": "2147483647",
        "group.consumer.session.timeout.ms": "6000",
        "group.consumer.heartbeat.interval.ms": "500",
        "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
    }
    assert [finding.level for finding in broker_findings(Cluster("c", 1, ours), None)] == [Level.OK] * 4
    assert broker_findings(Cluster("c", 1, ours), 45_000)[1].level is Level.WARNING
    *_, unsafe = broker_findings(Cluster("c", 1, ours | {TRANSACTIONS_VERIFIED: "false"}), None)
    assert (unsafe.level, unsafe.subject) == (Level.ERROR, TRANSACTIONS_VERIFIED)


PARTITIONS = (("a", 0), ("a", 1))
HERE = Marker("today", "c")
BOTH = dict.fromkeys(PARTITIONS, (7, EMPTY_MAP))
WORKED = OffsetMap(5, start_limit=9, clean=False, incarnation="x").metadata()


def test_a_new_group_starts_everywhere() -> None:
    assert partitions_to_start(GroupState(None, PARTITIONS, {}), "g") == PARTITIONS


def test_a_group_that_was_set_up_is_left_alone_even_if_it_lost_offsets() -> None:
    """What has no commit after that has lost it: a start at the beginning would run finished jobs again."""
    assert partitions_to_start(GroupState(Marker("", "c"), PARTITIONS, {}), "g") == ()


def test_a_group_without_a_marker_that_has_all_its_offsets_only_needs_the_marker() -> None:
    committed = dict.fromkeys(PARTITIONS, (5, WORKED))
    assert partitions_to_start(GroupState(None, PARTITIONS, committed), "g") == ()


def test_a_group_that_has_worked_and_lacks_an_offset_is_refused_by_name() -> None:
    with pytest.raises(GroupNotInitialised, match="a/1"):
        partitions_to_start(GroupState(None, PARTITIONS, {("a", 0): (5, WORKED)}), "g")


def test_an_interrupted_start_is_completed() -> None:
    assert partitions_to_start(GroupState(None, PARTITIONS, {("a", 0): (0, EMPTY_MAP)}), "g") == (("a", 1),)


@pytest.mark.parametrize(
    ("state", "level", "words"),
    [
        (GroupState(HERE, PARTITIONS, BOTH), Level.OK, "set up at today"),
        (GroupState(None, PARTITIONS, BOTH), Level.ERROR, "no starting point yet"),
        (
            GroupState(Marker("today", "d"), PARTITIONS, BOTH),
            Level.ERROR,
            "was set up on cluster d, and this is c",
        ),
        (GroupState(HERE, PARTITIONS, {("a", 0): (7, EMPTY_MAP)}), Level.ERROR, r"1 partition\(s\).*a/1"),
        (GroupState(HERE, PARTITIONS, BOTH | {("a", 0): (7, "")}), Level.ERROR, r"1 partition\(s\).*a/0"),
    ],
    ids=["ready", "new", "another cluster", "an offset expired", "a foreign commit"],
)
def test_whether_workers_can_start_is_told(state: GroupState, level: Level, words: str) -> None:
    (finding,) = group_findings(load_settings(), state, "c")
    assert finding.level is level
    assert re.search(words, str(finding))


def test_a_marker_that_cannot_be_read_is_a_finding_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else wrote to ``jobs.commands``: whoever looks for the reason wants all the other findings too."""
    settings = load_settings(kafka_bootstrap_servers="127.0.0.1:1", topic_prefix="p.")

    def scan(*arguments: Any, **_: object) -> SimpleNamespace:
        arguments[2](SimpleNamespace(key=lambda: b"group/p.workers", value=lambda: b"not json"))
        return SimpleNamespace(complete=True)

    monkeypatch.setattr(group_setup, "partitions_of", lambda *_: [])
    monkeypatch.setattr(group_setup, "committed_offsets", lambda *_, **__: {})
    monkeypatch.setattr(group_setup, "scan", scan)

    (finding,) = look_at_group(settings, cast("AdminClient", None), "a-cluster")

    assert (finding.level, finding.subject) == (Level.ERROR, "p.workers")
    assert "p.jobs.commands cannot be read" in finding.fact
    assert "tombstone" in finding.remedy
    assert "rustfs-workers topics create" in finding.remedy


def test_lost_offsets_are_not_said_to_be_mended_by_what_does_not_mend_them() -> None:
    """``kafka-consumer-groups.sh`` commits offsets without a map, which workers refuse as well."""
    lost = GroupState(None, (("p.jobs.low", 0), ("p.jobs.low", 1)), {("p.jobs.low", 0): (5, "worked")})
    with pytest.raises(GroupNotInitialised) as refused:
        partitions_to_start(lost, "p.workers")
    marked = GroupState(Marker("then", "a-cluster"), lost.partitions, {("p.jobs.low", 0): (5, EMPTY_MAP)})
    (finding,) = group_findings(load_settings(topic_prefix="p."), marked, "a-cluster")
    for text in (str(refused.value), finding.remedy):
        assert "use another RUSTFS_WORKERS_TOPIC_PREFIX" in text
        assert "reset-offsets" not in text
        assert "documentation" not in text
