"""Prediction: asking for footprints that are unknown, while jobs wait in `planning`.

Owns what was asked of the predictor, its answers and its failures. Which executions exist is the planner's
knowledge (`planner/candidates.py`); the answers are kept in the catalog.
"""

from __future__ import annotations

from tidegate.core import events as ev
from tidegate.core.catalog import FootprintKey, SizeKey
from tidegate.core.effects import Outcome, Predict, PredictLlm
from tidegate.core.image.job import Job, JobPhase
from tidegate.core.image.stages import end
from tidegate.core.llm.service import end as end_request
from tidegate.core.llm.wish import give_up as give_up_wish
from tidegate.core.planner.candidates import StageFacts, candidates_for
from tidegate.core.queue import enqueue, leave
from tidegate.core.stage import COMPONENT_OF
from tidegate.core.state import Alarm, State
from tidegate.core.supervision import ensure, terminate
from tidegate.core.worker import PREDICTOR, WorkerPhase


def key_of(state: State, size: SizeKey) -> FootprintKey:
    """Name what must be predicted for a stage of a model at one size."""
    model = state.house.image_model(size.model)
    facts = StageFacts(
        latent_height=size.latent_height,
        latent_width=size.latent_width,
        weights_bytes=model.weights_bytes.get(COMPONENT_OF[size.stage], 0),
        room_bytes=max((card.total_bytes for card in state.house.cards), default=0),
    )
    executions = candidates_for(size.stage, facts)
    return FootprintKey(size.model, size.stage, size.latent_height, size.latent_width, executions)


def plan_ahead(state: State, job: Job) -> None:
    """Ask for what is unknown about a job; it is `planning` until all of it is answered."""
    missing = [stage for stage in job.stages if job.size(stage) not in state.catalog.options]
    if not missing:
        if job.phase is JobPhase.PLANNING:
            job.to(JobPhase.QUEUED, state.stories.of(job.name))
            enqueue(state, job)
        return
    if job.phase is JobPhase.QUEUED:
        leave(state, job)
        job.to(JobPhase.PLANNING, state.stories.of(job.name))
    waiting = state.asked.setdefault(job.model, [])
    for stage in missing:
        key = key_of(state, job.size(stage))
        if key not in waiting:
            waiting.append(key)
            _ask(state, key)


def want_llm(state: State, model: str) -> None:
    """Ask for the footprint of a language model, once."""
    if model not in state.asked_llms:
        state.asked_llms.append(model)
        worker = state.workers[PREDICTOR]
        if worker.phase is WorkerPhase.READY:
            state.emit(PredictLlm(worker=worker.name, incarnation=worker.incarnation, model=model))
            state.set_alarm(Alarm.PREDICTION, worker.name, in_ms=state.policy.predict_wait_max_ms)


def is_wanted(state: State) -> bool:
    """Whether the predictor has something to answer."""
    return bool(state.asked or state.asked_llms)


def _ask(state: State, key: FootprintKey) -> None:
    worker = state.workers[PREDICTOR]
    if worker.phase is WorkerPhase.READY:
        state.emit(Predict(worker=worker.name, incarnation=worker.incarnation, key=key))
        state.set_alarm(Alarm.PREDICTION, worker.name, in_ms=state.policy.predict_wait_max_ms)


def ensure_predictor(state: State) -> None:
    """Start the predictor when something is to be asked of it."""
    if is_wanted(state):
        ensure(state, state.workers[PREDICTOR])


def predictor_ready(state: State) -> None:
    """The predictor is up: ask everything that is unanswered (again)."""
    worker = state.workers[PREDICTOR]
    for keys in state.asked.values():
        for key in keys:
            _ask(state, key)
    models, state.asked_llms = state.asked_llms, []
    for model in models:
        want_llm(state, model)
    assert worker.phase is WorkerPhase.READY, "only a ready predictor is asked"


def predicted(state: State, event: ev.FootprintPredicted) -> None:
    """A stage's footprints are known; jobs that waited for them go on."""
    state.catalog.learn_footprints(event.key, event.footprints)
    waiting = state.asked.get(event.key.model, [])
    if event.key in waiting:
        waiting.remove(event.key)
    if not waiting:
        state.asked.pop(event.key.model, None)
    _heard(state)
    for job in tuple(state.jobs.values()):
        if job.phase is JobPhase.PLANNING and job.model == event.key.model:
            plan_ahead(state, job)


def llm_predicted(state: State, event: ev.LlmPredicted) -> None:
    """A language model's footprint is known."""
    state.catalog.llms[event.model] = event.footprint
    if event.model in state.asked_llms:
        state.asked_llms.remove(event.model)
    _heard(state)


def _heard(state: State) -> None:
    state.prediction_failures.clear()
    state.workers[PREDICTOR].kills_count = 0
    if is_wanted(state):
        state.set_alarm(Alarm.PREDICTION, PREDICTOR, in_ms=state.policy.predict_wait_max_ms)
    else:
        state.clear_alarm(Alarm.PREDICTION, PREDICTOR)


def failed(state: State, event: ev.PredictionFailed) -> None:
    """The model cannot be predicted, because its file is bad: those who wait for it hear why."""
    _give_up(state, event.model, code="bad_model", message=event.reason)


def overdue(state: State) -> None:
    """The predictor did not answer in time."""
    if is_wanted(state):
        terminate(state, state.workers[PREDICTOR], at_fault=True)


def predictor_lost(state: State, *, was_killed: bool) -> None:
    """The predictor ended with questions unanswered: each model's questions may be asked a few times."""
    state.clear_alarm(Alarm.PREDICTION, PREDICTOR)
    if was_killed:
        return  # By somebody else: no model is to blame.
    for model in (*state.asked, *state.asked_llms):
        failures = state.prediction_failures[model] = state.prediction_failures.get(model, 0) + 1
        if failures >= state.policy.predict_attempts_max:
            message = f"The needs of {model} could not be predicted in {failures} attempts."
            _give_up(state, model, code="prediction", message=message)


def _give_up(state: State, model: str, *, code: str, message: str) -> None:
    state.asked.pop(model, None)
    if model in state.asked_llms:
        state.asked_llms.remove(model)
    state.prediction_failures.pop(model, None)
    for job in tuple(state.jobs.values()):
        if job.phase is JobPhase.PLANNING and job.model == model:
            end(state, job, JobPhase.FAILED, code=code, message=message)
    known = state.models.get(model)
    if known is not None:
        give_up_wish(state, known, why=message)
    for request in tuple(known.requests.values()) if known and model not in state.catalog.llms else ():
        if known is not None:
            end_request(state, known, request, outcome=Outcome.FAILED, code=code, message=message)
