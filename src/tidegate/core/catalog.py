"""The catalog: what stages and language models need in bytes, and what things cost in milliseconds.

Owns footprints with their provenance and measured times as moving averages. It is filled by events and asked
by the planner; it holds no opinion about what is free.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TypeVar

from tidegate.core.house import LlmFootprint
from tidegate.core.planner.option import Footprint, Provenance, StageOption
from tidegate.core.planner.prices import Work, option_of
from tidegate.core.quantity import GIB
from tidegate.core.stage import Execution, Placement, Stage

# No way of running is believed to be slower than its prior by more than this.
RATE_MAX = 1_000_000
Key = TypeVar("Key")
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


@dataclass(frozen=True, slots=True)
class RateKey:
    """What was found about a way of running: how its times compare with their priors, whatever the size.

    `model` is empty for what was found with all models together.
    """

    what: str
    model: str
    stage: Stage
    placement: Placement


@dataclass(slots=True)
class Catalog:
    """Everything learned about needs and costs.

    A time that was measured is taken as it is; one that was not is its prior at the rate that this model, or
    else any model, was seen to have on this machine. `is_card_slow`: the card computes like the CPU.
    """

    is_card_slow: bool = False
    options: dict[SizeKey, tuple[tuple[Execution, Footprint], ...]] = field(default_factory=dict)
    times_ms: dict[TimeKey, int] = field(default_factory=dict)
    steps_us: dict[TimeKey, int] = field(default_factory=dict)  # A step of sampling, or a whole other stage.
    rates: dict[RateKey, int] = field(default_factory=dict)  # Measured by prior, in thousandths.
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
        self, size: SizeKey, execution: Execution, *, work: Work, load_ms: int, run_ms: int | None
    ) -> None:
        """Fold measured times into their averages; a load of nothing was no load, None was not all of it."""
        footprint = next((found for how, found in self.options.get(size, ()) if how == execution), None)
        prior = None
        if footprint is not None:
            prior = option_of(
                size.stage, execution, footprint=footprint, work=work, is_card_slow=self.is_card_slow
            )
        if run_ms is not None:
            step_us = run_ms * 1_000 // _steps_of(size.stage, work)
            _fold(self.steps_us, TimeKey("run", size, execution), step_us)
            if prior is not None:
                self._rate("run", size, execution.placement, measured_ms=run_ms, prior_ms=prior.run_ms)
        if load_ms:
            _fold(self.times_ms, TimeKey("load", size, execution), load_ms)
            if prior is not None:
                self._rate("load", size, execution.placement, measured_ms=load_ms, prior_ms=prior.load_ms)

    def _rate(
        self, what: str, size: SizeKey, placement: Placement, *, measured_ms: int, prior_ms: int
    ) -> None:
        rate = min(RATE_MAX, max(1, measured_ms * 1_000 // max(1, prior_ms)))
        for model in (size.model, ""):
            _fold(self.rates, RateKey(what, model, size.stage, placement), rate)

    def inherit(self, other: Catalog) -> None:
        """Know what another catalog of the same cards has measured; what it foresaw is asked for again."""
        self.times_ms = dict(other.times_ms)
        self.steps_us = dict(other.steps_us)
        self.rates = dict(other.rates)
        self.level_ms = dict(other.level_ms)

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
        return None if known is None else self._priced(size, known, work=work)

    def least_ms(self, size: SizeKey, work: Work) -> int | None:
        """Milliseconds of the preferred option of a stage, which is the fastest; None while it is unknown."""
        known = self.options.get(size)
        if not known:
            return None
        best = self._priced(size, known[:1], work=work)[0]
        return best.load_ms + best.run_ms

    def _priced(
        self, size: SizeKey, known: tuple[tuple[Execution, Footprint], ...], *, work: Work
    ) -> tuple[StageOption, ...]:
        steps = _steps_of(size.stage, work)
        rates: dict[Placement, tuple[int, int]] = {}
        priced = []
        for execution, footprint in known:
            if (placement := execution.placement) not in rates:
                rates[placement] = (
                    self._rate_of("run", size, placement),
                    self._rate_of("load", size, placement),
                )
            run_rate, load_rate = rates[placement]
            prior = option_of(
                size.stage, execution, footprint=footprint, work=work, is_card_slow=self.is_card_slow
            )
            step_us = self.steps_us.get(TimeKey("run", size, execution))
            load_ms = self.times_ms.get(TimeKey("load", size, execution))
            run_ms = prior.run_ms * run_rate // 1_000 if step_us is None else step_us * steps // 1_000
            if load_ms is None:
                load_ms = prior.load_ms * load_rate // 1_000
            priced.append(StageOption(execution, footprint, run_ms=run_ms, load_ms=load_ms))
        return tuple(priced)

    def _rate_of(self, what: str, size: SizeKey, placement: Placement) -> int:
        """Thousandths of the prior that this model, or else any, was seen to take."""
        for model in (size.model, ""):
            rate = self.rates.get(RateKey(what, model, size.stage, placement))
            if rate is not None:
                return rate
        return 1_000


def _steps_of(stage: Stage, work: Work) -> int:
    return max(1, work.steps_count) if stage is Stage.DENOISE else 1


def _fold(averages: dict[Key, int], key: Key, measured: int) -> None:
    if len(averages) >= SIZES_MAX and key not in averages:
        del averages[next(iter(averages))]
    averages[key] = (3 * averages.get(key, measured) + measured) // 4
