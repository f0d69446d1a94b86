"""Schemas for everybody to read: what is said where Kafka does not take them."""

from __future__ import annotations

from pathlib import Path

import pytest

from schemas.errors import KafkaUnreachable
from schemas.records import STATUS
from streams.schemas_topic import publish_schemas
from streams.settings import load_settings

pytestmark = pytest.mark.job_processing


def test_a_kafka_that_does_not_answer_is_called_unreachable(tmp_path: Path) -> None:
    """Nothing listens on port 1. The producer gives a record up before ``flush`` does."""
    settings = load_settings(kafka_bootstrap_servers="127.0.0.1:1", data_dir=tmp_path)
    with pytest.raises(KafkaUnreachable, match=r"127\.0\.0\.1:1 within 1 s"):
        publish_schemas(settings, [STATUS], timeout_s=1)
