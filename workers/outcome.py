"""What shall be written because of one run, in one transaction with everything else of its tick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from schemas.headers import RawHeaders
from schemas.lifecycle import JobStatus
from schemas.records import StatusChange
from schemas.topics import JobPriority
from schemas.wire import WireSchema
from workers.message import Message

#: Memory of one outgoing record beside its value, roughly: the outcome, the record and the message are objects.
_BYTES_A_RECORD: Final = 2_000

#: Counted as such, and what the commit thread goes by when Kafka refuses an outcome: which of its forms was refused.
NOT_WRITABLE: Final = "not_writable"
NOT_KEPT: Final = "not_kept"


@dataclass(frozen=True, slots=True)
class OutRecord:
    """A record to produce. ``partition`` -1 lets the key decide.

    ``schema``: of its value, if readers may not know it yet; whoever writes the record sees to that.
    """

    topic: str
    partition: int
    key: bytes | None
    value: bytes | None
    headers: RawHeaders
    schema: WireSchema | None = None


class PlainSuccess(NamedTuple):
    """The status of a run that succeeded and has nothing else to tell: most of them."""

    key: str | None
    at: int
    created_at: int
    started_at: int
    job_type: str
    priority: JobPriority


@dataclass(slots=True)
class Outcome:
    """Everything that one record's end, or a change on the way, has to write.

    Attributes:
        message: the record that is finished by it; None for news of a job that goes on (running, progress).
        status: the state change, if there is one.
        records: retry, dead letter, child jobs, forwards.
        counts_as: for the counters, moved when the transaction has committed.
        owner: the message whose partition must still be ours for the outcome to count.
        late: what is missing of one whose offset is committed already. Nobody else will ever write it.
    """

    message: Message | None
    status: StatusChange | PlainSuccess | None
    records: tuple[OutRecord, ...] = ()
    counts_as: tuple[str, JobPriority, str] | None = None
    event: str | None = None
    owner: Message | None = None
    late: bool = False

    @property
    def size(self) -> int:
        """Bytes of the values that it writes, its status left out."""
        return sum(len(record.value or b"") for record in self.records)

    @property
    def footprint(self) -> int:
        """Bytes of memory until it is written, roughly: measured with a forwarded retry."""
        return self.size + _BYTES_A_RECORD * len(self.records)

    @property
    def state(self) -> JobStatus | None:
        """The state that it leads to."""
        match self.status:
            case PlainSuccess():
                return JobStatus.SUCCEEDED
            case StatusChange(state=state):
                return state
            case _:
                return None


#: Writes nothing: asks for a commit, so that jobs may start which wait for one.
COMMIT_REQUEST: Final = Outcome(None, None)
