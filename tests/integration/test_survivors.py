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
from workers.liveness.survivors import Signs, signs_of_life

pytestmark = [pytest.mark.worker_coordination, pytest.mark.integration]


LEASE_MS = 5_000


def report(settings: Settings, incarnation: str, state: str = "running", worker: str = "w") -> int:
    """One more report; when the broker wrote it."""
    value = encode_report(
        Codec(),
        WorkerReport(worker, incarnation, 1, 0, 0, "host", state, (), (), 0, 0, (), {}),
    )
    return write(settings, value, worker)


def write(settings: Settings, value: bytes, worker: str) -> int:
    written: list[int] = []
    producer = Producer(producer_config(settings, linger_ms=0))
    producer.produce(
        settings.topics.reports,
        value,
        worker.encode(),
        on_delivery=lambda _, message: written.append(message.timestamp()[1]),
    )
    producer.flush(20)
    return written[0]


def test_a_sign_of_life_is_a_report_of_that_incarnation_written_after_its_loss(provisioned: Settings) -> None:
    before = report(provisioned, "dead", worker="a")
    report(provisioned, "awake", worker="b")
    write(provisioned, b"awake, says nobody", "b")
    last = report(provisioned, "awake", "draining", "b")
    report(provisioned, "awake", "stopped", "b")
    report(provisioned, "failed", "stopped", "c")
    report(provisioned, "somebody-else", worker="d")
    losses = {"dead": before, "awake": before, "failed": before, "unknown": 0}
    assert signs_of_life(provisioned, Codec(), losses, LEASE_MS).heard == {"awake": last}
    assert signs_of_life(provisioned, Codec(), {"awake": last}, LEASE_MS).heard == {}
    assert signs_of_life(provisioned, Codec(), {"unknown": 0}, LEASE_MS) == Signs({})


def test_who_reports_under_the_name_of_a_lost_one_has_taken_its_place(provisioned: Settings) -> None:
    report(provisioned, "earlier")
    report(provisioned, "killed")
    lost = report(provisioned, "killed")
    report(provisioned, "frozen", worker="elsewhere")
    report(provisioned, "intruder", worker="elsewhere")
    awake = report(provisioned, "frozen", worker="elsewhere")
    write(provisioned, b"garbage", "w")
    assert signs_of_life(provisioned, Codec(), {"killed": lost}, LEASE_MS).replaced == frozenset()
    report(provisioned, "restarted")
    signs = signs_of_life(provisioned, Codec(), {"killed": lost, "frozen": lost}, LEASE_MS)
    assert dict(signs.heard) == {"frozen": awake}
    assert signs.replaced == {"killed"}
    assert signs.complete


def test_without_reports_to_read_nobody_is_heard_and_that_says_nothing(
    provisioned: Settings, tmp_path: Path
) -> None:
    elsewhere = settings_for(provisioned.bootstrap_servers(), "nowhere.", tmp_path)
    assert signs_of_life(elsewhere, Codec(), {"frozen": 1}, LEASE_MS) == Signs({}, complete=False)
