"""Models as this dialect lists them.

Owns `/v1/models`. What a model holds and needs is told by the native dialect.
"""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Path
from pydantic import BaseModel

from tidegate.api.lobby import GateHere
from tidegate.api.openai.envelope import documented
from tidegate.core.faults import ClientError

router = APIRouter(tags=["openai"])


class ModelOut(BaseModel):
    """One model; files have no date of making that means anything, so `created` is 0."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "tidegate"


class ModelList(BaseModel):
    """All models that can be asked for."""

    object: Literal["list"] = "list"
    data: list[ModelOut]


@router.get("/v1/models", responses=documented())
async def list_models(gate: GateHere) -> ModelList:
    """The models that can be asked for."""
    return ModelList(data=[ModelOut(id=view.name) for view in gate.models() if not view.refused])


@router.get("/v1/models/{model}", responses=documented(404))
async def get_model(model: Annotated[str, Path(max_length=200)], gate: GateHere) -> ModelOut:
    """One model, by its name or another one that it was given."""
    names = []
    for view in gate.models():
        if view.refused:
            continue
        if model in (view.name, *view.aliases):
            return ModelOut(id=view.name)
        names.append(view.name)
    raise ClientError(
        f"There is no model {model!r}.",
        remedy=f"There are {', '.join(names)}." if names else "None is configured.",
        code="unknown_model",
    )
