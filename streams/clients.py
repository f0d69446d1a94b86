"""The configuration of every Kafka client, from one ``Settings``.

In:  settings. Out: configuration dictionaries for confluent-kafka and aiokafka, security included, and a
check that somebody answers. Security and delivery are configured here alone; what is for one client only (its group, its callbacks)
stands where that is made.
"""

from __future__ import annotations

import contextlib
import logging
import re
import socket
import time
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from schemas.errors import KafkaUnreachable, NoBroker, PipelineError, SettingsError
from schemas.partitions import LIBRDKAFKA_PARTITIONER
from schemas.topics import MAX_BATCH_BYTES
from streams.settings import Settings

if TYPE_CHECKING:
    from confluent_kafka.schema_registry import SchemaRegistryClient

#: Errors that say: another producer has taken this transactional id. (A transaction that took too long looks
#: the same.)
FENCED: Final = frozenset(
    {
        KafkaError._FENCED,
        KafkaError.PRODUCER_FENCED,
        KafkaError.INVALID_PRODUCER_EPOCH,
    }
)
#: How long an open transaction of a dead worker may hold back readers.
TRANSACTION_TIMEOUT_MS: Final = 5_000
#: Largest request that a producer sends; Kafka's own limit for a batch is a little higher.
MAX_MESSAGE_BYTES: Final = 1_000_000
#: What every topic is made to take.
MAX_FORWARDED_BYTES: Final = MAX_BATCH_BYTES

#: Where librdkafka's own lines go unless a caller has a logger for them; stderr at the most, never stdout.
log = logging.getLogger("rustfs_workers.librdkafka")
#: Lines that differ only in numbers are said once in this time: a client without its broker tries 40 times a second.
_REPEAT_S: Final = 10.0


class RepeatFilter(logging.Filter):
    """Lets a line through that was not said lately. Safe from any thread; a line too many does no harm."""

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it is news."""
        return self.is_news(record.getMessage())

    def is_news(self, text: str) -> bool:
        """Whether nothing like it was said in the last seconds."""
        line, now = _NUMBER.sub("0", _REPEATED.sub("", text)), time.monotonic()
        if now - self._said.get(line, -_REPEAT_S) < _REPEAT_S:
            return False
        if len(self._said) > _REMEMBERED:
            self._said.clear()
        self._said[line] = now
        return True


_NUMBER: Final = re.compile(r"\d+")
#: What librdkafka adds to a line that it has kept to itself for a while.
_REPEATED: Final = re.compile(r", \d+ identical error\(s\) suppressed")
_REMEMBERED: Final = 200
log.addFilter(RepeatFilter())

#: Faults of ours that librdkafka finds, before anybody is asked.
_OUR_FAULT: Final = frozenset({KafkaError._CONFLICT, KafkaError._INVALID_ARG})
#: Answers that stand for none: the one who knows is not there yet.
_NO_ANSWER: Final = frozenset(
    {
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.BROKER_NOT_AVAILABLE,
        KafkaError.NOT_COORDINATOR,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.UNSTABLE_OFFSET_COMMIT,
        KafkaError.OFFSET_NOT_AVAILABLE,
        KafkaError.FENCED_LEADER_EPOCH,
        KafkaError.UNKNOWN_LEADER_EPOCH,
    }
)


_NOT_LET_IN: Final = frozenset(
    {
        KafkaError._AUTHENTICATION,
        KafkaError._SSL,
        KafkaError.SASL_AUTHENTICATION_FAILED,
        KafkaError.UNSUPPORTED_SASL_MECHANISM,
        KafkaError.ILLEGAL_SASL_STATE,
    }
)


class KafkaRefused(PipelineError):
    """Kafka answered, and the answer was no."""


def kafka_failed(settings: Settings, error: KafkaException, seconds: float) -> PipelineError:
    """What to raise for a request that failed after ``seconds``: whether nobody answered, or somebody refused."""
    kafka_error = error.args[0]
    code = kafka_error.code()
    if code == KafkaError._UNSUPPORTED_FEATURE:
        return NoBroker(settings.bootstrap_servers())
    if code in _NO_ANSWER or (code < 0 and code not in _OUR_FAULT):
        return KafkaUnreachable(settings.bootstrap_servers(), seconds)
    return KafkaRefused(
        f"Kafka at {settings.bootstrap_servers()} refused: {kafka_error.str()} ({kafka_error.name()}); "
        "look at the brokers' log and at what this user may do"
    )


def producer_config(
    settings: Settings,
    *,
    transactional_id: str | None = None,
    linger_ms: float = 5.0,
    delivery_timeout_s: float | None = None,
    logger: logging.Logger | None = None,
) -> dict[str, Any]:
    """An idempotent producer that waits for all replicas; with ``transactional_id`` a transactional one.

    ``logger`` gets librdkafka's lines from ``poll()``, in the thread that calls it. A lost connection is
    among them ("FAIL"): a commit during which one was reported is ambiguous.
    """
    config: dict[str, Any] = {
        **_base(settings, logger),
        "acks": "all",
        "enable.idempotence": True,
        # Java's murmur2: librdkafka's own default puts most keys elsewhere than Java and aiokafka do.
        "partitioner": LIBRDKAFKA_PARTITIONER,
        "compression.type": "lz4",
        "linger.ms": linger_ms,
        "message.max.bytes": MAX_MESSAGE_BYTES,
        # Bounds memory; a full queue is back-pressure.
        "queue.buffering.max.messages": 100_000,
        "queue.buffering.max.kbytes": 65_536,
    }
    if transactional_id is None:
        if delivery_timeout_s is not None:
            config["delivery.timeout.ms"] = round(delivery_timeout_s * 1000)
        return config
    return {
        **config,
        "transactional.id": transactional_id,
        # What it forwards has grown by some headers since a producer with the limit above wrote it.
        "message.max.bytes": MAX_FORWARDED_BYTES,
        "transaction.timeout.ms": TRANSACTION_TIMEOUT_MS,
        # With the default of 100 ms each transaction waits out CONCURRENT_TRANSACTIONS: 65 ms instead of 4.
        "retry.backoff.ms": 1,
        "retry.backoff.max.ms": 50,
    }


def worker_consumer_config(
    settings: Settings, group: str, *, logger: logging.Logger | None = None
) -> dict[str, Any]:
    """A member of a workers' group, under the protocol of KIP-848."""
    return {
        **_base(settings, logger),
        "group.id": group,
        "group.protocol": "consumer",
        # Partition i of all subscribed topics goes to the same member: one owner per key, across priorities.
        "group.remote.assignor": "range",
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        # A lost offset is an error with a name: starting again at either end would repeat or lose jobs.
        "auto.offset.reset": "error",
        "isolation.level": "read_committed",
        # With the defaults a critical job waits behind a hundred thousand fetched low ones.
        "queued.min.messages": 2_000,
        "queued.max.messages.kbytes": 2_048,
        "fetch.queue.backoff.ms": 10,
        # A fetch that was sent while the queue was full, or before a pause, may leave out the critical topic, and the next one
        # waits for its end: data ends it at once, and without any it lasts this long. Critical jobs behind 100,000 low ones
        # started after 40 ms (p99) with 20, 70 with 50, 130 with 100. Shorter costs the idle: a worker 0.9 % of a core with
        # 20, 0.6 with 50, and its broker 6 % instead of 3.5, since each fetch names all its partitions.
        "fetch.wait.max.ms": 20,
        # Of each partition. What was fetched and not taken is dropped at a pause, and fetched again, and while two thousand records
        # wait to be taken nothing is fetched, the critical topic left out as well: with 128 KiB, critical jobs behind 200,000 low
        # ones started after 96 ms (p99, on a slow machine), with 64 after 101, with this after 70 to 78.
        "fetch.message.max.bytes": 32 * 1024,
        "allow.auto.create.topics": False,
    }


def reader_config(
    settings: Settings, *, read_committed: bool = True, logger: logging.Logger | None = None
) -> dict[str, Any]:
    """A consumer that scans with ``assign()`` and is gone: it joins no group and commits nothing."""
    return {
        **_base(settings, logger),
        # librdkafka asks for a name even where no group is joined.
        "group.id": f"{settings.topic_prefix}reader-{uuid4().hex[:12]}",
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        # Where the log start moved while we read, the next record is the right one.
        "auto.offset.reset": "earliest",
        "isolation.level": "read_committed" if read_committed else "read_uncommitted",
        "fetch.wait.max.ms": 20,
        "allow.auto.create.topics": False,
    }


def admin_config(settings: Settings, *, logger: logging.Logger | None = None) -> dict[str, Any]:
    """An ``AdminClient``."""
    return _base(settings, logger)


def aiokafka_config(settings: Settings) -> dict[str, Any]:
    """What all aiokafka clients are given. Their default partitioner is Java's murmur2 already.

    Raises:
        SettingsError: a certificate file cannot be read.
    """
    config: dict[str, Any] = {
        "bootstrap_servers": settings.bootstrap_servers().split(","),
        "client_id": client_id(),
        "security_protocol": settings.kafka_security_protocol,
    }
    if settings.kafka_security_protocol in ("SSL", "SASL_SSL"):
        config["ssl_context"] = _ssl_context(settings)
    if settings.kafka_security_protocol.startswith("SASL"):
        assert settings.kafka_sasl_password is not None  # noqa: S101 - the settings' own check
        config |= {
            "sasl_mechanism": settings.kafka_sasl_mechanism,
            "sasl_plain_username": settings.kafka_sasl_username,
            "sasl_plain_password": settings.kafka_sasl_password.get_secret_value(),
        }
    return config


def registry_client(settings: Settings) -> SchemaRegistryClient:
    """The schema registry's client.

    Raises:
        SettingsError: ``SCHEMA_REGISTRY_URL`` is not set.
    """
    from confluent_kafka.schema_registry import SchemaRegistryClient  # 0.3 s to import, rarely needed

    if settings.schema_registry_url is None:
        raise SettingsError("SCHEMA_REGISTRY_URL is not set")
    return SchemaRegistryClient.new_client({"url": settings.schema_registry_url})


def check_reachable(settings: Settings, timeout_s: float = 5.0) -> None:
    """Ask for the cluster's metadata, for ``timeout_s`` at most. Blocks: not for an event loop.

    Raises:
        KafkaUnreachable: nobody answered, or nobody's address is known.
    """
    admin = AdminClient(admin_config(settings))
    try:
        admin.list_topics(timeout=timeout_s)
    except KafkaException as error:
        raise KafkaUnreachable(settings.bootstrap_servers(), timeout_s) from error


def why_not_let_in(settings: Settings, timeout_s: float = 3.0) -> str | None:
    """What stands between these settings and a broker that is there: a password, a certificate. None: nothing of that kind.

    librdkafka takes such a broker for one that is away, and tries again. Asks once more, since it tells its reasons only to who
    listens. Blocks.
    """
    if settings.kafka_security_protocol == "PLAINTEXT":
        return None
    reasons: list[str] = []

    def listen(error: KafkaError) -> None:
        if error.code() in _NOT_LET_IN:
            reasons.append(error.str())

    config: dict[str, Any] = {**admin_config(settings), "error_cb": listen}
    admin = AdminClient(config)
    with contextlib.suppress(KafkaException):
        admin.list_topics(timeout=timeout_s)
    admin.poll(0)
    return reasons[0] if reasons else None


def client_id() -> str:
    """What brokers show in their logs and metrics."""
    return f"rustfs-workers@{socket.gethostname()}"[:100]


def _base(settings: Settings, logger: logging.Logger | None) -> dict[str, Any]:
    return {
        "bootstrap.servers": settings.bootstrap_servers(),
        "client.id": client_id(),
        "logger": logger or log,
        "log.connection.close": True,
        "statistics.interval.ms": 0,
        # A broker that restarts is found again soon: the default waits up to 10 s.
        "reconnect.backoff.ms": 50,
        "reconnect.backoff.max.ms": 1_000,
        **_security(settings),
    }


def _security(settings: Settings) -> dict[str, Any]:
    config: dict[str, Any] = {"security.protocol": settings.kafka_security_protocol}
    if settings.kafka_security_protocol.startswith("SASL"):
        assert settings.kafka_sasl_password is not None  # noqa: S101 - the settings' own check
        config |= {
            "sasl.mechanism": settings.kafka_sasl_mechanism,
            "sasl.username": settings.kafka_sasl_username,
            "sasl.password": settings.kafka_sasl_password.get_secret_value(),
        }
    if settings.kafka_security_protocol in ("SSL", "SASL_SSL"):
        files = {
            "ssl.ca.location": settings.kafka_ssl_ca_location,
            "ssl.certificate.location": settings.kafka_ssl_certificate_location,
            "ssl.key.location": settings.kafka_ssl_key_location,
        }
        config |= {name: str(path) for name, path in files.items() if path is not None}
        if settings.kafka_ssl_key_password is not None:
            config["ssl.key.password"] = settings.kafka_ssl_key_password.get_secret_value()
    return config


def _ssl_context(settings: Settings) -> Any:
    from aiokafka.helpers import create_ssl_context

    password = settings.kafka_ssl_key_password
    try:
        return create_ssl_context(
            cafile=_text(settings.kafka_ssl_ca_location),
            certfile=_text(settings.kafka_ssl_certificate_location),
            keyfile=_text(settings.kafka_ssl_key_location),
            password=password.get_secret_value() if password else None,
        )
    except OSError as error:  # ssl.SSLError is one
        raise SettingsError(f"a file of KAFKA_SSL_…_LOCATION cannot be used: {error}") from error


def _text(path: object) -> str | None:
    return None if path is None else str(path)
