"""Questions: everything the planner is told before it decides about one stage.

Owns Room, Held, Concession, YieldClass and StageQuestion: plain data, filled in from the ledger by the
arbiter or from one machine's figures by the one-shot command. The planner reads nothing else.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from tidegate.core.planner.option import StageOption
from tidegate.core.stage import Component, Errand, Execution, Stage


class YieldClass(enum.StrEnum):
    """What a plan may cost somebody, in the default order: the first classes are given up first."""

    OWN_FINISHED = "own_finished"  # A component of this very job that is done with its work.
    GUEST = "guest"  # A guest that agreed to yield.
    LLM_KV = "llm_kv"  # KV cache and compute buffers of an LLM (HOT to WARM).
    LLM_WEIGHTS = "llm_weights"  # Weights and device context of an LLM (to COLD).
    IDLE_IMAGE = "idle_image"  # Components of image models that nobody is using.
    TILES = "tiles"  # The stage itself runs tile by tile.
    STREAM = "stream"  # The stage itself streams its weights.
    CPU = "cpu"  # The stage itself leaves the card.
    PINNED = "pinned"  # What its owner wants held on the card.


YIELD_ORDER = tuple(YieldClass)
# A language model that was idle this long stands at the head of its class.
LONG_IDLE_MS = 600_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """Bytes of one card or of RAM: what is free now, and the part of it that must stay free."""

    name: str
    total_bytes: int
    free_bytes: int
    headroom_bytes: int = 0
    allocation_max_bytes: int = 0  # Largest single allocation; 0 = no limit known.

    @property
    def usable_bytes(self) -> int:
        """What may be given away now; negative when others took what we hold, or the headroom.

        As much must then be freed before anything is gained.
        """
        return self.free_bytes - self.headroom_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """The stage's own component, already loaded somewhere by an earlier stage or image."""

    execution: Execution
    card_bytes: int
    ram_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Concession:
    """Something that holds bytes and can give them up, and the price of that.

    `ram_bytes` is negative when yielding saves state into RAM. `after` names a tenant whose concession must
    be taken first (weights cannot go while the KV cache stays). `needed_permille` is the chance, in
    thousandths, that it is wanted again soon.
    """

    tenant: str
    name: str
    yields: YieldClass
    card_bytes: int
    ram_bytes: int = 0
    free_ms: int = 0
    return_ms: int = 0
    needed_permille: int = 0
    idle_ms: int = 0
    after: str = ""
    component: Component | None = None

    @property
    def expected_return_ms(self) -> int:
        """Price of bringing it back, weighted with the chance that it is needed."""
        return self.return_ms * self.needed_permille // 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class StageQuestion:
    """How shall this stage run? `card` is None on a machine without a card.

    `options` come in order of preference. `barred` holds executions that the recovery ladder has left behind,
    each with the reason in words.
    """

    stage: Stage | Errand
    subject: str
    card: Room | None
    ram: Room
    options: tuple[StageOption, ...]
    held: Held | None = None
    concessions: tuple[Concession, ...] = ()
    barred: Mapping[Execution, str] = field(default_factory=dict)
    yield_order: tuple[YieldClass, ...] = YIELD_ORDER
    candidates_max: int = 64
