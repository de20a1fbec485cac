"""The first complaint: run seeds in order until a schedule fails, and say which it was.

Owns nothing but that loop; `mutants.py` runs it in a copy of the core with a planted bug.
"""

from __future__ import annotations

import sys

from tests.sim.schedule import run
from tests.sim.workload import calm, workload


def main() -> None:
    """Print "<seeds needed> <complaint>", with 0 when nobody complained."""
    for seed in range(1, int(sys.argv[1]) + 1):
        if error := run(workload(seed)).error or run(calm(workload(seed))).error:
            print(seed, error.replace("\n", " "))
            return
    print(0, "no schedule complained")


if __name__ == "__main__":
    main()
