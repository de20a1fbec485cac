"""Decision time: how long the arbiter thinks about one event, at home and in a hall of cards.

The world around it is willing: every effect is answered at once and well, so that nothing is measured but the
core. A decision is a call of `handle` after which something was planned, asked for or granted. Ends with 1 if
the 99th percentile is above its bound.
"""

from __future__ import annotations

import gc
import heapq
import sys
import time
from pathlib import Path

from table import write_page

from tidegate.core import effects as ef
from tidegate.core import events as ev
from tidegate.core.arbiter import Arbiter
from tidegate.core.house import CardDescriptor, House, ImageModel, LanguageModel, LlmFootprint
from tidegate.core.llm.level import Level
from tidegate.core.planner.option import Footprint, placed
from tidegate.core.quantity import GIB, KIB, MIB
from tidegate.core.stage import COMPONENT_OF, Component, Execution, Placement, Stage, relay

HERE = Path(__file__).resolve().parent
PIXEL_BYTES = {
    Stage.ENCODE: 0,
    Stage.DENOISE: 40 * KIB,
    Stage.DECODE: 416 * KIB,
    Stage.ENCODE_IMAGE: 212 * KIB,
}


class WillingWorld:
    """Answers every effect, and keeps the times of the arbiter's answers."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.arbiter = Arbiter(house)
        self.now_ms = 0
        self.decisions_us: list[float] = []
        self._heap: list[tuple[int, int, ev.Event]] = []
        self._number = 0
        self._held: dict[str, dict[str, int]] = {}  # Card bytes by worker and part.

    def push(self, in_ms: int, event_at: type[ev.Event], **facts: object) -> None:
        """Report a fact after a while."""
        self._number += 1
        at_ms = self.now_ms + in_ms
        event: ev.Event = event_at(at_ms=at_ms, **facts)  # type: ignore[arg-type]  # Facts of many kinds of event.
        heapq.heappush(self._heap, (at_ms, self._number, event))

    def run(self, events_max: int) -> None:
        """Deliver events until there are none, or enough."""
        for _ in range(events_max):
            if not self._heap:
                return
            self.now_ms, _, event = heapq.heappop(self._heap)
            began = time.thread_time_ns()
            effects = self.arbiter.handle(event)
            took_us = (time.thread_time_ns() - began) / 1000
            if any(not isinstance(effect, ef.WakeAt | ef.Observe | ef.Tell) for effect in effects):
                self.decisions_us.append(took_us)
            for effect in effects:
                self.answer(effect)

    def answer(self, effect: ef.Effect) -> None:
        """Do as one is told, at once and well."""
        match effect:
            case ef.Observe():
                self._sample(effect.pool)
            case ef.StartWorker():
                self.push(50, ev.WorkerReady, worker=effect.worker, incarnation=effect.incarnation)
            case ef.TerminateWorker() | ef.KillWorker():
                self._held.pop(effect.worker, None)
                self.push(20, ev.WorkerExited, worker=effect.worker, incarnation=effect.incarnation)
            case ef.ReleaseComponents():
                for part in effect.parts:
                    self._held.get(effect.worker, {}).pop(part, None)
                facts = {"worker": effect.worker, "incarnation": effect.incarnation, "parts": effect.parts}
                self.push(5, ev.ComponentsReleased, **facts)
            case ef.Predict() | ef.PredictLlm():
                self._predict(effect)
            case ef.RunStage():
                self._run_stage(effect)
            case ef.SetLevel():
                self._set_level(effect)
            case ef.ServeChat():
                facts = {
                    "worker": effect.worker,
                    "incarnation": effect.incarnation,
                    "request": effect.request,
                }
                self.push(2_000, ev.ChatFinished, **facts)
            case ef.FinishJob():
                self.push(1, ev.JobClosed, job=effect.job)
            case _:
                pass

    def _sample(self, pool: str) -> None:
        cards = {worker.name: worker.card for worker in self.arbiter.state.workers.values()}
        held = {name: parts for name, parts in self._held.items() if cards[name] == pool}
        holders = tuple(ev.Holding(name, 1, sum(parts.values())) for name, parts in held.items())
        used = sum(holding.amount_bytes for holding in holders)
        facts = {"pool": pool, "taken_ms": self.now_ms + 1, "used_bytes": used, "holders": holders}
        self.push(2, ev.PoolObserved, **facts)

    def _predict(self, effect: ef.Predict | ef.PredictLlm) -> None:
        facts: dict[str, object] = {"worker": effect.worker, "incarnation": effect.incarnation}
        if isinstance(effect, ef.PredictLlm):
            self.push(5, ev.LlmPredicted, model=effect.model, footprint=LLM, **facts)
            return
        key = effect.key
        model = next(model for model in self.house.image_models if model.name == key.model)
        weights = model.weights_bytes[COMPONENT_OF[key.stage]]
        pixels = key.latent_height * key.latent_width
        found = tuple(footprint(key.stage, execution, weights, pixels=pixels) for execution in key.executions)
        self.push(5, ev.FootprintPredicted, key=key, footprints=found, **facts)

    def _run_stage(self, effect: ef.RunStage) -> None:
        parts = self._held.setdefault(effect.worker, {})
        if effect.execution.placement is Placement.CARD:
            model = next(model for model in self.house.image_models if model.name == effect.model)
            component = COMPONENT_OF[effect.stage]
            parts[f"{effect.model}/{component}"] = model.weights_bytes[component]
        facts = {"worker": effect.worker, "incarnation": effect.incarnation, "job": effect.job}
        self.push(300, ev.StageFinished, attempt=effect.attempt, load_ms=50, run_ms=250, **facts)

    def _set_level(self, effect: ef.SetLevel) -> None:
        parts = self._held.setdefault(effect.worker, {})
        parts.clear()
        if effect.level is not Level.WARM:
            parts["all"] = effect.card_bytes
        facts = {"worker": effect.worker, "incarnation": effect.incarnation, "model": effect.model}
        self.push(200, ev.LevelReached, level=effect.level, took_ms=200, **facts)


LLM = LlmFootprint(
    layers_count=32, weights_bytes=4 * GIB, kv_bytes=GIB, compute_bytes=300 * MIB, state_bytes=200 * MIB
)


def footprint(stage: Stage, execution: Execution, weights: int, *, pixels: int) -> Footprint:
    """A rule of thumb for what a stage takes."""
    tile_pixels = execution.tile * execution.tile or pixels
    compute = 4 * MIB + PIXEL_BYTES[stage] * min(pixels, tile_pixels)
    return placed(execution, weights_bytes=weights, compute_bytes=compute)


def house(cards: int, *, image_models: int, llms: int) -> House:
    """Cards of 12 GiB, image models between SD1.5 and SDXL, language models of 4 GiB."""
    return House(
        ram=CardDescriptor(name="ram", total_bytes=64 * GIB * cards),
        cards=tuple(
            CardDescriptor(name=f"gpu{index}", total_bytes=12 * GIB, context_bytes=300 * MIB)
            for index in range(cards)
        ),
        image_models=tuple(
            ImageModel(
                name=f"image{index}",
                weights_bytes={
                    Component.TEXT_ENCODER: 240 * MIB + index % 7 * 200 * MIB,
                    Component.DIFFUSION: 1640 * MIB + index % 5 * 800 * MIB,
                    Component.VAE: 94 * MIB,
                },
            )
            for index in range(image_models)
        ),
        language_models=tuple(
            LanguageModel(name=f"llm{index}", card=f"gpu{index % cards}") for index in range(llms)
        ),
    )


def measure(built: House, *, jobs: int, chats: int, events_max: int) -> list[float]:
    """Submit everything within a second and measure what follows."""
    world = WillingWorld(built)
    for index in range(jobs):
        model = built.image_models[index * 7 % len(built.image_models)].name
        world.push(
            index * 1_000 // jobs,
            ev.JobSubmitted,
            job=f"job{index}",
            model=model,
            latent_height=64,
            latent_width=(64, 128)[index % 2],
            steps_count=20,
            stages=relay(from_image=index % 5 == 0),
        )
    for index in range(chats):
        model = built.language_models[index % len(built.language_models)].name
        world.push(index * 900, ev.ChatSubmitted, request=f"chat{index}", model=model)
    gc.collect()
    gc.freeze()
    world.run(events_max)
    return sorted(world.decisions_us)


def main() -> int:
    """Measure both set-ups and write the page."""
    rows = []
    good = True
    home = ("home: 1 card, 3 LLMs, 3 image models, 20 jobs", house(1, image_models=3, llms=3), 20, 10)
    hall = (
        "hall: 8 cards, 40 LLMs, 60 image models, 1,000 jobs",
        house(8, image_models=60, llms=40),
        1_000,
        60,
    )
    for (name, built, jobs, chats), bound_ms, rounds in ((home, 1.0, 10), (hall, 5.0, 1)):
        times: list[float] = []
        for _ in range(rounds):
            times += measure(built, jobs=jobs, chats=chats, events_max=12_000)
        times.sort()
        p99_ms = times[len(times) * 99 // 100] / 1000
        good = good and p99_ms <= bound_ms
        median = times[len(times) // 2] / 1000
        cells = [
            name,
            f"{len(times):,}",
            f"{median:.2f}",
            f"{p99_ms:.2f}",
            f"{times[-1] / 1000:.2f}",
            f"{bound_ms}",
        ]
        rows.append(cells)
    write_page(
        HERE / "decisions.md",
        "Decision time of the arbiter, in milliseconds",
        text="Calls of `Arbiter.handle` that planned, asked or granted something, cheap invariants on. "
        "Processor time, because the machine is shared.",
        head=["set-up", "decisions", "median", "p99", "longest", "bound of p99"],
        rows=rows,
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
