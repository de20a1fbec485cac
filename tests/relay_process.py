"""A program that makes an image and says each step on stdout, to be killed by a test at a chosen one.

    python tests/relay_process.py MODEL OUTPUT STEPS    says "worker PID" and then "denoise STEP" ...

The same order is made by `relay_runs.order_for`, so what this leaves behind is found again by its key.
"""

from __future__ import annotations

import sys
from pathlib import Path

from relay_runs import Recorder, card_of, changed, order_for, run_on, worker_on
from tidegate.core.quantity import GIB
from tidegate.core.stage import Stage


def main() -> None:
    """Make the image, talking."""
    model, output, steps = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    with card_of(2 * GIB, output.parent) as card:

        def on_stage(stage: Stage) -> None:
            print("worker", worker_on(card) if stage is not Stage.ENCODE else 0, flush=True)

        def on_step(stage: Stage, step: int) -> None:
            print(stage, step, flush=True)

        run_on(
            card, changed(order_for(model, output), steps=steps), Recorder(on_stage=on_stage, on_step=on_step)
        )


if __name__ == "__main__":
    main()
