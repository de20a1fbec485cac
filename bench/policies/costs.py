"""Costs: bytes and milliseconds of stages and language models, from `costs.toml`.

Owns the reading of that file and the arithmetic between its figures (tiles, streams, layers). Where each
figure is from is said beside it in the file.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any  # what TOML carries

from tidegate.core.house import LlmFootprint
from tidegate.core.planner.option import Footprint, placed
from tidegate.core.quantity import KIB, MIB
from tidegate.core.stage import COMPONENT_OF, Component, DecodeMode, Execution, Placement, Stage

FILE = Path(__file__).resolve().parent / "costs.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageCosts:
    """One image model at one size."""

    name: str
    latent: int
    steps_count: int
    weights_bytes: dict[Component, int]
    compute_bytes: dict[Stage, int]
    run_ms: dict[Stage, float]  # Of the whole stage on the card, sampling with all of its steps.

    @property
    def own_ms(self) -> float:
        """Milliseconds of one image when everything is loaded and nobody disturbs."""
        return sum(self.run_ms.values())

    @property
    def all_bytes(self) -> int:
        """Weights of the whole checkpoint."""
        return sum(self.weights_bytes.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmCosts:
    """One language model."""

    name: str
    footprint: LlmFootprint
    token_bytes: int
    read_ms: float
    token_ms: float
    cpu_layer_ms: float
    cpu_layer_read_ms: float

    def read_with_ms(self, layers: int) -> float:
        """One token of a prompt with this many layers on the card."""
        return _mixed(self.read_ms, self.cpu_layer_read_ms, layers=layers, total=self.footprint.layers_count)

    def token_with_ms(self, layers: int) -> float:
        """One token of an answer with this many layers on the card."""
        return _mixed(self.token_ms, self.cpu_layer_ms, layers=layers, total=self.footprint.layers_count)

    def on_card_bytes(self, layers: int) -> int:
        """Weights, KV cache and compute buffers on the card."""
        return sum(self.footprint.on_card(layers))


def _mixed(card_ms: float, cpu_layer_ms: float, *, layers: int, total: int) -> float:
    return card_ms * layers / total + cpu_layer_ms * (total - layers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """The whole file."""

    machine: dict[str, float]
    images: dict[str, ImageCosts]
    llms: dict[str, LlmCosts]

    @property
    def context_bytes(self) -> int:
        """What a process keeps on the card."""
        return int(self.machine["context_mib"]) * MIB

    def load_ms(self, amount_bytes: int) -> float:
        """To bring weights to the card."""
        return amount_bytes / MIB / self.machine["link_mib_per_ms"]

    def state_ms(self, amount_bytes: int) -> float:
        """To save or restore conversation state."""
        return amount_bytes / MIB / self.machine["state_mib_per_ms"]

    def footprint(self, model: str, stage: Stage, execution: Execution) -> Footprint:
        """Bytes that a stage takes: weights and computing, on the card or in RAM."""
        known = self.images[model]
        weights = known.weights_bytes[COMPONENT_OF[stage]]
        compute = known.compute_bytes[stage]
        if execution.mode is DecodeMode.TILED:
            compute = compute * min(execution.tile, known.latent) ** 2 // known.latent**2
        return placed(execution, weights_bytes=weights, compute_bytes=compute)

    def run_ms(self, model: str, stage: Stage, execution: Execution) -> float:
        """Milliseconds that a stage computes, when nobody disturbs."""
        known = self.images[model]
        work_ms = known.run_ms[stage]
        if execution.mode is DecodeMode.TILED:
            work_ms *= tiles_work(known.latent, execution.tile)
        match execution.placement:
            case Placement.CARD:
                return work_ms
            case Placement.STREAM:
                weights = known.weights_bytes[COMPONENT_OF[stage]]
                # Guidance evaluates the model twice in each step; half of the budget stays on the card.
                passes = 2 * known.steps_count if stage is Stage.DENOISE else 1
                return work_ms + passes * self.load_ms(max(0, weights - execution.budget_bytes // 2))
            case Placement.CPU:
                name = "cpu_encoder_factor" if stage is Stage.ENCODE else "cpu_factor"
                return work_ms * self.machine[name]


def tiles_work(latent: int, tile: int) -> float:
    """Work of all tiles with their overlap, against the whole image."""
    step = max(1, tile // 2)
    across = max(1, -(-(latent - tile) // step) + 1)
    return max(1.05, across * across * tile * tile / latent**2)


def read_costs() -> Costs:
    """Read the file."""
    data = tomllib.loads(FILE.read_text(encoding="utf-8"))
    return Costs(
        machine={name: float(value) for name, value in data["machine"].items()},
        images={name: _image(name, entry) for name, entry in data["image"].items()},
        llms={name: _llm(name, entry) for name, entry in data["llm"].items()},
    )


def _image(name: str, entry: dict[str, Any]) -> ImageCosts:
    run = entry["run_ms"]
    return ImageCosts(
        name=name,
        latent=entry["latent"],
        steps_count=entry["steps"],
        weights_bytes={Component(part): size * MIB for part, size in entry["weights_mib"].items()},
        compute_bytes={Stage(stage): size * MIB for stage, size in entry["compute_mib"].items()},
        run_ms={
            Stage.ENCODE: float(run["encode"]),
            Stage.DENOISE: float(run["step"]) * entry["steps"],
            Stage.DECODE: float(run["decode"]),
        },
    )


def _llm(name: str, entry: dict[str, Any]) -> LlmCosts:
    return LlmCosts(
        name=name,
        footprint=LlmFootprint(
            layers_count=entry["layers"],
            weights_bytes=entry["weights_mib"] * MIB,
            kv_bytes=entry["kv_mib"] * MIB,
            compute_bytes=entry["compute_mib"] * MIB,
            state_bytes=entry["kv_mib"] * MIB,
        ),
        token_bytes=entry["token_kib"] * KIB,
        read_ms=float(entry["read_ms"]),
        token_ms=float(entry["token_ms"]),
        cpu_layer_ms=float(entry["cpu_layer_ms"]),
        cpu_layer_read_ms=float(entry["cpu_layer_read_ms"]),
    )
