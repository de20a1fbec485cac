"""`tidegate demo`: a server on a virtual card, five images, two kills, a guest and a chat, told live.

Owns the scenes and their narration. Nothing in them is staged but the size of the card, the two kills and
the guests: server, engine, plans, recovery and pictures are those of `tidegate serve`, spoken to over HTTP.
The server's process is `demo_server`, the listener to the chat `demo_chat`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final  # Any: what a server answers is JSON of any shape

import typer
from rich.console import Console
from rich.padding import Padding

from tidegate.cli.caller import Caller
from tidegate.cli.demo_chat import Answer
from tidegate.cli.demo_server import CARD_BYTES, DemoServer, kill_image_worker
from tidegate.core.faults import Bug, ClientError, WorkerError
from tidegate.core.quantity import GIB, MIB, size_text, time_text
from tidegate.runtime import model_choice, png

PROMPT: Final = "a lighthouse at dusk"
STEPS: Final = 3
SIDE, LARGE_SIDE, LARGE_STEPS = 128, 192, 2
# Less than the weights of the diffusion model (617 MiB), and than 192 pixels decoded in one piece (34 MiB).
LEFT_BYTES: Final = 24 * MIB
GUEST_BYTES: Final = 1 * GIB
# Room for the language model with its KV cache, or for sampling, and not for both.
SHARED_BYTES: Final = 700 * MIB
KILL_AFTER_STEP: Final = 2
ENDED: Final = ("done", "failed", "cancelled")
INTRODUCTION: Final = (
    f"A server starts on a virtual card of {size_text(CARD_BYTES)}: its memory is counted to the byte and "
    "enforced as on a real one, and the CPU does the computing. The weights of the demo model are random, so "
    "do not look for a lighthouse."
)

Folder = Annotated[
    Path, typer.Option("-o", "--output", help="The folder for the five pictures.", file_okay=False)
]
Stay = Annotated[bool, typer.Option("--stay", help="Leave the server up afterwards, until Ctrl-C.")]
Json = dict[str, Any]
# Told of each event of a job; True: do not watch on.
Strike = Callable[[str, Json], bool]


@dataclass(slots=True)
class Demo:
    """The demo under way."""

    server: DemoServer
    console: Console
    output: Path
    callers: contextlib.ExitStack
    caller: Caller
    began: float
    told: str = ""

    def act(self, title: str, text: str) -> None:
        """Begin a scene."""
        self.console.print(f"\n{title}", style="bold", highlight=False)
        self.say(text)

    def say(self, text: str, *, style: str = "") -> None:
        """Tell something."""
        self.console.print(Padding(text, (0, 0, 0, 3)), highlight=False, markup=False, style=style)

    def happened(self, text: str, *, style: str = "") -> None:
        """Tell something with its moment, once."""
        if text == self.told:
            return
        self.told = text
        self.say(f"{time.monotonic() - self.began:6.1f} s  {text}", style=style)

    def restart(self) -> None:
        """Start a server and speak to it from now on."""
        self.caller = self.callers.enter_context(Caller(self.server.start(), ""))

    def ask(self, side: int, steps: int = STEPS) -> str:
        """Ask for an image; the job's id."""
        wish = {"prompt": PROMPT, "width": side, "height": side, "steps": steps, "seed": 7}
        return str(self.caller.post("/api/jobs", wish)["id"])

    def negotiate(self, amount_bytes: int) -> str:
        """Ask for card memory as a guest and wait until it is there; the lease."""
        began = time.monotonic()
        wish = {"bytes": amount_bytes, "purpose": "a game", "wait_ms": 60_000, "hold_ms": 300_000}
        lease = self.caller.post("/internal/negotiate_vram", wish)
        while lease["state"] == "waiting":
            lease = self.caller.get(f"/internal/leases/{lease['lease']}", wait_ms=10_000)
        took_ms = round((time.monotonic() - began) * 1000)
        self.happened(f"{size_text(amount_bytes)} {lease['state']} after {time_text(took_ms)}")
        return str(lease["lease"])

    def watch(self, job: str, strike: Strike = lambda _kind, _data: False) -> None:
        """Tell what happens to a job until it has ended or `strike` says so."""
        for kind, data in self.caller.events("/api/events?after=0&kinds=progress,notice,job"):
            if data.get("job") != job:
                continue
            match kind:
                case "progress" if not data["step"]:
                    self.happened(f"{data['stage']} begins, {_WHERE[data['placement']]}")
                case "progress" if data["stage"] == "denoise":
                    self.happened(f"step {data['step']} of {data['steps']}")
                case "notice":
                    self.happened(data["text"], style="yellow")
                case "job" if data["phase"] in ENDED:
                    return
            if strike(kind, data):
                return

    def picture(self, job: str, number: int) -> str:
        """Save the picture of a job that is done, and tell about it; the hash of its pixels."""
        view = self.caller.get(f"/api/jobs/{job}", wait_ms=60_000)
        if view["phase"] != "done":
            raise WorkerError(f"The image is {view['phase']}: {view['message']}")
        image = view["images"][0]["image"]
        path = self.output / f"demo-{number}.png"
        try:
            path.write_bytes(self.caller.data(f"/api/images/{image}"))
        except OSError as error:
            raise png.unwritable(path, error.strerror or str(error)) from error
        self.happened(f"done: {path}")
        return str(self.caller.get(f"/api/images/{image}/metadata")["pixels_sha256"])


_WHERE: Final = {"card": "on the card", "stream": "streamed to the card", "cpu": "on the CPU"}


def demo(output: Folder = Path("tidegate-demo"), *, stay: Stay = False) -> None:
    """Make five images on a small card, kill worker and server meanwhile, chat, and tell what happens."""
    model = _model()
    _make_folder(output)
    console = Console(stderr=True)
    began = time.monotonic()
    with DemoServer.over(model) as server, contextlib.ExitStack() as callers:
        console.print(Padding(INTRODUCTION, (0, 0, 0, 3)), highlight=False)
        caller = callers.enter_context(Caller(server.start(), ""))
        played = Demo(server, console, output, callers, caller, began)
        _play(played)
        print(" ".join(f"{output}/demo-{number}.png" for number in range(1, 6)), flush=True)
        if stay:
            played.say(f"The server stays at {played.caller.url} until Ctrl-C.")
            server.wait()


def _play(played: Demo) -> None:
    first = _fits(played)
    _is_tiled(played)
    _expect(first, _survives_its_worker(played), "the picture whose worker was killed")
    _expect(first, _survives_its_server(played), "the picture whose server was killed")
    _has_a_guest(played)
    _expect(first, _pauses_a_chat(played), "the picture that was made while a chat paused")
    took_ms = round((time.monotonic() - played.began) * 1000)
    played.say(f"\nFive images, two kills, a guest and a chat in {time_text(took_ms)}.")


def _fits(played: Demo) -> str:
    played.act(
        "1. An image that fits", "Text encoder, diffusion model and VAE fit side by side, and stay there."
    )
    job = played.ask(SIDE)
    played.watch(job)
    pixels = played.picture(job, 1)
    _tell_peak(played)
    return pixels


def _is_tiled(played: Demo) -> None:
    played.act(
        "2. An image that must be tiled",
        f"A game asks for all of the card but {size_text(LEFT_BYTES)}, less than the weights alone, and gets "
        "it: what was idle there goes. Then an image of twice the pixels is wanted. Elsewhere this is where "
        "one reads 'out of memory'.",
    )
    lease = played.negotiate(CARD_BYTES - LEFT_BYTES)
    job = played.ask(LARGE_SIDE, LARGE_STEPS)
    played.watch(job)
    played.picture(job, 2)
    played.caller.delete(f"/internal/leases/{lease}")
    played.happened("the game ends")


def _survives_its_worker(played: Demo) -> str:
    played.act(
        "3. An image whose worker is killed",
        "The request of the first image again. In the middle of the sampling the process that computes gets "
        "SIGKILL, as from the kernel when memory is short.",
    )
    struck: list[int] = []

    def strike(kind: str, data: Json) -> bool:
        if (
            kind == "progress"
            and data["stage"] == "denoise"
            and data["step"] == KILL_AFTER_STEP
            and not struck
        ):
            struck.append(kill_image_worker(played.caller))
            played.happened(f"kill -9 {struck[0]}, the worker", style="red")
        return False

    job = played.ask(SIDE)
    played.watch(job, strike)
    pixels = played.picture(job, 3)
    played.say("It is the first picture again, byte for byte: the steps before the kill came from the tape.")
    return pixels


def _survives_its_server(played: Demo) -> str:
    played.act(
        "4. An image whose server is killed",
        "The same request once more. When the sampling is done and the pixels are being made, the whole "
        "server gets SIGKILL.",
    )

    def strike(kind: str, data: Json) -> bool:
        if kind != "progress" or data["stage"] != "decode":
            return False
        played.happened(f"kill -9 {played.server.pid}, the server", style="red")
        played.server.kill()
        return True

    job = played.ask(SIDE)
    played.watch(job, strike)
    played.restart()
    played.happened("another server is up, and knows the job")
    pixels = played.picture(job, 4)
    played.say("The first picture again: nothing that was finished was computed a second time.")
    return pixels


def _has_a_guest(played: Demo) -> None:
    played.act(
        "5. A guest",
        f"Another program asks for {size_text(GUEST_BYTES)} of the card, as any program can.",
    )
    lease = played.negotiate(GUEST_BYTES)
    played.say("The card now:")
    for pool in played.caller.get("/api/vram")["pools"]:
        if pool["name"] != "ram":
            for tenant in pool["tenants"]:
                played.say(f"          {tenant['name']}: {size_text(tenant['predicted_bytes'])}")
    _tell_peak(played)
    played.caller.delete(f"/internal/leases/{lease}")


def _pauses_a_chat(played: Demo) -> str:
    played.act(
        "6. A chat that steps aside",
        f"The game is back and leaves {size_text(SHARED_BYTES)}: room for the language model or for "
        "sampling, not for both. In the middle of an answer the first image is wanted once more.",
    )
    lease = played.negotiate(CARD_BYTES - SHARED_BYTES)
    with Caller(played.caller.url, "") as listening:
        answer = Answer(listening, played.happened)
        answer.wait_for_sentence()
        played.happened(f"the answer so far: ...{answer.end}")
        job = played.ask(SIDE)
        played.watch(job)
        pixels = played.picture(job, 5)
        text = answer.whole()
        played.happened(f"the answer has ended: ...{answer.end}")
        undisturbed = Answer(listening, lambda _text: None).whole()
    if not answer.pauses_count or text != undisturbed:
        raise Bug("The answer did not pause, or is not the one that nobody disturbed.")
    played.say(
        f"Every one of its {len(text)} characters is the same as when nobody disturbs it, and the picture is "
        "the first one again."
    )
    played.caller.delete(f"/internal/leases/{lease}")
    return pixels


def _tell_peak(played: Demo) -> None:
    card = played.server.card()
    played.say(
        f"The most that was ever held of the card: {card.tenants_peak_bytes} of {card.capacity_bytes} bytes."
    )


def _expect(first: str, again: str, name: str) -> None:
    if again != first:
        raise Bug(f"{name.capitalize()} differs from the first, although both come from the same request.")


def _model() -> Path:
    """The demo model. Raises ClientError when it was never made."""
    folder = model_choice.demo_folder()
    if folder is None:
        raise ClientError(
            "The demo model is not there.", remedy="Make it with `make setup`.", code="no_demo_model"
        )
    return folder / "sd1-tiny.safetensors"


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise png.unwritable(path, error.strerror or str(error)) from error
