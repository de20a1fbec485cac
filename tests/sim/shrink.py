"""Shrinking: the fewest acts that still break a rule.

Owns the search: leave out one act after the other, and keep what still fails, until nothing more can go.
"""

from __future__ import annotations

from dataclasses import replace

from tests.sim.schedule import run
from tests.sim.workload import Faults, Workload


def shrunk(failing: Workload) -> Workload:
    """Make a failing workload smaller: fewer kinds of faults, fewer acts."""
    smallest = failing
    for name in Faults.__dataclass_fields__:
        without = replace(smallest, faults=replace(smallest.faults, **{name: 0}))
        if run(without).error:
            smallest = without
    index = 0
    while index < len(smallest.acts):
        acts = smallest.acts[:index] + smallest.acts[index + 1 :]
        without = replace(smallest, acts=acts)
        if run(without).error:
            smallest = without
        else:
            index += 1
    return smallest
