"""A worker tells readers the schemas of what it writes, before it writes it.

At its start: of statuses, reports and the job types that it has registered. A child job's type may be none of
these; then the schema goes with the child, in the transaction of its parent's outcome (``OutRecord.schema``).
"""

from __future__ import annotations

from collections.abc import Iterable

from schemas.codec import Codec
from schemas.errors import DeliveryFailed, PipelineError
from schemas.records import REPORT, STATUS
from schemas.wire import WireSchema
from streams.schemas_topic import publish_schemas
from streams.settings import Settings
from workers.worker import Handler


def own_schemas(handlers: Iterable[Handler]) -> list[WireSchema]:
    """What a worker with these handlers is known to write."""
    return [STATUS, REPORT, *(handler.job_type.wire for handler in handlers)]


def frame(codec: Codec, schemas: Iterable[WireSchema]) -> Codec:
    """See that the codec knows their frames. Blocks where a registry has to be asked: not for an event loop.

    Raises:
        RegistryFailed: the registry did not answer, or refused a schema.
    """
    for schema in schemas:
        codec.prefix(schema)
    return codec


def introduce(settings: Settings, schemas: Iterable[WireSchema], *, timeout_s: float) -> None:
    """Put the schemas on their topic, and wait for the acknowledgement. Blocks: not for an event loop.

    Raises:
        KafkaUnreachable: not acknowledged in time; nobody could read what this worker would write.
        PipelineError: Kafka refused one.
    """
    try:
        publish_schemas(settings, schemas, timeout_s=timeout_s)
    except DeliveryFailed as error:
        raise PipelineError(
            f"the schemas of what this worker writes are not on {settings.topics.schemas}: {error}; "
            "see `rustfs-workers topics check`"
        ) from error
