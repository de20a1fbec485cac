"""Makes synthetic models with `tidegate synth` once, keeps them in the cache, and prints where they are.

Owns: where they lie and when they are made anew. Does not own: what is in them (tidegate.synth).
Runs with the Python that has tidegate installed; `make demo`, the tests and the benchmarks all come here.

    python scripts/demo_models.py --key     only prints the key
    python scripts/demo_models.py [KIND]    KIND is a name that `tidegate synth` knows, sd1-tiny by default;
                                            `KIND:TYPE` has weights of another type
                                            stdout: one line, the folder; stderr: what it is doing

They are made anew when the code that writes them or the pinned engine changes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import caches

MAKERS = ("src/tidegate/synth", "src/tidegate/cli/synth.py", "native/engine-sources.txt")
SYNTH = "import sys; from tidegate.cli.main import main; sys.exit(main())"
# Two, so that going back and forth between two branches does not write gigabytes each time.
KEPT_PER_KIND_MAX = 2
# Kinds begin with the names of others: `llama-tiny` and `llama-tiny-q8_0`.
KEY_PATTERN = "[0-9a-f]" * 20


def models_key() -> str:
    return caches.digest_of_files(*(caches.TREE / maker for maker in MAKERS))


def models_folder(kind: str) -> Path:
    home = caches.cache_folder() / "models"
    name, _, weight_type = kind.partition(":")
    label = kind.replace(":", "-")
    target = home / f"{label}-{models_key()}"
    with caches.locked(home / f".{label}.lock"):
        if target.is_dir():
            os.utime(target)
            return target
        print(f"making the synthetic model {kind} (once)", file=sys.stderr, flush=True)
        began = time.monotonic()
        with caches.made_in_one_step(target) as scratch:
            command = [sys.executable, "-c", SYNTH, "synth", name, str(scratch)]
            command += ["--type", weight_type] if weight_type else []
            subprocess.run(command, check=True, stdout=sys.stderr, cwd=caches.TREE)
        made_bytes = sum(path.stat().st_size for path in target.iterdir())
        seconds = time.monotonic() - began
        print(f"made {made_bytes / 1e6:.0f} MB in {seconds:.0f} s: {target}", file=sys.stderr, flush=True)
        caches.keep_newest(home.glob(f"{label}-{KEY_PATTERN}"), KEPT_PER_KIND_MAX)
    return target


def main() -> int:
    parser = argparse.ArgumentParser(description="Makes synthetic models once and prints where they are.")
    parser.add_argument("kind", nargs="?", default="sd1-tiny")
    parser.add_argument("--key", action="store_true", help="only print the key of these models")
    wanted = parser.parse_args()
    try:
        print(models_key() if wanted.key else models_folder(wanted.kind))
    except (OSError, subprocess.CalledProcessError) as failure:
        print(f"demo_models: {failure}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
