"""Serving: the socket, the signals, and the order of start and end.

Owns what happens between "the settings are read" and "the process ends": the address is bound before any
worker is started, so that a taken port costs nothing; connections end before the runtime does; SIGHUP reads
the settings again. The application is `tidegate.api.app`, the runtime `tidegate.runtime.server`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Final

import typer
import uvicorn
import uvloop

from tidegate.api.app import application
from tidegate.api.lobby import Lobby
from tidegate.cli import address
from tidegate.core.faults import ClientError, Fault
from tidegate.runtime.server import serving
from tidegate.runtime.settings import ListenSettings, Settings
from tidegate.runtime.settings_file import state_folder_of

_log = logging.getLogger(__name__)

Read = Callable[[], Settings]
BACKLOG: Final = 256
# Streams of events never end by themselves; what is answered in this time is answered.
GRACE_S: Final = 2
KEEP_ALIVE_S: Final = 30
# The journal's thread computes too, and with Python's 5 ms the event loop may wait that long for its turn.
# The fastest tenth of negotiations took 1.6 ms with that and 1.1 ms with this, on two busy cores.
SWITCH_S: Final = 0.000_2


class HttpServer(uvicorn.Server):
    """uvicorn without its own signal handlers: told to stop is how a server ends well, not an
    interruption.
    """

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to us."""
        yield

    def stop(self) -> None:
        """End; asked again, without waiting for connections."""
        self.force_exit = self.should_exit
        self.should_exit = True


def served(read: Read) -> None:
    """Serve until told to stop. Raises ClientError when the address is taken or the settings are wrong."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    sys.setswitchinterval(SWITCH_S)
    settings = read()
    with contextlib.closing(bound(settings.listen)) as listener:
        uvloop.run(_served(settings, read, listener))


def bound(listen: ListenSettings) -> socket.socket:
    """A socket that listens. Raises ClientError."""
    try:
        family, kind, _, _, where = socket.getaddrinfo(listen.host, listen.port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
    except OSError as error:
        raise _unbound(listen, error) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise _unbound(listen, error) from error
    return listener


def url_of(listener: socket.socket) -> str:
    """Where a client on this machine reaches it."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def _served(settings: Settings, read: Read, listener: socket.socket) -> None:
    async with serving(settings, reread=read) as gate:
        lobby = Lobby(gate, settings, reread=read)
        config = uvicorn.Config(
            application(lobby),
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            proxy_headers=False,
            server_header=False,
            limit_concurrency=settings.listen.connections_max,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=GRACE_S,
        )
        http, url = HttpServer(config), url_of(listener)
        here = address.Address(
            url=url,
            pid=os.getpid(),
            device=settings.cards[0].device,
            engine_name=gate.health().device,
        )
        with contextlib.closing(lobby), address.left(state_folder_of(settings), here):
            async with asyncio.TaskGroup() as group:
                again = asyncio.Event()
                reloading = group.create_task(_reloaded(lobby, again))
                _handle_signals(http, again)
                typer.echo(f"tidegate serves {url}  (reference: {url}/docs)")
                await http.serve(sockets=[listener])
                reloading.cancel()


def _handle_signals(http: HttpServer, again: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, http.stop)
    loop.add_signal_handler(signal.SIGHUP, again.set)


async def _reloaded(lobby: Lobby, again: asyncio.Event) -> None:
    """Read the settings again whenever SIGHUP asks for it."""
    while True:
        await again.wait()
        again.clear()
        try:
            told = await lobby.reload()
        except Fault as fault:
            _log.warning("Nothing was reloaded: %s", fault)
        else:
            _log.warning("Reloaded: %s", "; ".join(told.changed) or "nothing has changed")


def _unbound(listen: ListenSettings, error: OSError) -> ClientError:
    why = (error.strerror or str(error)).lower()
    return ClientError(
        f"{listen.host} port {listen.port} cannot be listened on: {why}.",
        remedy="Choose another with --port, or stop what listens there.",
        code="address_taken",
    )
