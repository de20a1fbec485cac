"""Guests: other applications that want card memory, and the server's health.

Owns `/internal`. What a guest gets is the core's decision.
"""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Path, Query
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from tidegate.api.lobby import GateHere
from tidegate.api.native.envelope import Problem, documented
from tidegate.api.native.schemas import Deleted, LeaseOut, LeaseRenewal, LeaseWish
from tidegate.core.effects import GuestState
from tidegate.core.quantity import size_text
from tidegate.runtime.views import HealthView, LeaseRequest, LeaseView

WAIT_MAX_MS: Final = 60_000

router = APIRouter(tags=["internal"])
LeaseId = Annotated[str, Path(max_length=100)]


class Denied(BaseModel):
    """What could be had instead."""

    error: Problem
    largest_now_bytes: int
    alternatives: list[str]


@router.post(
    "/internal/negotiate_vram",
    response_model=LeaseOut,
    responses={**documented(404, 503), 409: {"model": Denied, "description": "It cannot be had."}},
)
async def negotiate_vram(wish: LeaseWish, gate: GateHere) -> LeaseOut | JSONResponse:
    """Ask for card memory: granted, waiting with an estimate, or what could be had instead.

    Granted memory was seen to be free. A waiting lease is followed with `GET /internal/leases/{id}?wait_ms=`.
    """
    view = await gate.negotiate(
        LeaseRequest(
            amount_bytes=wish.bytes,
            purpose=wish.purpose,
            card=wish.card,
            needed_in_ms=wish.needed_in_ms,
            hold_ms=wish.hold_ms,
            wait_ms=wish.wait_ms,
            yields=wish.yields,
            pid=wish.pid,
        )
    )
    return LeaseOut.of(view) if view.state is not GuestState.DENIED else _denied(wish, view)


@router.get(
    "/internal/leases/{lease}",
    responses=documented(404),
)
async def get_lease(
    lease: LeaseId, gate: GateHere, wait_ms: Annotated[int, Query(ge=0, le=WAIT_MAX_MS)] = 0
) -> LeaseOut:
    """A lease as it stands; with `wait_ms`, as soon as it stands otherwise."""
    return LeaseOut.of(await gate.lease(lease, wait_ms=wait_ms))


@router.put("/internal/leases/{lease}", responses=documented(404, 409))
async def renew_lease(lease: LeaseId, wish: LeaseRenewal, gate: GateHere) -> LeaseOut:
    """Keep a lease for longer; `asked_back` tells when that is not granted."""
    return LeaseOut.of(await gate.renew(lease, hold_ms=wish.hold_ms))


@router.delete("/internal/leases/{lease}", responses=documented(404))
async def release_lease(lease: LeaseId, gate: GateHere) -> Deleted:
    """Give a lease back, after the memory was freed."""
    await gate.release(lease)
    return Deleted(id=lease)


@router.get("/internal/health", responses=documented())
async def get_health(gate: GateHere) -> HealthView:
    """The server, its workers with what each of them holds, and its problems in sentences."""
    return gate.health()


def _denied(wish: LeaseWish, view: LeaseView) -> JSONResponse:
    problem = Problem(
        code="denied",
        message=f"{size_text(wish.bytes)} cannot be had now.",
        remedy="; ".join(view.alternatives),
    )
    denied = Denied(
        error=problem, largest_now_bytes=view.largest_now_bytes, alternatives=list(view.alternatives)
    )
    return JSONResponse(denied.model_dump(), 409)
