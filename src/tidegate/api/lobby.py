"""The lobby: what every route needs, and how it gets it.

Owns the parts that the application carries (gate, settings, the thread for pictures) and the dependencies by
which routes ask for them. It does nothing itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Final, ParamSpec, TypeVar

from fastapi import Depends, Header, Request

from tidegate.runtime.gate import Gate
from tidegate.runtime.settings import Settings
from tidegate.runtime.views import ReloadView

P = ParamSpec("P")
T = TypeVar("T")
# The tables of the settings that the API itself follows.
HERE: Final = ("listen", "defaults", "enhance", "tag")
# Of these, what the socket was made with.
BOUND_ONCE: Final = ("host", "port", "connections_max")


class Lobby:
    """One for each application. `settings` are replaced by a reload."""

    def __init__(
        self, gate: Gate, settings: Settings, *, reread: Callable[[], Settings] | None = None
    ) -> None:
        self.gate = gate
        self.settings = settings
        self.on_settings: Callable[[Settings], None] = lambda _settings: None
        self._reread = reread or (lambda: settings)
        self._pictures = ThreadPoolExecutor(1, thread_name_prefix="pictures")

    async def off_loop(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do blocking work with pictures on the thread for it."""
        return await asyncio.get_running_loop().run_in_executor(self._pictures, lambda: work(*args, **kwargs))

    async def reload(self) -> ReloadView:
        """Read the settings again: keys, hosts, bounds and defaults here, the rest behind the gate; what only
        a restart can change is named. Raises ClientError and changes nothing when the file has a mistake.
        """
        settings = await asyncio.to_thread(self._reread)
        told = await self.gate.reload()
        before, self.settings = self.settings, settings
        self.on_settings(settings)
        changed = [name for name in HERE if getattr(before, name) != getattr(settings, name)]
        listen = [
            name for name in BOUND_ONCE if getattr(before.listen, name) != getattr(settings.listen, name)
        ]
        return ReloadView(
            changed=(*changed, *told.changed),
            restart_needed=(*(f"listen.{name}" for name in listen), *told.restart_needed),
        )

    def close(self) -> None:
        """End the thread."""
        self._pictures.shutdown(cancel_futures=True)


async def _lobby(request: Request) -> Lobby:
    found = request.app.state.lobby
    assert isinstance(found, Lobby)
    return found


async def _gate(request: Request) -> Gate:
    return (await _lobby(request)).gate


LobbyHere = Annotated[Lobby, Depends(_lobby)]
GateHere = Annotated[Gate, Depends(_gate)]
IdempotencyKey = Annotated[
    str,
    Header(
        alias="Idempotency-Key",
        max_length=200,
        pattern=r"^[\x21-\x7e]*$",
        description="Two requests with the same key are one job.",
    ),
]
