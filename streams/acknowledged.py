"""Whether a delivery report means that a record is written.

In:  a report without an error. Out: yes, or that only what came after the record is known to be written.
"""

from __future__ import annotations

from confluent_kafka import Message


def was_acknowledged(message: Message) -> bool:
    """Whether a broker has said of this very record that it is written, in a report without an error.

    librdkafka (2.16, ``rd_kafka_dr_implicit_ack``) takes a record for written if one that was sent after it is, since brokers
    accept a producer's records in their sequence. But a leader that is new, and knows nothing of the producer, accepts whatever
    comes first: a record whose answer was lost with the old leader may be nowhere then. Only a real answer has an offset.
    """
    return message.offset() is not None
