"""The caller: how commands speak to a running server.

Owns finding the server and its key, one HTTP client, and turning refusals back into faults, so that a command
ends with the same line and exit code as if the work had been done in its own process.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Collection, Iterator, Mapping
from typing import Annotated, Any, Final, Self  # Any: what a server answers is JSON of any shape

import httpx2
import typer

from tidegate.cli import address
from tidegate.core.faults import CapacityError, ClientError, Fault, WorkerError
from tidegate.runtime import settings_file
from tidegate.runtime.settings import ListenSettings

SERVER_VARIABLE: Final = "TIDEGATE_SERVER"
KEY_VARIABLE: Final = "TIDEGATE_KEY"
# A long poll of the server answers within a minute.
ANSWER_MAX_S: Final = 90.0

ServerUrl = Annotated[
    str,
    typer.Option("--server", help="Where the server is; else $TIDEGATE_SERVER, else the one started here."),
]


class Caller:
    """A client of one server; use as a context manager."""

    def __init__(self, url: str, key: str) -> None:
        self.url = url
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        # Our own server on this machine is not asked for by way of a proxy.
        self._client = httpx2.Client(base_url=url, headers=headers, timeout=ANSWER_MAX_S, trust_env=False)

    @classmethod
    def of(cls, server: str = "", *, config: str = "", state: str = "") -> Self:
        """The server that the user names, or the one that was started with the same settings."""
        settings = settings_file.load(config, settings_file.Overrides(state=state))
        listen = settings.listen
        host = f"[{listen.host}]" if ":" in listen.host else listen.host
        usual = f"http://{'127.0.0.1' if host in ('0.0.0.0', '[::]') else host}:{listen.port}"
        left = address.found(settings_file.state_folder_of(settings))
        url = server or os.environ.get(SERVER_VARIABLE, "") or (left.url if left else usual)
        # A key of the settings is only shown to the server of the settings.
        return cls(url, os.environ.get(KEY_VARIABLE, "") if server else _key(listen))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def get(self, path: str, **query: int | str) -> Any:  # Any: see the import
        """The answer to a question."""
        return self._asked("GET", path, params=query)

    def post(
        self, path: str, body: Mapping[str, object] | None = None, *, accepted: Collection[int] = ()
    ) -> Any:  # Any: see the import
        """The answer to a command; one of the `accepted` statuses is an answer, too."""
        return self._asked("POST", path, accepted=accepted, json=body)

    def put(self, path: str, body: Mapping[str, object], *, answer_max_s: float = ANSWER_MAX_S) -> Any:
        """The answer to a change."""
        return self._asked("PUT", path, json=body, timeout=answer_max_s)

    def delete(self, path: str) -> None:
        """Give something back, or have it removed."""
        self._answered("DELETE", path)

    def data(self, path: str) -> bytes:
        """A file."""
        return self._answered("GET", path).content

    def events(self, path: str) -> Iterator[tuple[str, Any]]:  # Any: see the import
        """Names and data of the events of a stream, until it ends."""
        with self._reached(), self._client.stream("GET", path) as answer:
            if answer.status_code != 200:
                answer.read()
                raise fault_of(answer)
            name = ""
            for line in answer.iter_lines():
                field, _, value = line.partition(": ")
                if field == "event":
                    name = value
                elif field == "data":
                    yield name, json.loads(value)

    def lines(self, path: str, body: Mapping[str, object]) -> Iterator[str]:
        """The lines of the stream that answers a command, comments too, as they come."""
        with self._reached(), self._client.stream("POST", path, json=body) as answer:
            if not answer.is_success:
                answer.read()
                # OpenAI's envelope has the remedy in the message.
                raise fault_of(answer, has_remedy=False)
            yield from (line for line in answer.iter_lines() if line)

    def _asked(self, method: str, path: str, **how: Any) -> Any:  # Any: passed on to the client as it is
        return self._answered(method, path, **how).json()

    def _answered(
        self, method: str, path: str, *, accepted: Collection[int] = (), **how: Any
    ) -> httpx2.Response:  # Any: as above
        with self._reached():
            answer = self._client.request(method, path, **how)
        if not (answer.is_success or answer.status_code in accepted):
            raise fault_of(answer)
        return answer

    @contextlib.contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except httpx2.InvalidURL as error:
            raise ClientError(
                f"{self.url!r} is no address.", remedy="Write http://127.0.0.1:7860."
            ) from error
        except httpx2.TransportError as error:  # refused, reset, timed out, or no HTTP at all
            raise ClientError(
                f"No server answers at {self.url}.",
                remedy="Start one with: tidegate serve",
                code="no_server",
            ) from error


def _key(listen: ListenSettings) -> str:
    named = os.environ.get(KEY_VARIABLE, "")
    return named or (listen.keys[0].get_secret_value() if listen.keys else "")


def key_of_settings() -> str:
    """The key for a server of this user; none when the settings cannot be read."""
    try:
        return _key(settings_file.load().listen)
    except Fault:
        # Such settings start no server; one that runs has been started with others.
        return os.environ.get(KEY_VARIABLE, "")


def fault_of(answer: httpx2.Response, *, has_remedy: bool = True) -> Fault:
    """The fault that the server told, as if it had been raised here."""
    try:
        told = answer.json()["error"]
        remedy = str(told["remedy"]) if has_remedy else ""
        message, code = str(told["message"]), str(told["code"])
    except (ValueError, KeyError, TypeError):  # something else answers on this port
        return ClientError(
            f"{answer.url} does not answer like tidegate (status {answer.status_code}).",
            remedy="Is another program on this port? Name the server with --server.",
            code="no_server",
        )
    if answer.status_code in (429, 503):
        return CapacityError(message, remedy=remedy, code=code)
    if answer.status_code >= 500:
        return WorkerError(message, remedy=remedy, code=code)
    return ClientError(message, remedy=remedy, code=code)
