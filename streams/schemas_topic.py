"""The topic ``schemas``: what the fingerprint in a frame stands for.

In:  the topic's records (key: fingerprint in hexadecimal, value: Avro schema as JSON). Out: a filled
``SchemaStore``. The other way round, ``schema_record`` makes the record that a producer publishes before its
first job of a type.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from typing import Final

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from schemas.codec import SchemaStore
from schemas.errors import BadSchema, DeliveryFailed, KafkaUnreachable, UnknownSchema
from schemas.wire import WireSchema
from streams.acknowledged import was_acknowledged
from streams.clients import kafka_failed, producer_config, reader_config, registry_client
from streams.registry import CONFLUENT_KEY_LENGTH, RegistrySchemas
from streams.settings import Settings

log = structlog.get_logger("rustfs_workers.schemas_topic")

_FINGERPRINT_BYTES: Final = 8
#: Schemas that cannot be used and are named one by one; of more there is a number. Each command reads all of them.
_NAMED: Final = 5


def schema_record(schema: WireSchema) -> tuple[bytes, bytes]:
    """Key and value of a schema on the topic ``schemas``."""
    return schema.fingerprint.hex().encode(), schema.json.encode()


def publish_schemas(settings: Settings, schemas: Iterable[WireSchema], *, timeout_s: float) -> None:
    """Put schemas on the topic, once more if need be, and wait for the acknowledgement. Blocks.

    For records whose schema no ``JobProducer`` publishes: a worker's statuses and child jobs. With a registry
    there is nothing to do: the codec registers what it writes.

    Raises:
        KafkaUnreachable: not acknowledged in time.
        DeliveryFailed: Kafka refused one.
    """
    if settings.schema_registry_url is not None:
        return
    refused: list[KafkaError] = []

    def reported(error: KafkaError | None, message: Message) -> None:
        if error is not None:
            refused.append(error)
        elif not was_acknowledged(message):
            # Nobody knows: as if it had not been answered in time. The same schema once more does no harm.
            refused.append(KafkaError(KafkaError._MSG_TIMED_OUT))

    producer = Producer(producer_config(settings, linger_ms=0, delivery_timeout_s=timeout_s))
    try:
        for schema in schemas:
            key, value = schema_record(schema)
            producer.produce(settings.topics.schemas, value, key, 0, on_delivery=reported)
        left = producer.flush(timeout_s)
    except KafkaException as fatal:  # the producer sends nothing any more
        raise kafka_failed(settings, fatal, timeout_s) from fatal
    if left:
        raise KafkaUnreachable(settings.bootstrap_servers(), timeout_s)
    for error in refused:
        failure = kafka_failed(settings, KafkaException(error), timeout_s)
        if isinstance(failure, KafkaUnreachable):  # the producer gave it up before we did
            raise failure
        raise DeliveryFailed(f"a schema was not acknowledged: {error.str()}") from failure


class SchemaTopicReader:
    """Follows the topic ``schemas``. Safe from any thread, one at a time; blocks: not for an event loop.

    Close it in the end; the connection stays open between two calls.
    """

    def __init__(self, settings: Settings, store: SchemaStore) -> None:
        self._settings = settings
        self._store = store
        self._lock = threading.Lock()
        self._consumer: Consumer | None = None
        self._partition = TopicPartition(settings.topics.schemas, 0)
        self._next = 0
        self._unusable = 0

    @property
    def bootstrap_servers(self) -> str:
        """Where this reads."""
        return self._settings.bootstrap_servers()

    def catch_up(self, timeout_s: float) -> bool:
        """Read on to the end as it is now; False if the time was up.

        A record that asked for an unknown schema was written before this call: if its schema is not there
        after True, nobody has published it.

        Raises:
            KafkaUnreachable: no broker answered in time.
        """
        deadline = time.monotonic() + timeout_s
        with self._lock:
            consumer = self._open()
            try:
                start, end = consumer.get_watermark_offsets(self._partition, timeout=timeout_s, cached=False)
            except KafkaException as error:
                raise KafkaUnreachable(self._settings.bootstrap_servers(), timeout_s) from error
            self._next = max(self._next, start)
            told = max(self._unusable, _NAMED)
            while self._next < end and (left := deadline - time.monotonic()) > 0:
                message = consumer.poll(left)
                if message is not None:
                    self._take(message)
            if self._unusable > told:
                log.warning("more schemas not usable", count=self._unusable - told)
            return self._next >= end

    def close(self) -> None:
        """Let the connection go. A later ``catch_up`` opens a new one and reads from the beginning."""
        with self._lock:
            if self._consumer is not None:
                self._consumer.close()
                self._consumer = None
                self._next = 0

    def _open(self) -> Consumer:
        if self._consumer is None:
            # Schemas are not written in transactions: nobody's open transaction may hide one.
            config = reader_config(self._settings, read_committed=False)
            self._consumer = Consumer({**config, "enable.partition.eof": True})
            self._consumer.assign([TopicPartition(self._partition.topic, 0, 0)])
        return self._consumer

    def _take(self, message: Message) -> None:
        error, offset = message.error(), message.offset()
        assert offset is not None  # noqa: S101 - it was consumed
        if error is None:
            self._next = offset + 1
            reason = add_record(self._store, message.key(), message.value())
            if reason is not None:
                self._unusable += 1
                if self._unusable <= _NAMED:
                    log.warning("schema not usable", key=repr(message.key())[:80], error=reason)
        elif error.code() == KafkaError._PARTITION_EOF:
            # Compaction may have removed the records before the end.
            self._next = max(self._next, offset)
        else:
            raise KafkaException(error)


class SchemaLookup:
    """Learns what a frame key stands for, wherever that is written down. Blocks: not for an event loop."""

    def __init__(
        self, store: SchemaStore, reader: SchemaTopicReader, registry: RegistrySchemas | None = None
    ) -> None:
        self._store = store
        self._reader = reader
        self._registry = registry

    def learn(self, key: bytes, timeout_s: float) -> bool:
        """Add the schema of ``key`` to the store; False if there is none.

        Raises:
            KafkaUnreachable: the end of ``schemas`` was not reached in time, so nobody knows yet.
            RegistryFailed: the registry did not answer.
            BadSchema: the registry has one that cannot be used.
        """
        if self._has(key):
            return True
        if len(key) == CONFLUENT_KEY_LENGTH:
            return self._registry is not None and self._registry.learn(key)
        if not self._reader.catch_up(timeout_s):
            raise KafkaUnreachable(self._reader.bootstrap_servers, timeout_s)
        return self._has(key)

    def _has(self, key: bytes) -> bool:
        try:
            self._store.get(key)
        except UnknownSchema:
            return False
        return True

    def close(self) -> None:
        """Let the connections go."""
        self._reader.close()


def schema_lookup(settings: Settings, store: SchemaStore) -> SchemaLookup:
    """A lookup that fills ``store`` from the topic, and from the registry if one is set."""
    registry = RegistrySchemas(registry_client(settings), store) if settings.schema_registry_url else None
    return SchemaLookup(store, SchemaTopicReader(settings, store), registry)


def add_record(store: SchemaStore, key: bytes | None, value: bytes | None) -> str | None:
    """One record of the topic. What cannot be used is left out, and jobs of it become dead letters; the reason, if so."""
    if value is None:
        return None
    try:
        fingerprint = bytes.fromhex((key or b"").decode("ascii"))
        if len(fingerprint) != _FINGERPRINT_BYTES:
            # Five bytes would stand for a registry's number, of which nobody here can say what it means.
            raise BadSchema("its key is no fingerprint of 16 hexadecimal digits")
        store.add_json(fingerprint, value)
    except (ValueError, BadSchema) as error:
        return f"{type(error).__name__}: {error}"[:300]
    return None
