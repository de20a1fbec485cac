"""Schemas of the native dialect, where the runtime's views are not already the answer.

Owns JobRequest, JobOut and the small answers. Views that are plain data (VRAM, models, plans, health) leave
as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from pydantic import BaseModel, Field

from tidegate.api.wishes import (
    COUNT_MAX,
    PICTURE_TEXT_MAX,
    PROMPT_MAX,
    SIDE_MAX,
    Body,
    Name,
    Prompt,
    Sampling,
)
from tidegate.core.effects import GuestState
from tidegate.core.image.job import JobPhase
from tidegate.core.stage import Execution, Stage
from tidegate.runtime.views import ImageState, ImageView, JobView, LeaseView


class JobRequest(Sampling):
    """Images that are wanted: `count` of them, with seed, seed + 1, ..."""

    prompt: Prompt
    negative: str = Field(default="", max_length=PROMPT_MAX)
    model: Name = Field(default="", description="A name from /api/models; empty: the default.")
    width: int | None = Field(default=None, ge=16, le=SIDE_MAX)
    height: int | None = Field(default=None, ge=16, le=SIDE_MAX)
    count: int = Field(default=1, ge=1, le=COUNT_MAX)
    picture: str = Field(
        default="", max_length=PICTURE_TEXT_MAX, description="A picture to start from: a file as base64."
    )


class RequestOut(BaseModel):
    """What is made, with every default filled in."""

    prompt: str
    negative: str = ""
    width: int
    height: int
    steps: int
    cfg: float
    guidance: float
    seed: int
    sampler: str = ""
    scheduler: str = ""
    clip_skip: int = -1
    strength: float = 0.75
    idea: str = Field(default="", description="What was asked for, where the prompt was made of it.")


class ImageOut(BaseModel):
    """One image of a job; `image` is its id under /api/images once it is done."""

    index: int
    seed: int
    phase: JobPhase
    step: int
    steps_count: int
    image: str
    code: str
    message: str
    executions: Mapping[Stage, Execution]

    @classmethod
    def of(cls, state: ImageState) -> Self:
        """The state as it leaves."""
        return cls(
            index=state.index,
            seed=state.seed,
            phase=state.phase,
            step=state.step,
            steps_count=state.steps_count,
            image=state.image,
            code=state.code,
            message=state.message,
            executions=state.executions,
        )


class JobOut(BaseModel):
    """A job as it stands."""

    id: str
    model: str
    phase: JobPhase
    is_ended: bool
    priority: int
    submitted_at_ms: int
    ended_at_ms: int
    request: RequestOut
    from_image: bool
    images: list[ImageOut]
    notices: list[str]
    code: str
    message: str

    @classmethod
    def of(cls, view: JobView) -> Self:
        """The view as it leaves."""
        request = {name: getattr(view.request, name) for name in RequestOut.model_fields}
        return cls(
            id=view.id,
            model=view.model,
            phase=view.phase,
            is_ended=view.is_ended,
            priority=view.priority,
            submitted_at_ms=view.submitted_at_ms,
            ended_at_ms=view.ended_at_ms,
            request=RequestOut.model_validate(request),
            from_image=view.from_image,
            images=[ImageOut.of(state) for state in view.images],
            notices=list(view.notices),
            code=view.code,
            message=view.message,
        )


class JobsOut(BaseModel):
    """Jobs, the youngest first."""

    jobs: list[JobOut]


class ImagesOut(BaseModel):
    """Finished images; the file of each is at /api/images/{id}."""

    images: list[ImageView]


class StoryOut(BaseModel):
    """What happened to a job, line by line."""

    job: str
    lines: list[str]


class Deleted(BaseModel):
    """What is gone."""

    id: str


class LeaseWish(Body):
    """Card memory that another application wants."""

    bytes: int = Field(ge=1, le=2**50, description="How much.")
    purpose: str = Field(min_length=1, max_length=200, description="Shown to people: what it is for.")
    card: Name = Field(default="", description="Empty: the first card.")
    needed_in_ms: int = Field(default=0, ge=0, le=3_600_000)
    hold_ms: int = Field(default=60_000, ge=1, le=86_400_000, description="Renew it to keep it longer.")
    wait_ms: int = Field(default=0, ge=0, le=3_600_000, description="0: answer now or refuse.")
    yields: bool = Field(default=False, description="Whether it can be asked back.")
    pid: int = Field(default=0, ge=0, le=2**22, description="The process that will hold it, if known.")


class LeaseOut(BaseModel):
    """A lease. `expires_ms` is Unix time; `asked_back` says why it should be released soon, if it should.

    Of one that is denied after it waited, `largest_now_bytes` and `alternatives` say what could be had.
    """

    lease: str
    state: GuestState
    bytes: int
    eta_ms: int
    expires_ms: int
    asked_back: str
    largest_now_bytes: int = 0
    alternatives: list[str] = []

    @classmethod
    def of(cls, view: LeaseView) -> Self:
        """The view as it leaves."""
        return cls(
            lease=view.id,
            state=view.state,
            bytes=view.amount_bytes,
            eta_ms=view.eta_ms,
            expires_ms=view.expires_ms,
            asked_back=view.asked_back,
            largest_now_bytes=view.largest_now_bytes,
            alternatives=list(view.alternatives),
        )


class LeaseRenewal(Body):
    """For how much longer a lease is wanted."""

    hold_ms: int = Field(ge=1, le=86_400_000)
