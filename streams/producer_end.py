"""The end of a producer that nobody uses any more, without the end of the process.

In:  the only references to producers. Out: they are gone, some time later.

librdkafka (2.15 and 2.16) frees the text of a transactional producer's error when that producer's main thread ends, and does
not forget it. Its threads for the brokers live a little longer: one that is told then that the producer is fenced frees the
text again (``rd_kafka_txns_term``, ``rd_kafka_txn_set_fatal_error``). That damages the heap, and the process dies, at once or
seconds later, wherever it is. So nothing may be under way when a producer ends. Taking the records back is not enough (seen):
their answers have to have come.
"""

from __future__ import annotations

import threading
from typing import Final

from confluent_kafka import KafkaException, Producer

_LOOK_S: Final = 0.1


def let_go(producers: list[Producer]) -> None:
    """Give up the only reference to them in a thread of its own. Any thread; does not block.

    The end of a librdkafka client waits for its threads; with its brokers away that takes long, or for ever. In the commit
    thread it would stop all commits, in the one that serves reports all of them. Left to the garbage collector, it would stop
    whoever holds a lock then, and so everything.
    """
    threading.Thread(target=_end, args=(producers,), name="end of a producer", daemon=True).start()


def see_out(producer: Producer) -> None:
    """Blocks until nothing is under way. Where no broker answers, the requests' own time-outs end that."""
    producer.purge(in_flight=False)
    while len(producer):
        try:
            producer.poll(_LOOK_S)
        except KafkaException:  # the fatal error for whose sake it ends; raised once
            continue


def _end(producers: list[Producer]) -> None:
    while producers:
        see_out(producers[-1])
        producers.pop()
