"""Watching a server of this process: which process computes, and when a stage begins or makes a step.

Owns no expectation; tests strike at the moments that these wait for.
"""

from __future__ import annotations

from tidegate.core.stage import Stage
from tidegate.runtime.frontdesk import FrontDesk


def worker_of(gate: FrontDesk) -> int:
    return next(worker.pid for worker in gate.health().workers if worker.kind == "image")


async def step_of(gate: FrontDesk, job: str, stage: Stage) -> None:
    async for item in gate.feed(job):
        if item.kind == "progress" and item.stage is stage and item.step:
            return


async def stage_of(gate: FrontDesk, job: str, stage: Stage) -> None:
    async for item in gate.events(after=0):
        data = item.data
        if item.kind == "progress" and data["job"] == job and data["stage"] == stage.value:
            return
