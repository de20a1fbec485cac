"""Runs the benchmarks, one after the other, so that none disturbs the other's times.

Owns: finding and running them. Does not own: what they measure; each is `bench/<noun>/run.py`, which writes
its table and its history beside itself and ends with 0 when its bounds hold.

    python scripts/bench.py [NOUN ...]    all of them, or only the named
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

import caches


def main() -> int:
    home = caches.TREE / "bench"
    wanted = sys.argv[1:] or sorted(path.parent.name for path in home.glob("*/run.py"))
    # What benchmarks share stands in bench/ itself; the processes they measure are started as the tests do.
    rooms = [str(home), str(caches.TREE / "tests")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(rooms)}
    failed = []
    for noun in wanted:
        print(f"bench: {noun}", flush=True)
        began = time.monotonic()
        command = [sys.executable, str(home / noun / "run.py")]
        ended = subprocess.run(command, cwd=caches.TREE, env=environment, check=False)
        print(f"bench: {noun} took {time.monotonic() - began:.0f} s", flush=True)
        if ended.returncode != 0:
            failed.append(noun)
    if failed:
        print(f"bench: out of bounds: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
