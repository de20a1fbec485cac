"""Options: an execution together with what it needs in bytes and in milliseconds.

Owns Footprint, Provenance and StageOption. The numbers come from the engine's dry run or from measurements;
the catalog remembers them. Which executions to ask about is decided in `candidates.py`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import assert_never

from tidegate.core.stage import Execution, Placement


class Provenance(enum.StrEnum):
    """How we know a footprint, best first."""

    EXACT = "exact"  # By a dry run of the same graph.
    OBSERVED = "observed"  # Seen while it ran.
    DECLARED = "declared"  # Said by somebody, or a prior.


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a stage needs at its peak, weights included."""

    card_bytes: int
    ram_bytes: int
    weights_bytes: int = 0
    provenance: Provenance = Provenance.EXACT

    def __post_init__(self) -> None:
        assert self.card_bytes >= 0 and self.ram_bytes >= 0 and self.weights_bytes >= 0, (
            "bytes are not negative"
        )


def placed(execution: Execution, *, weights_bytes: int, compute_bytes: int) -> Footprint:
    """Where the bytes of a stage lie by its placement, for whoever knows them without an engine."""
    match execution.placement:
        case Placement.CARD:
            return Footprint(weights_bytes + compute_bytes, 0, weights_bytes)
        case Placement.STREAM:
            return Footprint(execution.budget_bytes + compute_bytes, weights_bytes, weights_bytes)
        case Placement.CPU:
            return Footprint(0, weights_bytes + compute_bytes, weights_bytes)
        case _:
            assert_never(execution.placement)


@dataclass(frozen=True, slots=True)
class StageOption:
    """One execution that may be chosen: its footprint, the time to load its weights and the time to run
    it.
    """

    execution: Execution
    footprint: Footprint
    run_ms: int
    load_ms: int = 0
