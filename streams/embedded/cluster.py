"""Several brokers on this machine: a cluster that goes on when one of them dies.

In:  a data directory and a number of brokers. Out: a cluster that answers, whose brokers can be killed and
started again one by one.

It is for trying out what a single broker cannot show. Three brokers take three times the memory of one.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from streams.embedded.broker import BrokerConfig, EmbeddedBroker
from streams.embedded.formatting import new_id
from streams.embedded.properties import Node
from streams.embedded.state import free_port

#: Each replica writes everything once more; what is cached per broker is little.
_HEAP_MB: Final = 512


class EmbeddedCluster:
    """Brokers 1 to n, each a process of its own. Also a context manager.

    Blocks, so from asyncio call it in a thread; one thread at a time.

    Args:
        data_dir: each broker gets a directory below it.
        brokers: how many; three hold every record three times, and may lose one broker.
        config: what they have in common; its directory, port and nodes are not looked at.
    """

    def __init__(self, data_dir: Path, brokers: int = 3, config: BrokerConfig | None = None) -> None:
        ports = _free_ports(2 * brokers)
        nodes = tuple(Node(number + 1, *ports[2 * number : 2 * number + 2]) for number in range(brokers))
        common = config or BrokerConfig(data_dir, heap_mb=_HEAP_MB)
        cluster_id = common.cluster_id or new_id()
        self._brokers = {
            node.node_id: EmbeddedBroker(
                replace(
                    common,
                    data_dir=data_dir / f"broker-{node.node_id}",
                    port=node.port,
                    node_id=node.node_id,
                    nodes=nodes,
                    cluster_id=cluster_id,
                )
            )
            for node in nodes
        }
        #: Known before they run, and the same after each restart.
        self.bootstrap_servers = ",".join(node.address for node in nodes)

    def __getitem__(self, node_id: int) -> EmbeddedBroker:
        """One of the brokers, to kill it (`kill`), freeze it (`pid`) or start it again (`start`)."""
        return self._brokers[node_id]

    @property
    def node_ids(self) -> tuple[int, ...]:
        """The numbers of the brokers."""
        return tuple(self._brokers)

    def start(self, timeout_s: float = 90.0) -> None:
        """Start all brokers at once: none answers before most of them are there. Running ones go on.

        Raises:
            EmbeddedKafkaError: as `EmbeddedBroker.start`, for the first that fails; the others are stopped.
        """
        with ThreadPoolExecutor(len(self._brokers)) as pool:
            starts = [pool.submit(broker.start, timeout_s) for broker in self._brokers.values()]
        failed = [error for error in (start.exception() for start in starts) if error is not None]
        if failed:
            self.stop(0)
            raise failed[0]

    def stop(self, timeout_s: float = 15.0) -> None:
        """Stop all brokers at once, by force after `timeout_s`."""
        with ThreadPoolExecutor(len(self._brokers)) as pool:
            stops = [pool.submit(broker.stop, timeout_s) for broker in self._brokers.values()]
        for stop in stops:
            stop.result()

    def __enter__(self) -> Self:
        """Start it with the default time limit."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it."""
        self.stop()


def _free_ports(count: int) -> list[int]:
    ports: list[int] = []
    while len(ports) < count:
        ports.append(free_port(not_these=tuple(ports)))
    return ports
