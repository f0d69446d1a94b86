"""Run seeds, and say which of them broke what."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor

import structlog

from tests.simulation.world import World


def main() -> int:
    """0: nothing broke."""
    parser = argparse.ArgumentParser(
        description="The protocol of a worker, in every order that a seed chooses."
    )
    parser.add_argument("--seeds", type=int, default=1_000, help="how many; default 1,000")
    parser.add_argument("--first", type=int, default=0, help="the first of them; default 0")
    parser.add_argument("--seed", type=int, help="only this one, with the worker's log")
    options = parser.parse_args()
    began = time.monotonic()
    if options.seed is not None:
        return _tell({options.seed: World(options.seed).run()}, began)
    seeds = range(options.first, options.first + options.seeds)
    with ProcessPoolExecutor(os.cpu_count(), initializer=_in_silence) as processes:
        return _tell(dict(zip(seeds, processes.map(_run, seeds, chunksize=20), strict=True)), began)


def _in_silence() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


def _run(seed: int) -> list[str]:
    return World(seed).run()


def _tell(broken: dict[int, list[str]], began: float) -> int:
    failed = {seed: what for seed, what in broken.items() if what}
    for seed, what in failed.items():
        print(f"seed {seed}:", *what[:5], sep="\n    ", flush=True)
    print(f"{len(broken)} seeds, {len(failed)} failed, {time.monotonic() - began:.1f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
