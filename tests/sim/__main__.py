"""Run schedules: `python -m tests.sim --from K --seeds N`, over two processes.

Prints the statistics, and for a failing seed the one command that reproduces it with its shrunk list of acts.
"""

from __future__ import annotations

import argparse
import os
import sys

from tests.sim.fleet import run_many
from tests.sim.schedule import run
from tests.sim.shrink import shrunk
from tests.sim.workload import workload


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


if __name__ == "__main__":
    sys.exit(main())
