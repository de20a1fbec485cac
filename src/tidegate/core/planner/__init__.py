"""The planner: how shall this stage run, and who makes room for it? There is one planner in the house.

Read in this order: `question` (what it is told), `candidates` (which executions exist), `choose` (the
pipeline: enumerate, filter, score, take the cheapest), `filters`, `scores`, `plan` (the answer, explaining
itself), `relay` (a whole image), `advice` (what a quantisation would buy), `prices` (priors until times were
measured). Pure functions on frozen data; what is really free is known by `core/ledger` or by the caller.

    facts = StageFacts(latent_height=64, latent_width=64, weights_bytes=vae_bytes,
                       room_bytes=card.total_bytes)
    work = Work(latent_height=64, latent_width=64, steps_count=20)
    options = []
    for execution in candidates_for(Stage.DECODE, facts):        # best first, at most 64
        predicted = ask_engine(execution)                        # Predict frame -> FootprintPredicted
        footprint = Footprint(predicted.card_peak_bytes, predicted.ram_peak_bytes, predicted.weights_bytes)
        options.append(option_of(Stage.DECODE, execution, footprint=footprint, work=work))
    relay = RelayQuestion(subject="image", card=card, ram=ram, options={Stage.DECODE: tuple(options)})
    plans = plan_image(relay)                                    # up front; CapacityError when no way exists
    question = StageQuestion(stage=Stage.DECODE, subject="image", card=card, ram=ram, options=tuple(options),
                             concessions=finished_components)
    plan = climb(question, tried)                                # again at the boundary, with what is free
    for release in plan.releases:
        child.release(release.component)
    run(plan.execution.placement, plan.execution.mode, plan.execution.tile, plan.execution.budget_bytes)
    print(*plan.explain(), *notices_of(plan), sep="\\n")        # core.notice words it for the user

`climb` is in `core.image.ladder`: `choose` above the rungs that failed. It answers a Plan, or a Refusal whose
`fault()` is the one clear CapacityError. After a failed attempt append `Attempt(execution, failure)` to
`tried` and climb again. Between stages a component that stays loaded is a Concession of
YieldClass.OWN_FINISHED; when the next stage computes with it, it is `held=Held(...)` instead.
"""

from __future__ import annotations

from tidegate.core.planner.advice import Advice, advise
from tidegate.core.planner.candidates import StageFacts, candidates_for
from tidegate.core.planner.choose import choose, plan_stage
from tidegate.core.planner.filters import Candidate, Reason, Rejection
from tidegate.core.planner.option import Footprint, Provenance, StageOption
from tidegate.core.planner.plan import Plan, Refusal, Scored
from tidegate.core.planner.prices import Work, option_of
from tidegate.core.planner.question import YIELD_ORDER, Concession, Held, Room, StageQuestion, YieldClass
from tidegate.core.planner.relay import RelayQuestion, plan_image
from tidegate.core.planner.scores import Score

__all__ = [
    "YIELD_ORDER",
    "Advice",
    "Candidate",
    "Concession",
    "Footprint",
    "Held",
    "Plan",
    "Provenance",
    "Reason",
    "Refusal",
    "Rejection",
    "RelayQuestion",
    "Room",
    "Score",
    "Scored",
    "StageFacts",
    "StageOption",
    "StageQuestion",
    "Work",
    "YieldClass",
    "advise",
    "candidates_for",
    "choose",
    "option_of",
    "plan_image",
    "plan_stage",
]
