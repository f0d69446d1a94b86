"""Who reports after it was taken for dead, on real reports."""

from __future__ import annotations

from pathlib import Path

import pytest
from confluent_kafka import Producer

from schemas.codec import Codec
from schemas.records import WorkerReport, encode_report
from streams.clients import producer_config
from streams.settings import Settings
from tests.support.deployments import settings_for
from workers.survivors import last_heard

pytestmark = [pytest.mark.worker_coordination, pytest.mark.integration]


def report(settings: Settings, incarnation: str, state: str = "running") -> int:
    """One more report; when the broker wrote it."""
    value = encode_report(
        Codec(),
        WorkerReport("w", incarnation, 1, 0, 0, "host", state, (), (), 0, 0, (), {}),
    )
    return write(settings, value)


def write(settings: Settings, value: bytes) -> int:
    written: list[int] = []
    producer = Producer(producer_config(settings, linger_ms=0))
    producer.produce(
        settings.topics.reports,
        value,
        b"w",
        on_delivery=lambda _, message: written.append(message.timestamp()[1]),
    )
    producer.flush(20)
    return written[0]


def test_a_sign_of_life_is_a_report_of_that_incarnation_written_after_its_loss(provisioned: Settings) -> None:
    before = report(provisioned, "dead")
    report(provisioned, "awake")
    write(provisioned, b"awake, says nobody")
    last = report(provisioned, "awake", "draining")
    report(provisioned, "awake", "stopped")
    report(provisioned, "failed", "stopped")
    report(provisioned, "somebody-else")
    losses = {"dead": before, "awake": before, "failed": before, "unknown": 0}
    assert last_heard(provisioned, Codec(), losses) == {"awake": last}
    assert last_heard(provisioned, Codec(), {"awake": last}) == {}
    assert last_heard(provisioned, Codec(), {"unknown": 0}) == {}


def test_without_reports_to_read_nobody_is_heard(provisioned: Settings, tmp_path: Path) -> None:
    elsewhere = settings_for(provisioned.bootstrap_servers(), "nowhere.", tmp_path)
    assert last_heard(elsewhere, Codec(), {"frozen": 1}) == {}
