"""A real Apache Kafka for laptops, demos and tests: loopback only, nothing needed but Python.

``jars`` (what Kafka consists of: downloaded once, checked at each start), ``java`` (what runs it),
``properties`` (its settings) and ``formatting`` (what an empty directory begins with) → ``broker`` (one process, with a
``guardian`` that stops it when we are gone) → ``background`` (one that stays). ``state`` says who runs a broker in a directory, and where.
"""

from streams.embedded.background import start_background, stop_background
from streams.embedded.broker import BrokerConfig, EmbeddedBroker
from streams.embedded.cluster import EmbeddedCluster
from streams.embedded.errors import (
    BrokerHasOwner,
    BrokerNotRunning,
    BrokerNotStopped,
    BrokerStartError,
    BrokerStartTimeout,
    DataDirInUse,
    DataDirUnusable,
    EmbeddedKafkaError,
    JarMismatch,
    JarsUnavailable,
    JavaMissing,
    PortInUse,
)
from streams.embedded.properties import Node
from streams.embedded.state import (
    RunningBroker,
    forget_address,
    has_a_name_for_java,
    refuse_other_port,
    running_broker,
    write_address,
)

__all__ = [
    "BrokerConfig",
    "BrokerHasOwner",
    "BrokerNotRunning",
    "BrokerNotStopped",
    "BrokerStartError",
    "BrokerStartTimeout",
    "DataDirInUse",
    "DataDirUnusable",
    "EmbeddedBroker",
    "EmbeddedCluster",
    "EmbeddedKafkaError",
    "JarMismatch",
    "JarsUnavailable",
    "JavaMissing",
    "Node",
    "PortInUse",
    "RunningBroker",
    "forget_address",
    "has_a_name_for_java",
    "refuse_other_port",
    "running_broker",
    "start_background",
    "stop_background",
    "write_address",
]
