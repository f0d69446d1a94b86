"""Producers of one transactional id that fence one another in turns with records under way, in a process of its own.

    python -m tests.support.fenced_in_turns KAFKA TOPIC SECONDS

Ends with 0 and the number of those that were fenced; a damaged heap ends it with a signal.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from typing import Final

from confluent_kafka import KafkaException, Producer

from streams.clients import FENCED, producer_config
from streams.producer_end import let_go
from streams.settings import load_settings

_THREADS: Final = 3
#: As many as fill several requests to each partition.
_RECORDS: Final = 600
_VALUE: Final = bytes(300)
_SILENT: Final = logging.getLogger("fenced in turns")


def main(address: str, topic: str, seconds: float) -> int:
    _SILENT.addHandler(logging.NullHandler())
    _SILENT.propagate = False
    settings = load_settings(kafka_bootstrap_servers=address)
    deadline = time.monotonic() + seconds
    fenced: list[str] = []

    def in_turns(name: str) -> None:
        config = producer_config(settings, transactional_id=f"{topic}.{name}", logger=_SILENT)
        earlier: Producer | None = None
        while time.monotonic() < deadline:
            later = Producer(config)
            later.init_transactions(20)
            later.begin_transaction()
            _produce(later, topic)
            if earlier is not None:
                fenced.extend([name] * _fails(earlier, topic))
                ended, earlier = [earlier], None
                let_go(ended)
            earlier = later
            del later

    threads = [threading.Thread(target=in_turns, args=(f"id{number}",)) for number in range(_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(len(fenced))
    return 0


def _produce(producer: Producer, topic: str) -> None:
    for number in range(_RECORDS):
        producer.produce(topic, _VALUE, b"%d" % number)


def _fails(producer: Producer, topic: str) -> bool:
    try:
        _produce(producer, topic)
        producer.commit_transaction(10)
    except KafkaException as error:
        fatal = error.args[0].fatal() or error.args[0].code() in FENCED
        error.__traceback__ = None  # it must not keep the producer
        return fatal
    return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], float(sys.argv[3])))
