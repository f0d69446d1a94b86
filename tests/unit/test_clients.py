from __future__ import annotations

import contextlib
import socket
import threading
import time
from pathlib import Path

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient

from schemas.errors import KafkaUnreachable, NoBroker
from streams import clients
from streams.settings import Settings, load_settings

pytestmark = pytest.mark.job_processing


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    # Port 1 of this machine: nobody answers there.
    return load_settings(kafka_bootstrap_servers="127.0.0.1:1", data_dir=tmp_path)


def test_every_configuration_is_one_that_librdkafka_takes(settings: Settings) -> None:
    Producer(clients.producer_config(settings))
    Producer(clients.producer_config(settings, transactional_id="t"))
    Consumer(clients.worker_consumer_config(settings, "g")).close()
    Consumer(clients.reader_config(settings)).close()
    AdminClient(clients.admin_config(settings))


def test_every_producer_places_keys_as_java_does(settings: Settings) -> None:
    for config in (
        clients.producer_config(settings),
        clients.producer_config(settings, transactional_id="t"),
    ):
        assert config["partitioner"] == "murmur2_random"
        assert config["enable.idempotence"] is True
        assert config["acks"] == "all"


def test_workers_never_jump_to_an_end_of_a_log(settings: Settings) -> None:
    config = clients.worker_consumer_config(settings, "g")
    assert config["auto.offset.reset"] == "error"
    assert config["enable.auto.commit"] is False
    assert config["group.protocol"] == "consumer"
    assert config["group.remote.assignor"] == "range"
    assert "session.timeout.ms" not in config
    # Whoever is started anew under an old instance id would get its partitions back before they are given up in order.
    assert "group.instance.id" not in config


def test_a_worker_fetches_little_ahead(settings: Settings) -> None:
    """Else an urgent job waits behind what has been fetched: a hundred thousand of the others, with the defaults."""
    config = clients.worker_consumer_config(settings, "g")
    assert config["queued.min.messages"] <= 2_000
    assert config["queued.max.messages.kbytes"] <= 2_048
    assert config["fetch.message.max.bytes"] <= 128 * 1024
    assert config["fetch.wait.max.ms"] <= 20


def test_an_open_transaction_of_a_dead_worker_hides_records_for_seconds_only(settings: Settings) -> None:
    """Readers stop before it; the default is a minute."""
    assert clients.producer_config(settings, transactional_id="t")["transaction.timeout.ms"] == 5_000
    assert "transaction.timeout.ms" not in clients.producer_config(settings)


def test_a_reader_joins_no_known_group(settings: Settings) -> None:
    first, second = clients.reader_config(settings), clients.reader_config(settings)
    assert first["group.id"] != second["group.id"]
    assert first["group.id"] != settings.topics.group


def test_security_reaches_every_client(tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_text("", "utf-8")
    settings = load_settings(
        kafka_bootstrap_servers="127.0.0.1:1",
        kafka_security_protocol="SASL_PLAINTEXT",
        kafka_sasl_mechanism="SCRAM-SHA-512",
        kafka_sasl_username="me",
        kafka_sasl_password="hunter2",
        kafka_ssl_ca_location=ca,
    )
    for config in (
        clients.producer_config(settings),
        clients.worker_consumer_config(settings, "g"),
        clients.reader_config(settings),
        clients.admin_config(settings),
    ):
        assert config["security.protocol"] == "SASL_PLAINTEXT"
        assert config["sasl.mechanism"] == "SCRAM-SHA-512"
        assert config["sasl.password"] == "hunter2"
    kwargs = clients.aiokafka_config(settings)
    assert kwargs["security_protocol"] == "SASL_PLAINTEXT"
    assert kwargs["sasl_plain_password"] == "hunter2"


def test_nobody_there_is_said_in_time(settings: Settings) -> None:
    began = time.monotonic()
    with pytest.raises(KafkaUnreachable, match=r"127\.0\.0\.1:1 within 1 s"):
        clients.check_reachable(settings, timeout_s=1)
    assert time.monotonic() - began < 5


def test_a_broker_that_is_there_and_lets_nobody_in_is_no_absence() -> None:
    """It speaks no TLS: as with a wrong password, librdkafka takes that for a broker that is away."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=_answer_in_plain_text, args=(server,), daemon=True).start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        settings = load_settings(kafka_bootstrap_servers=address, kafka_security_protocol="SSL")
        why = clients.why_not_let_in(settings)
    assert why is not None
    assert "SSL" in why
    plain = load_settings(kafka_bootstrap_servers="127.0.0.1:1")
    assert clients.why_not_let_in(plain) is None


def _answer_in_plain_text(server: socket.socket) -> None:
    with contextlib.suppress(OSError):  # closed at the end of the test
        while True:
            connection, _ = server.accept()
            with connection:
                connection.recv(1024)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (KafkaError._TRANSPORT, KafkaUnreachable),
        (KafkaError._TIMED_OUT, KafkaUnreachable),
        (KafkaError.COORDINATOR_LOAD_IN_PROGRESS, KafkaUnreachable),
        (KafkaError._UNSUPPORTED_FEATURE, NoBroker),
        (KafkaError._CONFLICT, clients.KafkaRefused),
        (KafkaError.CLUSTER_AUTHORIZATION_FAILED, clients.KafkaRefused),
    ],
)
def test_a_refusal_is_not_called_an_absence(settings: Settings, code: int, error: type[Exception]) -> None:
    failed = clients.kafka_failed(settings, KafkaException(KafkaError(code, "why")), 3)
    assert type(failed) is error
    assert ("why" in str(failed)) is (error is clients.KafkaRefused)
