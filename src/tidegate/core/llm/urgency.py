"""Urgency: is a waiting request worth going before an image, or stopping one in mid-sampling?

Owns these comparisons, in milliseconds of delay: what the requests save, at the weight of a person who waits
for an answer, against what the image loses while the model comes up, answers, and the image's component comes
back. It is Smith's rule for two neighbours: nothing more need be known of the queue. The same is asked of a
model that answers already, with room for both: computing beside each other slows both down.
"""

from __future__ import annotations

from tidegate.core.eta import left_ms, stage_left_ms
from tidegate.core.image.job import ENDED, Job
from tidegate.core.llm.level import Tide
from tidegate.core.llm.model import Model
from tidegate.core.llm.request import WAITING
from tidegate.core.llm.tide import running
from tidegate.core.stage import Stage
from tidegate.core.state import State

# Prior for beginning a stage anew with everything loaded: buffers, and reading the tape.
RESTART_MS = 150


def goes_first(state: State, model: Model, known_ms: dict[str, int | None]) -> bool:
    """Whether its waiting requests go before the next image on its card; `known_ms` keeps by card what that
    takes.
    """
    job = _next_job(state, model.card)
    if job is None:
        return False
    if model.card not in known_ms:
        known_ms[model.card] = left_ms(state, job)
    return _pays(state, model, job, known_ms[model.card])


def pays(state: State, model: Model, job: Job) -> bool:
    """Whether letting the model pass now saves more delay than it costs."""
    return _pays(state, model, job, left_ms(state, job))


def _pays(state: State, model: Model, job: Job, image_ms: int | None) -> bool:
    if image_ms is None:
        return False
    waiting_count = sum(request.phase in WAITING for request in model.requests.values())
    saved_ms = state.policy.chat_weight * waiting_count * image_ms
    return saved_ms > _lost_ms(state, model, job)


def is_worth_quiet(state: State, model: Model, job: Job) -> bool:
    """Whether an image should not compute while this model, wholly in the same place, answers."""
    answers_count = running(model)
    stage_ms = stage_left_ms(state, job)
    if model.tide is not Tide.HOT or not answers_count or stage_ms is None:
        return False
    percent = state.policy.beside_percent
    together_ms = min(stage_ms, model.service_ms)
    saved_ms = state.policy.chat_weight * answers_count * together_ms * (100 - percent) // percent
    # What it does not get done beside the answer, and what stopping costs: a step, and to begin anew.
    lost_ms = together_ms * (2 * percent - 100) // percent
    if job.run is not None:
        lost_ms += job.run.step_ms + RESTART_MS
    return saved_ms > lost_ms


def _lost_ms(state: State, model: Model, job: Job) -> int:
    """What the image waits, and what those behind it wait longer because its component is loaded twice."""
    rise_ms = state.catalog.level_cost_ms(model.name, "rising")
    behind_count = sum(other.phase not in ENDED for other in state.jobs.values())
    return rise_ms + model.service_ms + _reload_ms(state, job) * behind_count


def _reload_ms(state: State, job: Job) -> int:
    """To bring back the component that sampling has loaded; the other stages' have to be loaded anyway."""
    if job.run is None or job.stage is not Stage.DENOISE:
        return 0
    options = state.catalog.options_of(job.size(job.stage), job.work) or ()
    return min((option.load_ms for option in options), default=0)


def _next_job(state: State, card: str) -> Job | None:
    """The image that has the card's worker, else the next in the queue."""
    for worker in state.workers.values():
        if worker.card == card and worker.job in state.jobs:
            return state.jobs[worker.job]
    return state.jobs[state.queue[0]] if state.queue else None
