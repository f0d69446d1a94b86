"""One record that arrived from a job topic or a retry topic, as the worker handles it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from schemas.codec import peek_id
from schemas.errors import WireError
from schemas.headers import Origin, RawHeaders, parse, salvage, time_of_record
from schemas.topics import JobPriority, Tier

if TYPE_CHECKING:
    from workers.offsets import PartitionState

_OVERHEAD_BYTES: Final = 400


class Message:
    """A record and the partition state it belongs to. The value stays bytes until the job is started."""

    __slots__ = (
        "copy",
        "delivery",
        "job_id",
        "kept_out",
        "key",
        "lost_worker",
        "needs_fresh_process",
        "offset",
        "part",
        "priority",
        "problem",
        "raw_headers",
        "sandboxed",
        "size",
        "tier",
        "timestamp_ms",
        "value",
    )

    def __init__(
        self,
        part: PartitionState,
        offset: int,
        key: bytes | None,
        value: bytes | None,
        raw_headers: RawHeaders | None,
        timestamp_ms: int,
        priority: JobPriority | None,
        tier: Tier | None,
    ) -> None:
        self.part = part
        self.offset = offset
        self.key = key
        self.value = value
        self.raw_headers = raw_headers
        size = len(value or b"") + len(key or b"") + _OVERHEAD_BYTES
        if raw_headers:
            if len(raw_headers) == 1:  # every first run: no loop
                size += len(raw_headers[0][1] or b"")
            else:  # several KB after ten attempts
                size += sum([len(name) + len(text or b"") for name, text in raw_headers])
        #: Bytes that it holds in memory, about.
        self.size = size
        self.timestamp_ms = time_of_record(timestamp_ms)
        #: Of the job topic it came from; None on a retry topic.
        self.priority = priority
        self.tier = tier
        #: The same delivery of the same job was seen at another place.
        self.copy = False
        #: It was running alone when its owner was lost: it is accused of that death until ``verdicts`` decides.
        self.lost_worker = False
        #: It runs in the sandbox.
        self.sandboxed = False
        #: Its process there was killed without proof against it: it runs alone in the worker.
        self.kept_out = False
        #: In the sandbox it has ended a process in which others had run before.
        self.needs_fresh_process = False
        #: Why it cannot be read, if so; such a record is dead-lettered unchanged.
        self.problem: WireError | None = None
        try:
            self.delivery = parse(raw_headers)
        except WireError as error:
            self.problem = error
            self.delivery = salvage(raw_headers)
        else:
            if tier is not None and self.delivery.delay_ms:
                # The broker stamps the records of retry topics itself.
                self.delivery = self.delivery.counted_from(self.timestamp_ms)
        #: Empty if the bytes do not begin with one.
        self.job_id = b""
        try:
            self.job_id = peek_id(value)
        except WireError as error:
            self.problem = self.problem or error
            self.delivery = salvage(raw_headers)  # without a time to wait for

    @property
    def origin(self) -> Origin:
        """Where this very record stands."""
        return Origin(self.part.topic, self.part.partition, self.offset)

    @property
    def job_id_text(self) -> str:
        """The id as text, whatever stands there."""
        return self.job_id.decode("ascii", "replace")

    @property
    def where(self) -> str:
        """Topic, partition and offset, for logs."""
        return f"{self.part.topic}/{self.part.partition}/{self.offset}"
