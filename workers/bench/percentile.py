"""Percentiles as the benches print them.

In:  measured durations. Out: one of them, never a value in between that nobody measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from schemas.errors import PipelineError


def percentile(ordered: Sequence[float], percent: int) -> float:
    """The nearest-rank percentile of an ordered list: the least value that ``percent`` of all do not exceed.

    Raises:
        PipelineError: the list is empty.
    """
    if not ordered:
        raise PipelineError("nothing was measured; run it again with more jobs")
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(rank, 1) - 1]


def percentiles_ms(name: str, durations_ns: Iterable[int]) -> dict[str, float]:
    """``<name>_p50_ms`` and ``<name>_p99_ms``, to the hundredth of a millisecond.

    Raises:
        PipelineError: there are no durations.
    """
    ordered = sorted(nanoseconds / 1e6 for nanoseconds in durations_ns)
    return {f"{name}_p{percent}_ms": round(percentile(ordered, percent), 2) for percent in (50, 99)}
