"""The fleet: many schedules, over a few processes.

Owns the distribution of seeds. Each schedule is a pure function of its seed, so the split changes nothing.
"""

from __future__ import annotations

import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from tests.sim.schedule import Result, run
from tests.sim.statistics import Statistics
from tests.sim.workload import workload

CHUNK = 100


def run_seeds(span: tuple[int, int]) -> tuple[list[Result], float]:
    """Run a span of seeds and say how many seconds of a core that took; a worker of the pool does this."""
    begun = time.process_time()
    results = [run(workload(seed)) for seed in range(*span)]
    return results, time.process_time() - begun


def run_many(first: int, seeds: int, *, processes: int) -> Statistics:
    """Run many seeds and gather what happened."""
    begun = time.perf_counter()
    spans = [(start, min(start + CHUNK, first + seeds)) for start in range(first, first + seeds, CHUNK)]
    statistics = Statistics()
    if processes <= 1 or len(spans) == 1:
        for span in spans:
            statistics.add(*run_seeds(span))
    else:
        # Spawned, because a forked child of a test process would share its threads' locks.
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            for results, core_seconds in pool.map(run_seeds, spans):
                statistics.add(results, core_seconds)
    statistics.seconds = time.perf_counter() - begun
    statistics.processes = max(1, min(processes, len(spans)))
    return statistics
