"""``python -m tests.guarantees.bad_input``: a flood of bad records, and its verdict as the last line."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from streams.embedded import BrokerConfig, EmbeddedBroker
from streams.provision import provision
from streams.settings import load_settings
from tests.guarantees.bad_input.flood import Plan, run
from tests.guarantees.bad_input.judge import judge
from tests.guarantees.bad_input.readers import look
from tests.support.workers import workers
from workers.logs import configure_logging

PARTITIONS = 4


def main() -> int:
    """Run it. Exit code 1 if a record, a job or a reader did not come through as it must."""
    parser = argparse.ArgumentParser(prog="python -m tests.guarantees.bad_input", description=__doc__)
    parser.add_argument("--records", type=int, default=100_000, help="bad ones")
    parser.add_argument("--seed", type=int, default=1, help="decides them")
    parser.add_argument("--keep", type=Path, help="an empty directory for all files, which stay there")
    parser.add_argument("--json", action="store_true", help="the verdict as one line of JSON, last on stdout")
    arguments = parser.parse_args()
    configure_logging("error")
    began = time.monotonic()

    def progress(text: str) -> None:
        sys.stderr.write(f"{time.monotonic() - began:7.1f} s  {text}\n")

    with tempfile.TemporaryDirectory(prefix="rustfs-workers-bad-input-") as temporary:
        directory = arguments.keep or Path(temporary)
        directory.mkdir(parents=True, exist_ok=True)
        broker = EmbeddedBroker(BrokerConfig(directory / "kafka", heap_mb=768))
        broker.start(90)
        try:
            settings = load_settings(
                kafka_bootstrap_servers=broker.bootstrap_servers,
                topic_prefix="b.",
                partitions=PARTITIONS,
                data_dir=directory / "data",
            )
            provision(settings)
            plan = Plan(arguments.seed, arguments.records, longest_delay_ms=30_000, rare_each=5)
            with workers(settings, directory) as start:
                flood, worker = run(plan, settings, start, progress)
                progress("judging")
                verdict = judge(plan, settings, flood)
                times = look(settings, flood, worker, start, directory, verdict, progress)
        finally:
            broker.stop()
    report = {
        "seed": plan.seed,
        "records": flood.records,
        "good_jobs": len(flood.good),
        "kinds": dict(sorted(flood.kinds.items())),
        "produced_s": round(flood.produced_s, 1),
        "settled_s": round(flood.settled_s, 1),
        **verdict.to_json(),
        "readers_s": times,
    }
    for rule, cases in verdict.broken.items():
        for case in cases:
            sys.stderr.write(f"{rule}: {case}\n")
    if arguments.json:
        sys.stdout.write(json.dumps(report) + "\n")
    else:
        for name, value in report.items():
            sys.stdout.write(f"{name:>12}  {value}\n")
    return 1 if verdict.broken else 0


if __name__ == "__main__":
    sys.exit(main())
