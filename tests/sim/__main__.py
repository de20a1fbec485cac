"""Run schedules: `python -m tests.sim --from K --seeds N`, over two processes.

Prints the statistics, and for a failing seed the one command that reproduces it with its shrunk list of acts.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from multiprocessing import get_context

from tests.sim.schedule import Result, run
from tests.sim.shrink import shrunk
from tests.sim.statistics import Statistics
from tests.sim.workload import workload

CHUNK = 100


def run_seeds(span: tuple[int, int]) -> list[Result]:
    """Run a span of seeds; a worker of the pool does this."""
    return [run(workload(seed)) for seed in range(*span)]


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--from", dest="first", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=10_000)
    parser.add_argument("--processes", type=int, default=min(2, os.cpu_count() or 1))
    options = parser.parse_args()
    statistics = run_many(options.first, options.seeds, processes=options.processes)
    print(statistics.text())
    for failed in statistics.failed[:3]:
        print(f"\nseed {failed.seed}: {failed.error}")
        print(f"reproduce: make sim FROM={failed.seed} SEEDS=1")
        small = shrunk(workload(failed.seed))
        print(f"shrunk to {len(small.acts)} act(s): {run(small).error}")
        for act in small.acts:
            print(f"  {act}")
    return 1 if statistics.failed else 0


def run_many(first: int, seeds: int, *, processes: int) -> Statistics:
    """Run many seeds and gather what happened."""
    begun = time.perf_counter()
    spans = [(start, min(start + CHUNK, first + seeds)) for start in range(first, first + seeds, CHUNK)]
    statistics = Statistics()
    if processes <= 1 or len(spans) == 1:
        for span in spans:
            statistics.add(run_seeds(span))
    else:
        # Spawned, because a forked child of a test process would share its threads' locks.
        with get_context("spawn").Pool(processes) as pool:
            for results in pool.imap(run_seeds, spans):
                statistics.add(results)
    statistics.seconds = time.perf_counter() - begun
    statistics.processes = max(1, min(processes, len(spans)))
    return statistics


if __name__ == "__main__":
    sys.exit(main())
