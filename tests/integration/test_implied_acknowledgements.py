"""A job is accepted when a broker has said so of its own record, not because it has taken one that was sent later.

Found by a storm (seed 14): of a producer that had just begun, a new leader refused the first record and took the second one. It
knew nothing of the producer, so it did not miss anything; librdkafka concluded that the first one had been written as well.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from schemas import JobPriority
from schemas.errors import DeliveryFailed
from streams.producer import JobProducer
from streams.provision import provision
from streams.reader import JobNotFound, JobReader
from streams.settings import Settings, load_settings
from tests.support import kafka_proxy
from tests.support.deployments import Sample
from tests.support.kafka_proxy import Action, Answer, KafkaProxy, Request
from tests.support.proxied import proxied_broker
from tests.support.waiting import eventually

pytestmark = [pytest.mark.integration, pytest.mark.job_processing]

NOT_ENOUGH_REPLICAS = 19
KEY = "bucket/key"


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaProxy]:
    with proxied_broker(tmp_path_factory.mktemp("implied")) as proxy:
        yield proxy


class RefusesTheFirst:
    """The first produce request to a topic never reaches the broker, and is answered with an error just before the second one is."""

    def __init__(self, topic: str) -> None:
        self._topic = topic.encode()
        self.first: Request | None = None
        self.seen = threading.Event()

    def on_request(self, request: Request) -> Action:
        if request.api != kafka_proxy.PRODUCE or self._topic not in request.frame or self.first is not None:
            return Action.PASS
        self.first = request
        self.seen.set()
        return Action.SWALLOW

    def on_answer(self, answer: Answer) -> Action | Sequence[bytes]:
        if self.first is None or answer.request.api != kafka_proxy.PRODUCE or self._topic not in answer.frame:
            return Action.PASS
        refusal = bytearray(answer.frame)
        struct.pack_into(">i", refusal, 0, self.first.correlation)
        # Behind the topic's name: how many partitions (one byte), and of the first its number, error code and offset.
        at = answer.frame.index(self._topic) + len(self._topic) + 1 + 4
        struct.pack_into(">hq", refusal, at, NOT_ENOUGH_REPLICAS, -1)
        return [bytes(refusal), answer.frame]


def test_a_job_is_not_accepted_because_the_one_after_it_was(proxy: KafkaProxy, tmp_path: Path) -> None:
    settings: Settings = load_settings(
        kafka_bootstrap_servers=proxy.bootstrap_servers,
        topic_prefix=f"i-{uuid4().hex[:8]}.",
        partitions=1,
        data_dir=tmp_path,
    )
    provision(settings)
    rule = RefusesTheFirst(settings.topics.jobs[JobPriority.NORMAL])
    ids = [str(uuid4()), str(uuid4())]
    outcomes: dict[str, Any] = {}

    def schedule(job_id: str) -> None:
        try:
            outcomes[job_id] = producer.schedule_job(Sample(), key=KEY, job_id=job_id)
        except DeliveryFailed as error:
            outcomes[job_id] = error

    with JobProducer(settings) as producer:
        producer.schedule_job(
            Sample(), JobPriority.LOW, key=KEY
        )  # it is connected, and has published the schema
        proxy.on_request, proxy.on_answer = rule.on_request, rule.on_answer
        calls = [threading.Thread(target=schedule, args=(job_id,), daemon=True) for job_id in ids]
        calls[0].start()
        assert rule.seen.wait(20)
        calls[1].start()
        eventually(lambda: len(outcomes) == 2, 60, "both calls have returned")
        proxy.pass_everything()
    first, second = (outcomes[job_id] for job_id in ids)
    reader = JobReader(settings)
    assert second == ids[1]
    assert reader.get_job(ids[1]).id == ids[1]
    with pytest.raises(JobNotFound):
        reader.get_job(ids[0])
    assert isinstance(first, DeliveryFailed), "nobody has it"
    assert "never acknowledged itself" in str(first)
    assert ids[0] in str(first)
