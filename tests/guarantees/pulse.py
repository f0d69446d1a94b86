"""Whether Kafka, and the machine, keep up at all: a heartbeat of the campaign's own, beside whatever the storm does.

Out: a ``kafka_stall`` for each time in which a record was not acknowledged soon. Brokers and workers that start again take the
processor from one another; a Kafka that says nothing for seconds cuts workers off as one that is away, and nobody has made it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

from confluent_kafka import KafkaError, Producer
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]  # it has no __all__

from streams.clients import admin_config
from streams.settings import Settings
from tests.guarantees.evidence import Trouble

#: Not one of the deployment's.
TOPIC: Final = "pulse"
#: So that each broker leads some.
_PARTITIONS: Final = 6
_EVERY_S: Final = 0.25
#: A producer that a record waits in for so long is left, and the next one says how Kafka is. In a storm (seed 20) librdkafka did
#: not find one partition again when its leader had died: for 25 minutes, in which Kafka was well, this said that it stood still.
_DEAF_AFTER_S: Final = 20.0
#: Less than a worker waits for an answer: what was silent for so long may have cut somebody off.
SOON_S: Final = 2.0


class Stalls:
    """From when to when a record waited too long. Those that overlap are one."""

    def __init__(self) -> None:
        self.found: list[Trouble] = []

    def note(self, sent_ns: int, acknowledged_ns: int) -> None:
        """One record. Not from two threads at once."""
        if acknowledged_ns - sent_ns < SOON_S * 1e9:
            return
        last = self.found[-1] if self.found else None
        if last is not None and sent_ns <= last.end_ns:
            self.found[-1] = Trouble(
                last.kind, min(last.start_ns, sent_ns), max(last.end_ns, acknowledged_ns)
            )
        else:
            self.found.append(Trouble("kafka_stall", sent_ns, acknowledged_ns))


@contextmanager
def pulse(settings: Settings) -> Iterator[Stalls]:
    """Feel it while the block runs."""
    stalls, over = Stalls(), threading.Event()
    admin = AdminClient(admin_config(settings))
    admin.create_topics([NewTopic(TOPIC, _PARTITIONS, 3)])[TOPIC].result(30)

    def connected() -> Producer:
        return Producer(
            {
                "bootstrap.servers": settings.bootstrap_servers(),
                "acks": "all",
                "linger.ms": 0,
                # Whatever happens to it, it is heard of.
                "message.timeout.ms": round(_DEAF_AFTER_S * 1000),
                "log_level": 0,
            }
        )

    def beat() -> None:
        producer, is_deaf = connected(), threading.Event()

        def reported(sent_ns: int, of: threading.Event, error: KafkaError | None, _message: Any) -> None:
            stalls.note(sent_ns, time.monotonic_ns())
            if error is not None:
                of.set()

        while not over.is_set():
            for number in range(_PARTITIONS):
                report = partial(reported, time.monotonic_ns(), is_deaf)
                producer.produce(TOPIC, b"", partition=number, on_delivery=report)
            # Late itself, it was the machine that stood still.
            before_ns = time.monotonic_ns()
            over.wait(_EVERY_S)
            stalls.note(before_ns, time.monotonic_ns())
            producer.poll(0)
            if is_deaf.is_set():
                producer.purge()
                producer.flush(1)
                producer, is_deaf = connected(), threading.Event()
        producer.flush(10)

    thread = threading.Thread(target=beat, name="pulse", daemon=True)
    thread.start()
    try:
        yield stalls
    finally:
        over.set()
        thread.join()
