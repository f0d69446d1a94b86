"""A Kafka of its own whose every client, the broker itself included, goes through a proxy that can lose what passes."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

from streams.embedded import BrokerConfig, EmbeddedBroker
from tests.support import kafka_proxy
from tests.support.kafka_proxy import KafkaProxy
from tests.support.memory_directory import memory_directory


@contextlib.contextmanager
def proxied_broker(directory: Path, extra: Mapping[str, str] | None = None) -> Iterator[KafkaProxy]:
    """Broker and proxy. ``directory``: for where there is no memory for it; ``extra``: settings of the broker."""
    with socket.create_server((kafka_proxy.HOST, 0)) as free:
        port = free.getsockname()[1]
    with memory_directory(directory) as place, kafka_proxy.running(port) as proxy:
        config = BrokerConfig(place, port=port, heap_mb=512, extra={**proxy.advertised, **(extra or {})})
        with EmbeddedBroker(config):
            yield proxy
