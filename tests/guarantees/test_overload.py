"""More jobs than a worker can do, for some seconds: what does not depend on the machine's speed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.guarantees.overload import QUEUE, SURGE_MIB, Plan, run

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.integration,
    pytest.mark.alone,
    pytest.mark.thorough,
]


@pytest.mark.timeout(600)
def test_a_backlog_costs_no_job_moves_no_partition_and_holds_its_producer_back(tmp_path: Path) -> None:
    lines: list[str] = []
    found = run(Plan(seconds=10.0, backlog=100_000, measure_s=2.0), tmp_path, lines.append)
    assert (found.lost, found.forked, found.moves) == (0, 0, 0), (found.to_json(), lines[-20:])
    assert found.final == {"succeeded": found.accepted + found.urgent}
    assert found.held_back > 0, "its queue was full, and it waited"
    assert found.urgent > 0
    # All that waits would be 200 MiB.
    assert found.surge() <= SURGE_MIB, found.to_json()
    assert found.read_ahead <= QUEUE
    assert found.urgent_p50_ms < found.recovery_s * 1000 / 10, "urgent jobs do not wait for those before them"
