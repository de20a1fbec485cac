"""What-if: the plan for an order, made by the core's own planner on the state of this moment.

Owns asking the planner without making anybody yield. Footprints that are unknown are asked of the predictor;
they hold for the real job too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tidegate.core.image.job import Job
from tidegate.core.image.staging import question_for
from tidegate.core.planner.advice import advise, advise_neighbours
from tidegate.core.planner.choose import choose
from tidegate.core.planner.option import StageOption
from tidegate.core.planner.plan import Plan, Refusal
from tidegate.core.planner.prices import option_of
from tidegate.core.planner.question import StageQuestion
from tidegate.core.prediction import key_of
from tidegate.core.stage import COMPONENT_OF, Stage, relay
from tidegate.core.state import State
from tidegate.core.worker import Worker, WorkerKind
from tidegate.runtime.conversation import Declined, Gone
from tidegate.runtime.journal.records import Record
from tidegate.runtime.predictor import Predictor
from tidegate.runtime.registry import Entry
from tidegate.runtime.shell import Shell
from tidegate.runtime.supervisor import Process
from tidegate.runtime.views import JobOrder, PlanView, StagePlanView


@dataclass(slots=True, kw_only=True)
class Oracle:
    """Answers to plans; `process` names a live predictor process, `remember` keeps what is new."""

    shell: Shell
    predictor: Predictor
    process: Callable[[], Process | None]
    remember: Callable[[Sequence[Record]], None]

    async def plan(self, order: JobOrder, model: Entry) -> PlanView:
        """The plan of every stage, each for the memory as it is now."""
        state = self.shell.arbiter.state
        worker = next(worker for worker in state.workers.values() if worker.kind is WorkerKind.IMAGE)
        stages = relay(from_image=order.init is not None)
        job = _job(order, model, stages, now_ms=state.now_ms)
        shown: list[StagePlanView] = []
        told: list[str] = []
        advice: list[str] = []
        for stage in stages:
            question = question_for(
                state, job, worker, stage=stage, candidates_max=state.policy.candidates_max
            )
            if question is None:
                try:
                    question = await self._asked(state, job, worker, stage)
                except (Gone, Declined) as error:
                    reason = f"The needs of {stage} could not be predicted: {error}."
                    return PlanView(model=model.name, is_possible=False, explanation=(*told, reason))
            answer = choose(question)
            told += answer.explain()
            if isinstance(answer, Refusal):
                return PlanView(
                    model=model.name,
                    is_possible=False,
                    stages=tuple(shown),
                    explanation=tuple(told),
                    advice=tuple(advice),
                )
            shown.append(_shown(stage, answer))
            advice += [hint.text for hint in advise(question, weight_type=_weight_type(model, stage))]
            advice += advise_neighbours(question)
        return PlanView(
            model=model.name,
            is_possible=True,
            stages=tuple(shown),
            explanation=tuple(told),
            advice=tuple(advice),
            cost_ms=sum(plan.cost_ms for plan in shown),
        )

    async def _asked(self, state: State, job: Job, worker: Worker, stage: Stage) -> StageQuestion:
        process = self.process()
        if process is None:
            raise Gone("the predictor is not up")
        key = key_of(state, job.size(stage))
        footprints, records = await self.predictor.footprints(process, key)
        self.remember(records)
        options: list[StageOption] = [
            option_of(stage, execution, footprint=footprint, work=job.work)
            for execution, footprint in zip(key.executions, footprints, strict=True)
            if footprint is not None
        ]
        return _question(state, job, worker, stage, options)


def _question(
    state: State, job: Job, worker: Worker, stage: Stage, options: Sequence[StageOption]
) -> StageQuestion:
    """The core's own question, asked with options that its catalog does not hold yet."""
    size = job.size(stage)
    borrowed = replace(
        state.catalog,
        options={size: tuple((option.execution, option.footprint) for option in options)},
    )
    question = question_for(
        replace(state, catalog=borrowed),
        job,
        worker,
        stage=stage,
        candidates_max=state.policy.candidates_max,
    )
    assert question is not None, "the borrowed catalog holds these options"
    return question


def _job(order: JobOrder, model: Entry, stages: tuple[Stage, ...], *, now_ms: int) -> Job:
    factor = model.opened.latent_factor
    return Job(
        name=model.name,
        model=model.name,
        latent_height=max(1, order.request.height // factor),
        latent_width=max(1, order.request.width // factor),
        steps_count=max(1, order.request.steps),
        stages=stages,
        priority=order.priority,
        submitted_ms=now_ms,
        waiting_since_ms=now_ms,
        due_ms=now_ms,
    )


def _shown(stage: Stage, plan: Plan) -> StagePlanView:
    footprint = plan.option.footprint
    return StagePlanView(
        stage=stage,
        execution=plan.execution,
        card_bytes=footprint.card_bytes,
        ram_bytes=footprint.ram_bytes,
        cost_ms=plan.score.total_ms,
        rejected=tuple(rejection.text() for rejection in plan.rejected),
    )


def _weight_type(model: Entry, stage: Stage) -> str:
    """The type of most tensors of the stage's component."""
    facts = model.opened.components.get(COMPONENT_OF[stage].value)
    types = facts.types if facts else {}
    return max(types, key=lambda name: types[name], default="")
