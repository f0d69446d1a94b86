"""The settings of a broker, as a pure function of where it lives and who is beside it.

In:  nodes and their ports. Out: the text of `server.properties`.

One node is the usual case; three nodes on one machine are the same with replication 3. The quorum is the
static one (`controller.quorum.voters`): it is read at each start, so a node may come back on another port.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from schemas.topics import DEFAULT_PARTITIONS

#: Nothing else can reach it.
HOST: Final = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Node:
    """One broker of the cluster and the two ports that it listens on."""

    node_id: int
    port: int
    controller_port: int

    @property
    def address(self) -> str:
        """Where clients find it."""
        return f"{HOST}:{self.port}"


def server_properties(
    node: Node, nodes: Sequence[Node], log_dir: Path, extra: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The settings of `node` among `nodes` (itself included). `extra` wins."""
    replicas = str(min(3, len(nodes)))
    min_isr = "2" if len(nodes) >= 3 else "1"  # noqa: PLR2004 - three replicas may lose one
    return {
        # Broker and controller in one process, on the loopback interface.
        "process.roles": "broker,controller",
        "node.id": str(node.node_id),
        "controller.quorum.voters": ",".join(f"{n.node_id}@{HOST}:{n.controller_port}" for n in nodes),
        "listeners": f"PLAINTEXT://{HOST}:{node.port},CONTROLLER://{HOST}:{node.controller_port}",
        "advertised.listeners": f"PLAINTEXT://{HOST}:{node.port}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "PLAINTEXT",
        "controller.listener.names": "CONTROLLER",
        "log.dirs": str(log_dir),
        # Topics are provisioned, with settings that keep the guarantees; a typing error must not make one.
        "auto.create.topics.enable": "false",
        "num.partitions": str(DEFAULT_PARTITIONS),
        "default.replication.factor": replicas,
        "min.insync.replicas": min_isr,
        # Kafka's own topics: by default three replicas, and 50 partitions each to open at every start.
        "offsets.topic.replication.factor": replicas,
        "offsets.topic.num.partitions": "8",
        "transaction.state.log.replication.factor": replicas,
        "transaction.state.log.min.isr": min_isr,
        "transaction.state.log.num.partitions": "8",
        "share.coordinator.state.topic.replication.factor": replicas,
        "share.coordinator.state.topic.min.isr": min_isr,
        "share.coordinator.state.topic.num.partitions": "8",
        # A killed worker is noticed in 6 s, not in 45; its open transaction is looked for each second, not
        # every ten.
        "group.initial.rebalance.delay.ms": "0",
        "group.consumer.min.session.timeout.ms": "6000",
        "group.consumer.session.timeout.ms": "6000",
        "group.consumer.min.heartbeat.interval.ms": "500",
        "group.consumer.heartbeat.interval.ms": "500",
        "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
        # The offsets of an empty group would expire after a week, and a week's jobs would run again.
        "offsets.retention.minutes": "2147483647",
        # A topic that has no time limit of its own keeps a week, as Kafka does.
        "log.retention.hours": "168",
        # The files of deleted topics go after 5 s, not after a minute: test runs make many.
        "log.segment.delete.delay.ms": "5000",
        # The cleaner takes its buffer at the start; the default of 128 MiB is an eighth of the heap.
        "log.cleaner.dedupe.buffer.size": "16777216",
        **(extra or {}),
    }


def render(properties: Mapping[str, str]) -> str:
    """The text of a Java properties file, in which backslashes escape."""
    return "".join(f"{name}={value}\n".replace("\\", "\\\\") for name, value in properties.items())
