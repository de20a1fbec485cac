"""A state machine that answers the arbiter's effects in any order with any of their possible events.

It knows less about the world than the simulator and is meaner: answers come in any order, workers die at any
point, samples say anything. Nothing is physically true here, so only invariants and promises to users are
checked. Hypothesis shrinks a failure to the shortest list of rules.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.sim.needs import need

from tidegate.core import effects as ef
from tidegate.core import events as ev
from tidegate.core.arbiter import Arbiter
from tidegate.core.house import CardDescriptor, House, ImageModel, LanguageModel, LlmFootprint
from tidegate.core.image.failure import Failure
from tidegate.core.invariants import check
from tidegate.core.llm.level import Level
from tidegate.core.quantity import GIB, MIB
from tidegate.core.stage import Component, relay

WEIGHTS = {Component.TEXT_ENCODER: 240 * MIB, Component.DIFFUSION: 1640 * MIB, Component.VAE: 94 * MIB}
LLM = LlmFootprint(
    layers_count=16, weights_bytes=3 * GIB, kv_bytes=512 * MIB, compute_bytes=64 * MIB, state_bytes=128 * MIB
)
HOUSE = House(
    ram=CardDescriptor(name="ram", total_bytes=16 * GIB),
    cards=(CardDescriptor(name="gpu0", total_bytes=5 * GIB, context_bytes=200 * MIB),),
    image_models=(ImageModel(name="sd", weights_bytes=WEIGHTS),),
    language_models=(LanguageModel(name="qwen", card="gpu0"),),
)
Answerable = (
    ef.StartWorker | ef.ReleaseComponents | ef.ReinitialiseWorker | ef.Predict | ef.PredictLlm | ef.RunStage
    | ef.StopStage | ef.SetLevel | ef.ServeChat | ef.DropChat
)  # fmt: skip


class ArbiterMachine(RuleBasedStateMachine):
    """Feeds events and keeps what is owed to users."""

    def __init__(self) -> None:
        super().__init__()
        self.arbiter = Arbiter(HOUSE)
        self.now_ms = 0
        self.count = 0
        self.pending: list[Answerable] = []
        self.jobs: set[str] = set()
        self.requests: set[str] = set()

    def feed(self, event: ev.Event) -> None:
        """Deliver one event and take in the effects."""
        for effect in self.arbiter.handle(event):
            match effect:
                case ef.FinishJob():
                    self.jobs.remove(effect.job)
                case ef.FinishChat():
                    self.requests.remove(effect.request)
                case ef.TerminateWorker() | ef.KillWorker():
                    self.exits(effect.worker, effect.incarnation)
                case ef.WakeAt() | ef.Observe() | ef.AnswerGuest() | ef.AskGuest() | ef.Tell():
                    pass
                case _:
                    self.pending.append(effect)

    def exits(self, worker: str, incarnation: int) -> None:
        """Note that a process has to end; what it was asked is void."""
        self.pending = [
            effect
            for effect in self.pending
            if not (effect.worker == worker and effect.incarnation == incarnation)
        ]
        self.feed(ev.WorkerExited(at_ms=self.now_ms, worker=worker, incarnation=incarnation, signal=15))

    @rule(passed_ms=st.sampled_from([1, 10, 500, 5_000, 61_000]))
    def time_passes(self, passed_ms: int) -> None:
        """The clock goes on."""
        self.now_ms += passed_ms
        self.feed(ev.Woke(at_ms=self.now_ms))

    @rule(
        level=st.sampled_from([Level.HOT, Level.WARM, Level.PARTIAL, Level.COLD, None, None]),
        layers=st.sampled_from([0, 3, 16, 99]),
    )
    def wish(self, level: Level | None, layers: int) -> None:
        """Somebody wants the model at a level, or gives it back."""
        self.feed(ev.LevelWished(at_ms=self.now_ms, model="qwen", level=level, layers_count=layers))

    @rule()
    def intend(self) -> None:
        """Somebody begins to type."""
        self.feed(ev.IntentHeard(at_ms=self.now_ms, model="qwen"))

    @rule(side=st.sampled_from([32, 64, 128]), priority=st.integers(0, 2))
    def submit(self, side: int, priority: int) -> None:
        """A user wants an image."""
        self.count += 1
        name = f"job{self.count}"
        self.jobs.add(name)
        self.feed(
            ev.JobSubmitted(
                at_ms=self.now_ms,
                job=name,
                model="sd",
                latent_height=side,
                latent_width=side,
                steps_count=4,
                stages=relay(from_image=side == 32),
                priority=priority,
            )
        )

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        """A user gives up."""
        name = data.draw(st.sampled_from(sorted(self.jobs)))
        self.feed(ev.JobCancelled(at_ms=self.now_ms, job=name))

    @rule()
    def chat(self) -> None:
        """A client asks."""
        self.count += 1
        name = f"chat{self.count}"
        self.requests.add(name)
        self.feed(ev.ChatSubmitted(at_ms=self.now_ms, request=name, model="qwen"))

    @rule(amount=st.integers(1, 5), wait_ms=st.sampled_from([0, 5_000]), yields=st.booleans())
    def guest(self, amount: int, wait_ms: int, yields: bool) -> None:
        """Another application asks."""
        self.count += 1
        self.feed(
            ev.GuestAsked(
                at_ms=self.now_ms,
                lease=f"guest{self.count}",
                card="gpu0",
                amount_bytes=amount * GIB,
                purpose="a game",
                hold_ms=2_000,
                wait_ms=wait_ms,
                yields=yields,
            )
        )

    @rule(pool=st.sampled_from(["gpu0", "ram"]), used=st.integers(0, 16), late_ms=st.integers(0, 20))
    def sample(self, pool: str, used: int, late_ms: int) -> None:
        """A sample says anything at all."""
        self.feed(
            ev.PoolObserved(
                at_ms=self.now_ms, pool=pool, taken_ms=self.now_ms - late_ms, used_bytes=used * GIB // 4
            )
        )

    @precondition(lambda self: self.pending)
    @rule(data=st.data())
    def dies(self, data: st.DataObject) -> None:
        """A process that was asked something ends instead."""
        effect = data.draw(st.sampled_from(self.pending))
        self.exits(effect.worker, effect.incarnation)

    @precondition(lambda self: self.pending)
    @rule(data=st.data(), goes_well=st.booleans())
    def answer(self, data: st.DataObject, goes_well: bool) -> None:
        """A process answers one of the effects it was given, in any order."""
        effect = self.pending.pop(data.draw(st.integers(0, len(self.pending) - 1)))
        self.now_ms += 1
        self.feed(self.answer_to(effect, goes_well=goes_well))

    def answer_to(self, effect: Answerable, *, goes_well: bool) -> ev.Event:
        """Make one of the events that ANSWERS names."""
        at_ms, worker, incarnation = self.now_ms, effect.worker, effect.incarnation
        common = {"at_ms": at_ms, "incarnation": incarnation}
        match effect:
            case ef.StartWorker():
                return ev.WorkerReady(worker=worker, **common)
            case ef.ReleaseComponents():
                return ev.ComponentsReleased(worker=worker, parts=effect.parts, **common)
            case ef.ReinitialiseWorker():
                return ev.Reinitialised(worker=worker, **common)
            case ef.PredictLlm():
                return ev.LlmPredicted(worker=worker, model=effect.model, footprint=LLM, **common)
            case ef.Predict():
                return self.predicted(effect)
            case ef.RunStage():
                run = {"job": effect.job, "attempt": effect.attempt, "worker": worker, **common}
                if goes_well:
                    return ev.StageFinished(load_ms=1, run_ms=2, **run)  # type: ignore[arg-type]  # The facts of a stage, by keyword.
                return ev.StageFailed(failure=Failure.REFUSED, **run)  # type: ignore[arg-type]  # The facts of a stage, by keyword.
            case ef.StopStage():
                run = {"job": effect.job, "attempt": effect.attempt, "worker": worker, **common}
                return ev.StageStopped(**run)  # type: ignore[arg-type]  # The facts of a stage, by keyword.
            case ef.SetLevel():
                if goes_well or effect.level is Level.WARM:
                    return ev.LevelReached(
                        worker=worker, model=effect.model, level=effect.level, took_ms=5, **common
                    )
                return ev.LevelFailed(worker=worker, model=effect.model, failure=Failure.REFUSED, **common)
            case ef.ServeChat() if not goes_well:
                failed = Failure.ENGINE
                return ev.ChatFailed(worker=worker, request=effect.request, failure=failed, **common)
            case ef.ServeChat() | ef.DropChat():
                return ev.ChatFinished(worker=worker, request=effect.request, **common)

    def predicted(self, effect: ef.Predict) -> ev.Event:
        """Answer a prediction by the rule of thumb of the simulator."""
        key = effect.key
        weights = {"encode": 240 * MIB, "denoise": 1640 * MIB}.get(key.stage.value, 94 * MIB)
        pixels = key.latent_height * key.latent_width
        return ev.FootprintPredicted(
            at_ms=self.now_ms,
            worker=effect.worker,
            incarnation=effect.incarnation,
            key=key,
            footprints=tuple(
                need(key.stage, execution, weights_bytes=weights, pixels=pixels)
                for execution in key.executions
            ),
        )

    @invariant()
    def keeps_its_books(self) -> None:
        """Every invariant holds, and nobody who is owed an answer was forgotten."""
        state = self.arbiter.state
        check(state)
        known = {request for model in state.models.values() for request in model.requests}
        assert known == self.requests
        assert self.jobs <= set(state.jobs)


TestArbiter = ArbiterMachine.TestCase
TestArbiter.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
