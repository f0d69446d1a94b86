"""Durations that a program gives are checked, by their name: zero, or a number, means something else to each library."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from schemas.durations import seconds
from schemas.errors import SettingsError
from streams.producer import JobProducer
from tests.support.deployments import settings_for

pytestmark = pytest.mark.job_processing


def test_a_duration_in_seconds() -> None:
    assert seconds("limit", timedelta(milliseconds=1_500)) == 1.5
    assert seconds("limit", timedelta(0), least=timedelta(0)) == 0


@pytest.mark.parametrize("wrong", [10, 2.5, "10s", None, timedelta(0), timedelta(seconds=-1)])
def test_anything_else_is_refused_by_name(wrong: Any) -> None:
    with pytest.raises(SettingsError, match="limit"):
        seconds("limit", wrong)


@pytest.mark.parametrize("wrong", [timedelta(days=3651), timedelta.max])
def test_ten_years_are_the_most(wrong: timedelta) -> None:
    assert seconds("limit", timedelta(days=3650)) == 3650 * 86_400
    with pytest.raises(SettingsError, match=r"limit is .* 3,650 days"):
        seconds("limit", wrong)


def test_librdkafka_counts_milliseconds_in_31_bits(tmp_path: Path) -> None:
    settings = settings_for("127.0.0.1:1", "none.", tmp_path)
    JobProducer(settings, delivery_timeout=timedelta(days=24)).close()
    with pytest.raises(SettingsError, match=r"delivery_timeout is 25 days.* 24 days"):
        JobProducer(settings, delivery_timeout=timedelta(days=25))


@pytest.mark.parametrize("name", ["unreachable_after", "delivery_timeout"])
@pytest.mark.parametrize("wrong", [30, timedelta(0), timedelta(seconds=-1), timedelta.max])
def test_a_producer_takes_no_other_ones(tmp_path: Path, name: str, wrong: Any) -> None:
    """To librdkafka a delivery timeout of zero means for ever, and so does a negative time for an answer."""
    options: dict[str, Any] = {name: wrong}
    with pytest.raises(SettingsError, match=name):
        JobProducer(settings_for("127.0.0.1:1", "none.", tmp_path), **options)


@pytest.mark.parametrize("wrong", [5, timedelta(seconds=-1), timedelta.max])
def test_flush_takes_only_durations_from_zero_on(tmp_path: Path, wrong: Any) -> None:
    producer = JobProducer(settings_for("127.0.0.1:1", "none.", tmp_path))
    flush: Callable[[Any], None] = producer.flush
    with pytest.raises(SettingsError, match="timeout"):
        flush(wrong)
    producer.close()
