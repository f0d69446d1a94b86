"""The judgement over a deployment in which faults happened: every outcome stands once, and none is missing.

In:  the jobs that were accepted. Out: nothing, or an assertion that names the first job with two lineages or none.

Reads the topics raw and committed, from the first record, and shares no code with the readers of the product.
"""

from __future__ import annotations

from collections import Counter
from typing import TypeAlias

from schemas import JobStatus
from schemas.codec import peek_id
from schemas.headers import parse
from streams.settings import Settings
from tests.support.audit import raw_headers, read_all, statuses

#: A job and the number of its delivery.
Delivered: TypeAlias = tuple[str, int]


def deliveries(settings: Settings, *topics: str) -> Counter[Delivered]:
    """How often each delivery of each job stands on these topics."""
    return Counter(
        (peek_id(message.value()).decode(), parse(raw_headers(message)).delivery)
        for message in read_all(settings, *topics)
    )


def assert_exactly_once(settings: Settings, ids: list[str]) -> dict[str, JobStatus]:
    """Statuses, job and retry records and dead letters of all jobs that stand there, children included. The final states.

    For a Kafka whose brokers lived: a producer may write a job a second time when they come back.
    """
    published = deliveries(settings, *settings.topics.consumed)
    assert several(published) == {}, "job and retry records that stand more than once"
    told: Counter[tuple[str, int, str]] = Counter()
    for job_id, history in statuses(settings).items():
        told.update((job_id, c.delivery, c.state) for c in history if c.state is not JobStatus.RUNNING)
    assert several(told) == {}, "outcomes that stand more than once"
    final = {job_id: JobStatus(state) for job_id, _, state in told if JobStatus(state).final}
    assert len(final) == sum(JobStatus(state).final for _, _, state in told), "a job has two ends"
    known = {job_id for job_id, _ in published}
    assert (known | set(ids)) - set(final) == set(), "jobs without an end"
    assert set(ids) <= known
    after = {(job_id, number + 1) for job_id, number, state in told if state == JobStatus.RETRYING}
    assert after - set(published) == set(), "a retry was told, and its record is not there"
    hops = {(job_id, number) for job_id, number in published if number > 0} - after
    assert {(job_id, number - 1) for job_id, number in hops} <= set(published), "a record that nothing led to"
    letters = deliveries(settings, settings.topics.dlq)
    assert several(letters) == {}, "dead letters that stand more than once"
    failed = {job_id for job_id, state in final.items() if state is JobStatus.FAILED}
    assert {job_id for job_id, _ in letters} == failed
    return final


def several(counted: Counter[Delivered] | Counter[tuple[str, int, str]]) -> dict[tuple[object, ...], int]:
    """What was counted more than once."""
    return {what: count for what, count in counted.items() if count > 1}
