"""Delivery reports, as librdkafka gives them."""

from __future__ import annotations

from typing import Any

from confluent_kafka import KafkaError

from streams.tickets import Ticket


class Report:
    """What librdkafka says of a record."""

    def __init__(self, key: bytes, offset: int | None = 0) -> None:
        self._key = key
        self._offset = offset

    def key(self) -> bytes:
        return self._key

    def offset(self) -> int | None:
        return self._offset

    def value(self) -> bytes:
        return b"not a job"


def report(ticket: Ticket, error: int | None = None, key: bytes = b"k") -> None:
    message: Any = Report(key)
    ticket(None if error is None else KafkaError(error), message)
