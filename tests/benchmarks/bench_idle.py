"""What a worker costs that has nothing to do. Not collected by pytest.

    python tests/benchmarks/bench_idle.py [--seconds 30] [--partitions 12] [--rounds 1]

In:  nothing; it starts a Kafka of its own and one ``rustfs-workers worker`` on it. Out: one JSON object per
round: CPU time of the worker and of the broker in percent of a core, and the worker's threads that took most
of it (librdkafka's are called ``rdk:…``).

It takes the seconds asked for and some twenty more.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[2]))

from streams.embedded import BrokerConfig, EmbeddedBroker
from streams.provision import provision
from streams.settings import Settings, load_settings
from tests.support.waiting import eventually
from tests.support.workers import workers

#: What starting leaves behind (caches, the first heartbeats, the broker's compiler) is not the cost of rest.
SETTLE_S = 8.0
MOST = 6


def cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def by_thread(process: psutil.Process) -> Counter[str]:
    """CPU seconds by the threads' names; numbers at their ends (of broker, thread) are kept."""
    found: Counter[str] = Counter()
    for thread in process.threads():
        try:
            name = Path(f"/proc/{process.pid}/task/{thread.id}/comm").read_text().strip()
        except OSError:  # it has ended, or this is no Linux
            name = str(thread.id)
        found[f"{name}/{thread.id}"] += thread.user_time + thread.system_time  # type: ignore[assignment]
    return found


def outlives(worker: psutil.Process, seconds: float) -> None:
    """Let the time pass that is to be measured; a worker that ends meanwhile ends the bench."""
    try:
        code = worker.wait(seconds)
    except psutil.TimeoutExpired:
        return
    raise SystemExit(f"the worker ended by itself (exit code {code})")


def measure(worker: psutil.Process, broker: psutil.Process, seconds: float) -> dict[str, Any]:
    threads, began = by_thread(worker), time.monotonic()
    worker_s, broker_s = cpu_seconds(worker), cpu_seconds(broker)
    switches = worker.num_ctx_switches()
    outlives(worker, seconds)
    took = time.monotonic() - began
    after = worker.num_ctx_switches()
    busiest = (by_thread(worker) - threads).most_common(MOST)
    return {
        "seconds": round(took, 1),
        "worker_percent": round(100 * (cpu_seconds(worker) - worker_s) / took, 2),
        "broker_percent": round(100 * (cpu_seconds(broker) - broker_s) / took, 2),
        "wake_ups_per_s": round((after.voluntary - switches.voluntary) / took),
        "threads_percent": {name: round(100 * spent / took, 2) for name, spent in busiest},
    }


def idle(directory: Path, options: argparse.Namespace) -> None:
    with EmbeddedBroker(BrokerConfig(directory / "kafka")) as broker:
        settings: Settings = load_settings(
            kafka_bootstrap_servers=broker.bootstrap_servers,
            topic_prefix="idle.",
            partitions=options.partitions,
            data_dir=directory / "data",
        )
        provision(settings)
        with workers(settings, directory) as start:
            worker = start("idle")
            eventually(lambda: worker.said("partitions assigned"), 60, "the worker has its partitions")
            outlives(psutil.Process(worker.pid), SETTLE_S)
            for _ in range(options.rounds):
                found = measure(psutil.Process(worker.pid), psutil.Process(broker.pid), options.seconds)
                print(json.dumps({"partitions": 12 * options.partitions, **found}), flush=True)
            worker.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument(
        "--partitions", type=int, default=12, help="of each topic; a worker has twelve topics"
    )
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-idle-") as directory:
        idle(Path(directory), options)


if __name__ == "__main__":
    main()
