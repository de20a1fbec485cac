"""The house: what there is to arbitrate. Cards, RAM, image models and language models, as configured or
found.

Owns plain descriptions that never change while the arbiter runs. What is loaded where is the ledger's
knowledge; limits and times are the policy's.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from tidegate.core.llm.level import Level
from tidegate.core.stage import Component

RAM = "ram"  # Name of the pool of host memory, beside the names of cards.


class Sight(enum.StrEnum):
    """How finely use of a pool can be seen, best first."""

    PER_PROCESS = "per_process"  # Bytes of each process, and with them what is foreign.
    PER_CARD = "per_card"  # Only the sum: freed is seen when the sum falls.
    OWN_LEDGER = "own_ledger"  # Nothing: only the end of a process proves that it freed.


@dataclass(frozen=True, slots=True, kw_only=True)
class CardDescriptor:
    """A card, or RAM (named "ram", without context)."""

    name: str
    total_bytes: int
    sight: Sight = Sight.PER_PROCESS
    context_bytes: int = 0  # What a process keeps on the card for its device context, whatever it frees.
    headroom_bytes: int = 0
    allocation_max_bytes: int = 0
    link_mib_per_s: int = 4_000
    is_slow: bool = False  # It computes like the CPU: a virtual card.
    unified: bool = False  # Card and host share one memory: nothing is gained by moving state to RAM.


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageModel:
    """An image model with the weights of its components in bytes.

    `owners` names, for a component that comes from the same files as another model's, that model: loaded for
    either it serves both, and is charged once.
    """

    name: str
    weights_bytes: Mapping[Component, int] = field(default_factory=dict)
    owners: Mapping[Component, str] = field(default_factory=dict)

    def part(self, component: Component) -> str:
        """Name the lease of a component."""
        return f"{self.owners.get(component, self.name)}/{component}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """What a language model needs with some of its layers on the card: there, and in RAM for the rest."""

    card_weights_bytes: int
    card_context_bytes: int  # KV cache and compute buffers.
    ram_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmFootprint:
    """What a language model needs, from its engine's own figures.

    `splits` holds the exact figures for 0 to `layers_count` layers on the card: neither weights nor buffers
    grow evenly with them. Without splits the sums are shared out evenly.
    """

    layers_count: int
    weights_bytes: int
    kv_bytes: int
    compute_bytes: int
    state_bytes: int  # Saved conversation state in RAM at most.
    splits: tuple[Split, ...] = ()

    def __post_init__(self) -> None:
        assert not self.splits or len(self.splits) == self.layers_count + 1, (
            "a split for each count of layers"
        )

    def on_card(self, layers: int) -> tuple[int, int]:
        """Bytes of weights, and of KV with compute, on the card with this many layers there."""
        if self.splits:
            return self.splits[layers].card_weights_bytes, self.splits[layers].card_context_bytes
        share = (
            self.weights_bytes * layers // self.layers_count,
            self.kv_bytes * layers // self.layers_count,
        )
        return share[0], share[1] + (self.compute_bytes if layers else 0)

    def in_ram(self, layers: int) -> int:
        """Bytes in RAM for the layers that are not on the card, and for what never goes there."""
        if self.splits:
            return self.splits[layers].ram_bytes
        rest = self.layers_count - layers
        if rest == 0:
            return 0
        return (self.weights_bytes + self.kv_bytes) * rest // self.layers_count + self.compute_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageModel:
    """A language model, the card it lives on ("" = none, it computes on the CPU) and its parallel slots.

    `keep` is the level at which its owner wants it to be held. `fingerprint` names its files and options, so
    that what was learned of others is not taken for its own.
    """

    name: str
    card: str
    slots_count: int = 4
    keep: Level | None = None
    fingerprint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class House:
    """Everything the arbiter arbitrates."""

    ram: CardDescriptor
    cards: tuple[CardDescriptor, ...] = ()
    image_models: tuple[ImageModel, ...] = ()
    language_models: tuple[LanguageModel, ...] = ()

    def image_model(self, name: str) -> ImageModel:
        """An image model by its name."""
        return next(model for model in self.image_models if model.name == name)
