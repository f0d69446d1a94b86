"""Run seeds, and say which of them broke what."""

from __future__ import annotations

import argparse
import logging
import sys
import time

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
    if options.seed is None:
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
        seeds = range(options.first, options.first + options.seeds)
    else:
        seeds = range(options.seed, options.seed + 1)
    began, failed = time.monotonic(), 0
    for seed in seeds:
        broken = World(seed).run()
        if broken:
            failed += 1
            print(f"seed {seed}:", *broken[:5], sep="\n    ", flush=True)
    print(f"{len(seeds)} seeds, {failed} failed, {time.monotonic() - began:.1f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
