"""Patience: shall an image's stage begin as it could now, or wait for those who compute beside it?

    gentle    a plan that lets every answer that is being given go on
    eager     a plan that takes from them what may be taken now
    later     the plan there would be when they have finished, or have had their quantum

Owns this choice. A stage waits when what it would gain is more than what the wait is expected to take: a few
seconds for an answer rather than half an hour on the CPU; or when both are better off one after the other.
The wait is bounded: for answers by the policy, for a quantum by the quantum, for a movement by its deadline.
"""

from __future__ import annotations

from tidegate.core.image.job import Job, Run
from tidegate.core.image.ladder import climb
from tidegate.core.image.staging import question_for
from tidegate.core.llm.level import MOVING, SERVING
from tidegate.core.llm.model import Model
from tidegate.core.llm.request import WAITING
from tidegate.core.llm.tide import running
from tidegate.core.llm.urgency import is_worth_quiet
from tidegate.core.planner.plan import Plan, Refusal
from tidegate.core.planner.question import StageQuestion
from tidegate.core.state import State
from tidegate.core.worker import Worker
from tidegate.core.yielding import Taking

# An image's turn at the least, when somebody waits for it; it grows by this with each time it was stopped.
TURN_MS = 1_000
Answer = tuple[Plan | Refusal, StageQuestion]


def answer_for(state: State, job: Job, worker: Worker, *, candidates_max: int) -> Answer | None:
    """Plan a stage, or None when it should wait a little; its footprints are known."""
    others = [model for model in state.models.values() if model.card == worker.card and is_active(model)]
    waits = answers_until_ms(state, job) > state.now_ms
    if waits and any(is_worth_quiet(state, model, job) for model in others):
        return None
    taking = Taking.IDLE if waits and others else Taking.ALLOWED
    chosen = _ask(state, job, worker, taking=taking, candidates_max=candidates_max)
    if not others or not (waits or any(_is_temporary(state, model) for model in others)):
        return chosen
    later = _ask(state, job, worker, taking=Taking.LATER, candidates_max=candidates_max)
    if not isinstance(later[0], Plan):
        return chosen
    if isinstance(chosen[0], Plan):
        gained_ms = chosen[0].score.total_ms - later[0].score.total_ms
        if gained_ms <= max(_wait_ms(state, model) for model in others):
            return chosen
    return None


def answers_until_ms(state: State, job: Job) -> int:
    """Until when a stage waits for answers that are being given."""
    return job.waiting_since_ms + state.policy.answer_wait_max_ms


def waits_for_answers(state: State, model: Model) -> bool:
    """Whether a language model lets another one on its card finish its answers first; else two of them would
    take the card from each other with every token.
    """
    waits = [request.waiting_since_ms for request in model.requests.values() if request.phase in WAITING]
    others = [other for other in state.models.values() if other is not model and other.card == model.card]
    if not waits or not any(is_active(other) for other in others):
        return False
    return state.now_ms < min(waits) + state.policy.answer_wait_max_ms


def turn_ends_ms(state: State, job: Job) -> int:
    """Until when a stage that runs is not stopped for anybody: the oftener it was stopped, the longer, up to
    a quantum, so that every image gets on. One that went before somebody has a turn at least, or taking the
    card from him would have been for nothing.
    """
    run = job.run
    if run is None:
        return state.now_ms
    turns_count = job.yields_count + _went_before(state, run)
    return run.begun_ms + min(state.policy.quantum_ms, turns_count * TURN_MS)


def quantum_until_ms(state: State, model: Model) -> int:
    """Until when a model that came up while images waited is left alone."""
    return model.serving_since_ms + state.policy.quantum_ms if model.was_contended else state.now_ms


def _went_before(state: State, run: Run) -> bool:
    """Whether an answer on the same card waited already when this stage began."""
    card = state.workers[run.worker].card
    return any(
        request.phase in WAITING and request.waiting_since_ms <= run.begun_ms
        for model in state.models.values()
        if model.card == card
        for request in model.requests.values()
    )


def _ask(state: State, job: Job, worker: Worker, *, taking: Taking, candidates_max: int) -> Answer:
    question = question_for(state, job, worker, stage=job.stage, candidates_max=candidates_max, taking=taking)
    assert question is not None, "whoever asks has made sure that footprints are known"
    return climb(question, job.tried), question


def is_active(model: Model) -> bool:
    """Whether it answers somebody, or is on its way."""
    return model.tide in MOVING or (model.tide in SERVING and running(model) > 0)


def _is_temporary(state: State, model: Model) -> bool:
    return model.tide in MOVING or quantum_until_ms(state, model) > state.now_ms


def _wait_ms(state: State, model: Model) -> int:
    """How long it is expected to take until it has answered."""
    return model.service_ms + (
        state.catalog.level_cost_ms(model.name, "rising") if model.tide in MOVING else 0
    )
