"""A real Apache Kafka, for laptops, demos and tests: one node, loopback only, nothing needed but Python.

``jars`` and ``java`` (what runs) → ``broker`` (one process) → ``background`` (a broker that stays) → ``errors``.
"""

from streams.embedded.background import (
    RunningBroker,
    forget_address,
    running_broker,
    start_background,
    stop_background,
    write_address,
)
from streams.embedded.broker import BrokerConfig, EmbeddedBroker
from streams.embedded.errors import BrokerStartError, BrokerStartTimeout, DataDirInUse, EmbeddedKafkaError

__all__ = [
    "BrokerConfig",
    "BrokerStartError",
    "BrokerStartTimeout",
    "DataDirInUse",
    "EmbeddedBroker",
    "EmbeddedKafkaError",
    "RunningBroker",
    "forget_address",
    "running_broker",
    "start_background",
    "stop_background",
    "write_address",
]
