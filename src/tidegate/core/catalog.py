"""The catalog: what stages and language models need in bytes, and what things cost in milliseconds.

Owns footprints with their provenance and measured times as moving averages. It is filled by events and asked
by the planner; it holds no opinion about what is free.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from tidegate.core.house import LlmFootprint
from tidegate.core.planner.option import Footprint, Provenance, StageOption
from tidegate.core.planner.prices import Work, option_of
from tidegate.core.quantity import GIB
from tidegate.core.stage import Execution, Stage

SIZES_MAX = 4_096  # Footprints kept; beyond it the oldest are forgotten and asked for again.
DRIFTS_MAX = 1_024


@dataclass(frozen=True, slots=True)
class FootprintKey:
    """What a footprint belongs to. The shell adds the file's fingerprint, engine build and device class."""

    model: str
    stage: Stage
    latent_height: int
    latent_width: int
    executions: tuple[Execution, ...]


@dataclass(frozen=True, slots=True)
class SizeKey:
    """A stage of a model at one size."""

    model: str
    stage: Stage
    latent_height: int
    latent_width: int


@dataclass(frozen=True, slots=True)
class TimeKey:
    """A measured time: loading or running one execution of a stage of a model at one size."""

    what: str
    size: SizeKey
    execution: Execution


@dataclass(slots=True)
class Catalog:
    """Everything learned about needs and costs."""

    options: dict[SizeKey, tuple[tuple[Execution, Footprint], ...]] = field(default_factory=dict)
    times_ms: dict[TimeKey, int] = field(default_factory=dict)
    llms: dict[str, LlmFootprint] = field(default_factory=dict)
    level_ms: dict[str, int] = field(default_factory=dict)  # "<model>/<tide>" to a moving average.

    def learn_footprints(self, key: FootprintKey, footprints: Iterable[Footprint | None]) -> None:
        """Keep what the predictor answered; impossible executions are left out."""
        size = SizeKey(key.model, key.stage, key.latent_height, key.latent_width)
        known = tuple(
            (execution, found) for execution, found in zip(key.executions, footprints, strict=True) if found
        )
        if len(self.options) >= SIZES_MAX and size not in self.options:
            del self.options[next(iter(self.options))]
        self.options[size] = known

    def learn_peak(self, size: SizeKey, execution: Execution, *, card_peak_bytes: int) -> None:
        """Keep a larger card peak than predicted, as observed."""
        self.options[size] = tuple(
            (known, replace(footprint, card_bytes=card_peak_bytes, provenance=Provenance.OBSERVED))
            if known == execution and footprint.card_bytes < card_peak_bytes
            else (known, footprint)
            for known, footprint in self.options.get(size, ())
        )

    def learn_stage_ms(
        self, size: SizeKey, execution: Execution, *, load_ms: int, run_ms: int | None
    ) -> None:
        """Fold measured times into their averages; a load of nothing was no load, None was not all of it."""
        if run_ms is not None:
            self._fold(TimeKey("run", size, execution), run_ms)
        if load_ms:
            self._fold(TimeKey("load", size, execution), load_ms)

    def learn_level_ms(self, model: str, movement: str, *, took_ms: int) -> None:
        """Fold the measured time of a movement of a language model into its average."""
        name = f"{model}/{movement}"
        before = self.level_ms.get(name, took_ms)
        self.level_ms[name] = (3 * before + took_ms) // 4

    def level_cost_ms(self, model: str, movement: str) -> int:
        """Expected time of a movement; the priors are by size, as if over PCIe 4 from page cache."""
        measured = self.level_ms.get(f"{model}/{movement}")
        if measured is not None:
            return measured
        footprint = self.llms.get(model)
        if footprint is None:
            return 1_000
        return {
            "rising": 500 + footprint.weights_bytes * 250 // GIB,
            "returning": 30 + footprint.state_bytes * 250 // GIB,
            "ebbing": 30 + footprint.state_bytes * 250 // GIB,
        }.get(movement, 250)

    def options_of(self, size: SizeKey, work: Work) -> tuple[StageOption, ...] | None:
        """The priced options of a stage, or None while they are unknown."""
        known = self.options.get(size)
        if known is None:
            return None
        return tuple(self._priced(size, execution, footprint, work=work) for execution, footprint in known)

    def _priced(
        self, size: SizeKey, execution: Execution, footprint: Footprint, *, work: Work
    ) -> StageOption:
        prior = option_of(size.stage, execution, footprint=footprint, work=work)
        run_ms = self.times_ms.get(TimeKey("run", size, execution))
        load_ms = self.times_ms.get(TimeKey("load", size, execution))
        if run_ms is None and load_ms is None:
            return prior
        return replace(
            prior,
            run_ms=prior.run_ms if run_ms is None else run_ms,
            load_ms=prior.load_ms if load_ms is None else load_ms,
        )

    def _fold(self, key: TimeKey, measured_ms: int) -> None:
        if len(self.times_ms) >= SIZES_MAX and key not in self.times_ms:
            del self.times_ms[next(iter(self.times_ms))]
        self.times_ms[key] = (3 * self.times_ms.get(key, measured_ms) + measured_ms) // 4
