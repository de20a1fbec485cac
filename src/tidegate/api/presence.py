"""Presence: whether the client that waits for an answer is still there.

Owns racing work against the end of a connection. What is done about work that nobody waits for is decided by
whoever calls; that nobody is answered then is `refusals`'.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable
from typing import TypeVar

from starlette.requests import Request
from starlette.types import Receive

T = TypeVar("T")


class Gone(Exception):
    """The client hung up before its answer was ready."""


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`; raises `Gone` when the client hangs up first. The body must have been read."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(until_gone(request.receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise Gone
    finally:
        for task in (working, leaving):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):  # its result was taken above
                await task


async def until_gone(receive: Receive) -> None:
    """Return when the client hung up."""
    while (await receive())["type"] != "http.disconnect":
        pass
