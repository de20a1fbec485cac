"""Records: event logs of schedules as files, and how to make them.

Owns the file form: one JSON object with the house and the events, packed as the journal packs them. Make one
with `python -m tests.sim.record SEED`; a log from a real machine has the same form.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.sim.workload import workload
from tests.sim.world import World

from tidegate.core import events as ev
from tidegate.core.house import House
from tidegate.core.snapshot import packed, unpacked

LOGS = Path(__file__).parent / "logs"


def save(seed: int) -> Path:
    """Run a seed for a minute of its time and save what the arbiter heard."""
    world = World(workload(seed))
    while world.now_ms < 60_000 and world.step():
        pass
    path = LOGS / f"seed_{seed}.json"
    path.parent.mkdir(exist_ok=True)
    data = {"house": packed(world.workload.house), "events": [packed(event) for event in world.log]}
    path.write_text(json.dumps(data, separators=(",", ":")) + "\n")
    return path


def load(path: Path) -> tuple[House, list[ev.Event]]:
    """Read a log."""
    data = json.loads(path.read_text())
    house = unpacked(data["house"])
    assert isinstance(house, House), "a log begins with its house"
    return house, [unpacked(event) for event in data["events"]]


if __name__ == "__main__":
    for number in sys.argv[1:]:
        print(save(int(number)))
