"""`tidegate chat`: a conversation with a language model of a running server.

Owns what is typed and what is shown: answers as they come, and while one waits for the card, why. The
conversation itself is sent whole with every turn, as OpenAI's dialect has it; the server finds what of it is
known already.
"""

from __future__ import annotations

import base64
import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final  # Any: messages are JSON of any shape

import typer

from tidegate.cli.caller import Caller, ServerUrl
from tidegate.cli.overrides import ConfigFile, StateFolder
from tidegate.core.faults import ClientError, WorkerError, fault_by_code

PAUSED: Final = "paused: "
HELP: Final = "/new begins again, /system TEXT sets the stage, /image FILE shows a picture, /quit ends.\n"
_MEDIA_TYPES: Final = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"RIFF": "webp"}

Json = dict[str, Any]  # Any: see the import


@dataclass(slots=True, kw_only=True)
class Talk:
    """One conversation. `shown` are pictures that go with what is said next."""

    options: Json
    system: str = ""
    messages: list[Json] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)

    def said(self, text: str) -> Json:
        """The body of a request with a further turn of the user."""
        content: str | list[Json] = text
        if self.shown:
            content = [{"type": "image_url", "image_url": {"url": url}} for url in self.shown]
            content.append({"type": "text", "text": text})
            self.shown = []
        self.messages.append({"role": "user", "content": content})
        stage = [{"role": "system", "content": self.system}] if self.system else []
        return {**self.options, "messages": [*stage, *self.messages], "stream": True}


def chat(
    message: Annotated[
        str, typer.Argument(help="Say this and end; else the keyboard, or what comes from a pipe.")
    ] = "",
    *,
    model: Annotated[str, typer.Option("--model", "-m", help="Language model, by name.")] = "",
    system: Annotated[str, typer.Option("--system", "-s", help="Who the model is to be.")] = "",
    image: Annotated[list[Path] | None, typer.Option("--image", help="Show a picture first.")] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, max=100, help="0: always the likeliest.")
    ] = None,
    tokens_max: Annotated[
        int | None, typer.Option("--max-tokens", min=1, help="Length of an answer.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="The same seed, the same answer.")] = None,
    server: ServerUrl = "",
    config: ConfigFile = "",
    state: StateFolder = "",
) -> None:
    """Talk with a language model of the running server. /quit ends, Ctrl-C stops an answer."""
    options = {"model": model, "temperature": temperature, "max_tokens": tokens_max, "seed": seed}
    talk = Talk(options={name: value for name, value in options.items() if value is not None}, system=system)
    talk.shown = [_data_url(path) for path in image or ()]
    is_typed = not message and sys.stdin.isatty()
    with Caller.of(server, config=config, state=state) as caller:
        if is_typed:
            _converse(caller, talk)
            return
        text = message or sys.stdin.read().strip()
        if not text:
            raise ClientError(
                "There is nothing to say.", remedy="Write: tidegate chat 'Hello'", code="no_message"
            )
        _answer(caller, talk, text)


def _converse(caller: Caller, talk: Talk) -> None:
    print(HELP, file=sys.stderr, end="")
    while True:
        try:
            line = input("> ").strip()
        except EOFError:  # Ctrl-D
            print(file=sys.stderr)
            return
        command, _, rest = line.partition(" ")
        match command:
            case "":
                continue
            case "/quit" | "/exit":
                return
            case "/new":
                talk.messages, talk.shown = [], []
            case "/system":
                talk.system = rest.strip()
            case "/image":
                with _told():
                    talk.shown.append(_data_url(Path(rest.strip())))
            case _ if command.startswith("/"):
                print(HELP, file=sys.stderr, end="")
            case _:
                with _told():
                    _answer(caller, talk, line)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """In a conversation, what went wrong is said and the conversation goes on."""
    try:
        yield
    except (ClientError, WorkerError) as fault:
        if fault.code == "no_server":
            raise
        print(f"tidegate: {fault}", file=sys.stderr)
    except KeyboardInterrupt:  # the answer is enough as it is
        print(file=sys.stderr)


def _answer(caller: Caller, talk: Talk, text: str) -> None:
    before = len(talk.messages)
    words: list[str] = []
    try:
        for line in caller.lines("/v1/chat/completions", talk.said(text)):
            if line.startswith(": "):
                _show_pause(line[2:])
            elif line.startswith("data: ") and line != "data: [DONE]":
                _show(json.loads(line[len("data: ") :]), words)
        print(flush=True)
    finally:
        if words:
            talk.messages.append({"role": "assistant", "content": "".join(words)})
        else:
            del talk.messages[before:]  # what was not answered was not said


def _show(chunk: Json, words: list[str]) -> None:
    if "error" in chunk:
        error = chunk["error"]
        raise fault_by_code(str(error.get("code")), str(error.get("message")))
    for choice in chunk.get("choices", ()):
        delta = choice["delta"]
        if thought := delta.get("reasoning_content"):
            sys.stderr.write(thought)
            sys.stderr.flush()
        if said := delta.get("content"):
            words.append(said)
            sys.stdout.write(said)
            sys.stdout.flush()


def _show_pause(comment: str) -> None:
    if comment.startswith(PAUSED):
        print(f" [waits: {comment[len(PAUSED) :]}] ", file=sys.stderr, end="", flush=True)


def _data_url(path: Path) -> str:
    try:
        data = path.expanduser().read_bytes()
    except OSError as error:
        raise ClientError(
            f"{path} cannot be read: {error.strerror}.", remedy="Name a picture.", code="no_file"
        ) from error
    kind = next((kind for start, kind in _MEDIA_TYPES.items() if data.startswith(start)), "png")
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
