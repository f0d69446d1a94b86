"""What provisioning asks a cluster of several brokers, and what it makes of their answers."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import ConfigResource  # type: ignore[attr-defined]  # it has no __all__

from schemas.errors import TopicsMismatch
from streams import provision
from streams.clients import KafkaRefused
from streams.provision import _describe_cluster
from streams.settings import load_settings
from streams.topic_rules import TRANSACTIONS_VERIFIED, Cluster

pytestmark = pytest.mark.job_processing

RETENTION = "offsets.retention.minutes"
SETTINGS = load_settings(kafka_bootstrap_servers="127.0.0.1:1")


def answer(result: Any) -> Future[Any]:
    future: Future[Any] = Future()
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
    return future


class ThreeBrokers:
    """An admin client; like the real one, it asks one broker at a time."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self._answers = answers

    def describe_cluster(self, **_: Any) -> Future[Any]:
        nodes = [SimpleNamespace(id=int(name)) for name in self._answers]
        return answer(SimpleNamespace(cluster_id="c", nodes=nodes))

    def describe_configs(
        self, resources: list[ConfigResource], **_: Any
    ) -> dict[ConfigResource, Future[Any]]:
        if len(resources) > 1:
            conflict = KafkaException(
                KafkaError(KafkaError._CONFLICT, "Only one ConfigResource of type BROKER")
            )
            return {resource: answer(conflict) for resource in resources}
        return {resource: answer(self._answers[resource.name]) for resource in resources}


def retention(value: str) -> dict[str, Any]:
    return {RETENTION: SimpleNamespace(value=value)}


def test_each_broker_is_asked_and_the_least_safe_value_counts() -> None:
    admin: Any = ThreeBrokers({"1": retention("900"), "2": retention("10"), "3": retention("9000")})
    cluster = _describe_cluster(SETTINGS, admin)
    assert (cluster.brokers, cluster.config) == (3, {RETENTION: "10"})


def test_one_broker_that_verifies_no_transactions_is_enough() -> None:
    def switch(value: str) -> dict[str, Any]:
        return {TRANSACTIONS_VERIFIED: SimpleNamespace(value=value)}

    admin: Any = ThreeBrokers({"1": switch("true"), "2": switch("false"), "3": switch("true")})
    assert _describe_cluster(SETTINGS, admin).config == {TRANSACTIONS_VERIFIED: "false"}
    admin = ThreeBrokers({"1": switch("true"), "2": {}, "3": switch("true")})
    assert _describe_cluster(SETTINGS, admin).config == {}


def test_brokers_that_show_their_settings_to_nobody_can_be_provisioned() -> None:
    hidden = KafkaException(KafkaError(KafkaError.CLUSTER_AUTHORIZATION_FAILED))
    admin: Any = ThreeBrokers({"1": hidden, "2": retention("10"), "3": hidden})
    assert _describe_cluster(SETTINGS, admin).config == {RETENTION: "10"}


def test_a_refusal_is_told_as_one() -> None:
    admin: Any = ThreeBrokers({"1": KafkaException(KafkaError(KafkaError.INVALID_REQUEST, "why"))})
    with pytest.raises(KafkaRefused, match="why"):
        _describe_cluster(SETTINGS, admin)


def test_topics_are_not_made_with_one_copy_because_a_broker_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """For good: nobody adds copies to a topic later."""
    monkeypatch.setattr(provision, "_describe_cluster", lambda *_: Cluster("c", 2))
    monkeypatch.setattr(provision, "_describe_topics", lambda *_: {})
    with pytest.raises(TopicsMismatch, match="RUSTFS_WORKERS_REPLICATION_FACTOR"):
        provision.provision(SETTINGS)
