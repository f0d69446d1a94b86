"""Schemas in a Confluent registry, where one is set; otherwise the codec needs nobody.

In:  settings. Out: a ``Codec`` that writes the right frame, and a way to learn the schema behind an id.
Subjects follow TopicRecordName (``<topic>-<namespace>.<record>``): a topic can hold many record types.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from schemas.codec import Codec, SchemaStore
from schemas.errors import PipelineError
from schemas.records import REPORT, STATUS
from schemas.topics import Topics
from schemas.wire import WireSchema
from streams.clients import registry_client
from streams.settings import Settings

if TYPE_CHECKING:
    from confluent_kafka.schema_registry import SchemaRegistryClient

#: Length of the key that a Confluent frame has in a ``SchemaStore``: magic byte and id.
CONFLUENT_KEY_LENGTH: Final = 5


class RegistryFailed(PipelineError):
    """The schema registry did not answer, or refused."""


class RegistryFraming:
    """Writes Confluent's frame; registers a schema the first time it is used. Safe from any thread.

    That first time waits for the registry: callers on an event loop do it in a thread (``Codec.prefix``).
    """

    def __init__(self, client: SchemaRegistryClient, topics: Topics, store: SchemaStore) -> None:
        self._client = client
        self._store = store
        # A job's bytes are forwarded between topics as they are: its schema is registered for each job topic.
        self._job_topics = tuple(topics.jobs.values())
        self._topics_of: Mapping[str, str] = {
            STATUS.full_name: topics.status,
            REPORT.full_name: topics.reports,
        }
        self._known: dict[bytes, bytes] = {}
        self._lock = threading.Lock()

    def prefix(self, schema: WireSchema) -> bytes:
        """Magic byte and schema id.

        Raises:
            RegistryFailed: the registry did not answer, or refused the schema.
        """
        with self._lock:
            prefix = self._known.get(schema.fingerprint)
            if prefix is None:
                prefix = self._known[schema.fingerprint] = self._register(schema)
            return prefix

    def _register(self, schema: WireSchema) -> bytes:
        from confluent_kafka.schema_registry import Schema  # 0.3 s to import, rarely needed

        topic = self._topics_of.get(schema.full_name)
        topics = self._job_topics if topic is None else (topic,)
        with _registry_errors(schema.full_name):
            # One schema has one id, whatever the subject; where a registry thinks otherwise, each will do.
            ids = [
                self._client.register_schema(f"{topic}-{schema.full_name}", Schema(schema.json, "AVRO"))
                for topic in topics
            ]
        prefix = b"\x00" + ids[0].to_bytes(4, "big")
        self._store.add(prefix, schema.schema)
        return prefix


class RegistrySchemas:
    """Learns the schemas behind ids. Blocks on the network: not for an event loop."""

    def __init__(self, client: SchemaRegistryClient, store: SchemaStore) -> None:
        self._client = client
        self._store = store

    def learn(self, key: bytes) -> bool:
        """Ask for the schema of a Confluent frame key and add it to the store; False if there is none.

        Raises:
            RegistryFailed: the registry did not answer.
            BadSchema: what it has cannot be used.
        """
        from confluent_kafka.schema_registry import SchemaRegistryError

        number = int.from_bytes(key[1:CONFLUENT_KEY_LENGTH], "big")
        try:
            with _registry_errors(f"schema {number}", but_not=SchemaRegistryError):
                found = self._client.get_schema(number)
        except SchemaRegistryError as error:
            if error.http_status_code == 404:  # noqa: PLR2004 - HTTP: not found
                return False
            raise RegistryFailed(f"schema {number}: the registry says: {error}") from error
        if found.schema_str is None or found.schema_type not in (None, "AVRO"):
            return False
        self._store.add_json(key, found.schema_str)
        return True


def build_codec(settings: Settings, *, client: SchemaRegistryClient | None = None) -> Codec:
    """A codec that writes Confluent's frame if a registry is set, else Avro's single-object frame.

    ``client``: a registry client to share; by default one is made where it is needed.
    """
    if client is None:
        if settings.schema_registry_url is None:
            return Codec()
        client = registry_client(settings)
    store = SchemaStore()
    return Codec(RegistryFraming(client, settings.topics, store), store)


def forget_subjects(settings: Settings, *, client: SchemaRegistryClient | None = None) -> None:
    """Delete the subjects of this deployment, if there is a registry: for prefixes that were made up for one run.

    ``client``: a registry client to use; by default one is made.

    Raises:
        RegistryFailed: the registry did not answer, or refused.
    """
    if client is None:
        if settings.schema_registry_url is None:
            return
        client = registry_client(settings)
    with _registry_errors(f"subjects of {settings.topic_prefix}"):
        for subject in client.get_subjects():
            if subject.startswith(settings.topic_prefix):
                client.delete_subject(subject)


@contextmanager
def _registry_errors(subject: str, but_not: type[Exception] | tuple[()] = ()) -> Iterator[None]:
    try:
        yield
    except but_not:
        raise
    except Exception as error:  # httpx's errors and the client's own have no common ancestor
        raise RegistryFailed(
            f"{subject}: the schema registry failed: {type(error).__name__}: {error}; "
            "look at SCHEMA_REGISTRY_URL"
        ) from error
