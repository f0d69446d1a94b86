"""A Kafka that lets in only who knows a password, over TLS, with a certificate that was made a moment ago."""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from streams.embedded import BrokerConfig, EmbeddedBroker
from streams.embedded.properties import HOST, Node
from streams.embedded.state import free_port

_LOGIN = "org.apache.kafka.common.security.plain.PlainLoginModule"


@dataclass(frozen=True)
class SecuredKafka:
    """Where it is, and what it wants to see."""

    address: str
    #: Of who signed its certificate.
    authority: Path
    #: Of somebody else.
    stranger: Path
    user: str = "storage"
    password: str = "correct horse"


@contextmanager
def secured_kafka(directory: Path) -> Iterator[SecuredKafka]:
    """Started, and stopped afterwards. Its brokers talk to one another in plain text, on another port."""
    plain, secured = free_port(), free_port()
    node = Node(1, plain, free_port(not_these=(plain, secured)))
    known = SecuredKafka(
        f"{HOST}:{secured}", authority=directory / "authority.pem", stranger=directory / "stranger.pem"
    )
    key, certificate = _made_for(HOST)
    known.authority.write_bytes(certificate)
    known.stranger.write_bytes(_made_for(HOST)[1])
    store = directory / "broker.pem"
    store.write_bytes(key + certificate)
    extra = {
        "listeners": f"PLAINTEXT://{HOST}:{plain},SECURED://{HOST}:{secured},CONTROLLER://{HOST}:{node.controller_port}",
        "advertised.listeners": f"PLAINTEXT://{HOST}:{plain},SECURED://{HOST}:{secured}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,SECURED:SASL_SSL,CONTROLLER:PLAINTEXT",
        "sasl.enabled.mechanisms": "PLAIN",
        "listener.name.secured.plain.sasl.jaas.config": f'{_LOGIN} required user_{known.user}="{known.password}";',
        "listener.name.secured.ssl.keystore.type": "PEM",
        "listener.name.secured.ssl.keystore.location": str(store),
    }
    with EmbeddedBroker(BrokerConfig(directory / "kafka", extra=extra, nodes=(node,))):
        yield known


def _made_for(host: str) -> tuple[bytes, bytes]:
    """A key, and a certificate that it has signed itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    return (
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        certificate.public_bytes(Encoding.PEM),
    )
