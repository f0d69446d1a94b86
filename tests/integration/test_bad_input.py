"""A flood of bad records over a real worker, with good jobs in between: `python -m tests.guarantees.bad_input` in small."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from streams.reader import JobReader
from streams.settings import Settings
from tests.guarantees.bad_input.flood import Plan, run
from tests.guarantees.bad_input.judge import judge
from tests.support.commands import CommandLine
from tests.support.workers import Start

pytestmark = [pytest.mark.job_processing, pytest.mark.integration]

SEED = 11


def test_each_bad_record_comes_to_its_end_and_nothing_stops(
    start: Start, provisioned: Settings, tmp_path: Path
) -> None:
    plan = Plan(SEED, records=3_000, longest_delay_ms=1_000, timeout_s=90)
    flood, worker = run(plan, provisioned, start, lambda _: None)
    verdict = judge(plan, provisioned, flood)
    assert verdict.broken == {}, verdict.to_json()
    assert flood.records >= plan.records
    assert worker.terminate() == 0
    assert "Traceback" not in worker.stderr_file.read_text()
    # Whoever looks at these topics afterwards gets past everything, and counts it.
    commands = CommandLine.on(provisioned, tmp_path)
    listed = commands.here("jobs", "list", "--limit", "10000", "--json")
    unreadable = sum(
        passed.readable is False for passed, place in flood.passed if place[0] == provisioned.topics.status
    )
    assert (listed.code, listed.records()[-1]["unreadable"] > unreadable) == (0, True)
    assert commands.here("jobs", "list").code == 0
    assert commands.here("jobs", "show", flood.good[-1]).code == 0
    letters = commands.here("dlq", "list", "--json")
    assert letters.code == 0
    for strange in [one["id"] for one in letters.records()[:-1] if one["error_type"] == "Strange"][:3]:
        assert commands.here("dlq", "show", strange, "--json").code == 0
        assert commands.here("dlq", "show", strange).code == 0
    assert commands.here("topics", "check").code == 0
    reader = JobReader(provisioned)
    try:
        for job_id, state in reader.read(timeout_s=60).living():
            json.dumps(reader.info(job_id, state).to_full_json())
    finally:
        reader.close()
