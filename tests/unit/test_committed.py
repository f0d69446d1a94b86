from __future__ import annotations

import pytest
from confluent_kafka import KafkaError, KafkaException

from streams.committed import committed_offsets, passes
from streams.settings import load_settings

pytestmark = pytest.mark.job_processing


@pytest.mark.parametrize(
    ("code", "soon"),
    [
        (KafkaError.COORDINATOR_LOAD_IN_PROGRESS, True),
        (KafkaError.NOT_COORDINATOR, True),
        (KafkaError.UNSTABLE_OFFSET_COMMIT, True),
        (KafkaError._TIMED_OUT, True),
        (KafkaError._TRANSPORT, True),
        (KafkaError.GROUP_AUTHORIZATION_FAILED, False),
        (KafkaError.INVALID_GROUP_ID, False),
    ],
)
def test_only_answers_that_change_by_themselves_are_waited_for(code: int, soon: bool) -> None:  # noqa: FBT001
    assert passes(KafkaException(KafkaError(code))) is soon


def test_nothing_is_asked_about_no_partition() -> None:
    settings = load_settings(kafka_bootstrap_servers="127.0.0.1:1")
    assert committed_offsets(settings, "g", [], timeout_s=0.1) == {}
