"""A real Apache Kafka, for laptops, demos and tests: one node, loopback only, nothing needed but Python.

``jars`` (what is fetched, and checked) → ``broker`` (one process) → ``background`` (a broker that stays).
"""

from streams.embedded.background import RunningBroker, forget_address, running_broker, start_background, stop_background
from streams.embedded.background import write_address
from streams.embedded.broker import BrokerConfig, BrokerStartError, DataDirInUse, EmbeddedBroker
from streams.embedded.jars import KafkaNotAvailable

__all__ = [
    "BrokerConfig",
    "BrokerStartError",
    "DataDirInUse",
    "EmbeddedBroker",
    "KafkaNotAvailable",
    "RunningBroker",
    "forget_address",
    "running_broker",
    "start_background",
    "stop_background",
    "write_address",
]
