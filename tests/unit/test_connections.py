"""What a worker asks of Kafka before it begins: how long a silence may last until others have its partitions."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException
from structlog.testing import capture_logs

from schemas.errors import KafkaUnreachable
from streams.clients import KafkaRefused
from streams.provision import GroupTimes, group_times
from tests.support.deployments import settings_for
from workers import connections
from workers.connections import Connections

pytestmark = pytest.mark.worker_coordination

TIMES = GroupTimes(session_ms=6_000, heartbeat_ms=500)


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Connections whose answers a test gives, one after another; time goes on by itself."""
    found = SimpleNamespace(
        answers=[], now=0.0, connections=Connections(settings_for("127.0.0.1:1", "t.", tmp_path))
    )

    def answer(*_: Any) -> GroupTimes | None:
        found.now += 1.0
        said = found.answers.pop(0)
        if isinstance(said, Exception):
            raise said
        return said  # type: ignore[no-any-return]

    clock = SimpleNamespace(monotonic=lambda: found.now, sleep=lambda _: None)
    monkeypatch.setattr(connections, "group_times", answer)
    monkeypatch.setattr(connections, "time", clock)
    return found


def test_a_kafka_that_comes_and_goes_is_asked_again(asked: Any) -> None:
    """With the settings' 45 seconds instead of its six, a worker would go on long after others have its partitions."""
    asked.answers = [KafkaUnreachable("brokers", 5.0)] * 5 + [TIMES]
    assert asked.connections.group_times() == TIMES


def test_one_that_stays_away_is_no_reason_to_go_on_without_knowing(asked: Any) -> None:
    asked.answers = [KafkaUnreachable("brokers", 5.0)] * 100
    with pytest.raises(KafkaUnreachable):
        asked.connections.group_times()
    assert len(asked.answers) > 50


def test_who_may_not_ask_is_told_what_to_do(asked: Any) -> None:
    asked.answers = [KafkaRefused("Group authorization failed")]
    with capture_logs() as logs:
        assert asked.connections.group_times() is None
    (said,) = logs
    assert "DESCRIBE_CONFIGS" in said["remedy"]
    assert "session_timeout_s" in said["remedy"]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (KafkaError._TIMED_OUT, KafkaUnreachable),
        (KafkaError._TRANSPORT, KafkaUnreachable),
        (KafkaError.GROUP_AUTHORIZATION_FAILED, KafkaRefused),
        (KafkaError.INVALID_REQUEST, None),
        (KafkaError.UNSUPPORTED_VERSION, None),
    ],
)
def test_only_a_kafka_that_knows_no_settings_of_groups_leaves_them_open(
    code: int, expected: type[Exception] | None, tmp_path: Path
) -> None:
    def describe_configs(resources: Any, **_: Any) -> Any:
        def result() -> Any:
            raise KafkaException(KafkaError(code))

        return {resources[0]: SimpleNamespace(result=result)}

    admin: Any = SimpleNamespace(describe_configs=describe_configs)
    settings = settings_for("127.0.0.1:1", "t.", tmp_path)
    if expected is None:
        assert group_times(settings, admin) is None
    else:
        with pytest.raises(expected):
            group_times(settings, admin)
