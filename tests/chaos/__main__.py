"""The storm's command line: `python -m tests.chaos --faults N --seed S [--resume]`.

    make chaos FAULTS=1000 SEED=7

The last line is `faults=N images=finished/started identical=n/m chats=finished/started`. With --resume a run
that was broken off goes on; one that had reached its number of faults begins anew. The exit code is 1 when a
promise was broken; the line before says which, with seed and round.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from tests.chaos.chats import QUESTIONS_COUNT, Chats
from tests.chaos.images import RECIPES_COUNT, Images
from tests.chaos.models import TREE, tiny_model, tiny_talker
from tests.chaos.place import Broken
from tests.chaos.script import Kind
from tests.chaos.storm import Storm, opened
from tests.chaos.tally import Tally, read

RECORD = "storm.json"


def main(arguments: list[str] | None = None) -> int:
    """Run the storm."""
    options = _options(arguments)
    folder = Path(options.folder or TREE / "build" / "chaos" / f"seed-{options.seed}").resolve()
    tally = read(folder / RECORD, seed=options.seed) if options.resume else None
    if tally is None or tally.faults >= options.faults or tally.troubles:
        shutil.rmtree(folder, ignore_errors=True)
        tally = Tally(seed=options.seed)
    talker = Path(options.talker) if options.talker else tiny_talker()
    place = opened(folder, Path(options.model) if options.model else tiny_model(), talker)
    images = Images(place.model, known=tally.pictures, recipes_count=options.recipes)
    chats = Chats(talker, known=tally.answers, questions_count=options.questions)
    storm = Storm(place, tally, record=folder / RECORD, workloads=(images, chats))
    try:
        with place.open():
            among = tuple(Kind(name) for name in options.kinds.split(","))
            storm.rage(options.faults, among=among, say=_say)
    except Broken as broken:
        tally.troubles.append(str(broken))
    except KeyboardInterrupt:
        _say(f"broken off in round {tally.next_round}; --resume goes on from there")
    finally:
        chats.close()
        images.close()
        tally.save(folder / RECORD)
    rate = 60 * tally.faults / tally.took_s if tally.took_s else 0.0
    _say(f"struck {tally.struck}, met nobody {tally.missed}, {rate:.0f} faults a minute")
    _say(tally.texts())
    for trouble in tally.troubles:
        _say(f"BROKEN: {trouble}")
    print(tally.line(), flush=True)
    return 1 if tally.troubles else 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--resume", action="store_true", help="go on where a run of this seed was broken off")
    parser.add_argument("--folder", default="", help="state and record; build/chaos/seed-S when not given")
    parser.add_argument("--model", default="", help="sd1-tiny.safetensors; made when not given")
    parser.add_argument("--talker", default="", help="llama-tiny.gguf; made when not given")
    parser.add_argument("--questions", type=int, default=QUESTIONS_COUNT, help="how many different questions")
    parser.add_argument("--recipes", type=int, default=RECIPES_COUNT, help="how many different requests")
    parser.add_argument("--kinds", default=",".join(Kind), help="which faults, with commas between")
    return parser.parse_args(arguments)


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
