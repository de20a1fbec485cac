"""A house for tests: `tidegate serve` with models of both engines on one virtual card, spoken to over HTTP.

Owns the server's process, the card's ledger beside it, what guests and strangers leave of the card, and the
listener to events. It owns no expectation: what must hold is said by the tests.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2

from tide_talk import WAIT_S, Json, Talk, chat_wish
from tidegate.cli.demo_server import CARD_BYTES, DemoServer

PROMPT = "a lighthouse at dusk"
SETTINGS = """
[listen]
pixels_max = 36864

[[cards]]
device = "virtual:3GiB"

[defaults]
model = "tiny"
width = 64
height = 64
steps = 2
cfg = 1.0

[[models]]
name = "tiny"
model = "{image}"
threads = 1

[[models]]
name = "plain"
model = "{image}"
flash_attention = false
threads = 1

[[models]]
name = "packed"
model = "{packed_image}"
threads = 1

[llm]
model = "talker"
evaluation = "reproducible"
slots = 2
context = 4096
threads = 1

[[llms]]
name = "talker"
file = "{language}"

[[llms]]
name = "packed-talker"
file = "{packed_language}"
mmproj = "none"

# Images do not wait for answers, which are short here, and whoever is killed on purpose does not rest for it.
[policy]
answer_wait_max_ms = 0
chat_weight = 0
quantum_ms = 500
backoff_ms = 50
backoff_max_ms = 200
quarantine_ms = 200
"""


class TideHouse:
    """The server and its card."""

    def __init__(self, folder: Path, **files: Path) -> None:
        self.server = DemoServer(folder, SETTINGS.format(**files))
        self._events: list[tuple[str, Json]] = []
        self._heard = threading.Condition()
        self._is_open = threading.Event()
        self._leases: dict[str, int] = {}

    @contextlib.contextmanager
    def open(self) -> Iterator[TideHouse]:
        """Start it; at the end nobody is left."""
        try:
            self.start()
            yield self
        finally:
            self.server.stop()
            self._client.close()
            self._listener.join()

    def start(self) -> None:
        """Start a server, or another one over the same state."""
        # A connection that is kept for later would look like one that a test left behind.
        limits = httpx2.Limits(max_keepalive_connections=0)
        url = self.server.start()
        self._client = httpx2.Client(base_url=url, timeout=WAIT_S, limits=limits, trust_env=False)
        self._listener = threading.Thread(target=self._listen, name="listener to events")
        self._is_open.clear()
        self._listener.start()
        assert self._is_open.wait(WAIT_S)

    def kill(self) -> None:
        """Kill the server."""
        self.server.kill()
        self._listener.join()
        self._client.close()
        self._leases.clear()

    # --- asking

    def get(self, path: str, **query: int | str) -> Json:
        """The answer to a question."""
        return _answered(self._client.get(path, params=query))

    def post(self, path: str, **body: object) -> Json:
        """The answer to a command."""
        return _answered(self._client.post(path, json=body))

    def put(self, path: str, **body: object) -> Json:
        """The answer to a wish."""
        return _answered(self._client.put(path, json=body))

    def begun(self, **wish: object) -> str:
        """Ask for an image; the job."""
        return str(self.post("/api/jobs", **{"prompt": PROMPT, "seed": 7, **wish})["id"])

    def ended(self, job: str) -> Json:
        """A job once it is done, however busy the machine is."""
        while not (view := self.get(f"/api/jobs/{job}", wait_ms=60_000))["is_ended"]:
            pass
        assert view["phase"] == "done", (view["message"], self.story(job))
        return view

    def image(self, **wish: object) -> Json:
        """Make an image; the job as it ended."""
        return self.ended(self.begun(**wish))

    def pixels(self, view: Json) -> str:
        """The hash of the pixels of a job's image."""
        image = view["images"][0]["image"]
        return str(self.get(f"/api/images/{image}/metadata")["pixels_sha256"])

    def story(self, job: str) -> str:
        """What happened to a job."""
        return "\n".join(self.get(f"/api/jobs/{job}/story")["lines"])

    def chat(self, **wish: object) -> str:
        """Ask a language model; all it says."""
        return str(self.post("/v1/chat/completions", **chat_wish(**wish))["choices"][0]["message"]["content"])

    @contextlib.contextmanager
    def talk(self, **wish: object) -> Iterator[Talk]:
        """An answer under way, in mid-sentence."""
        talk = Talk(self._client, chat_wish(stream=True, **wish))
        try:
            talk.begun()
            yield talk
        finally:
            talk.close()

    # --- memory

    def leave(self, amount_bytes: int) -> None:
        """Guests leave so many bytes of the card; comes back when whoever is idle has made way."""
        wanted_bytes = CARD_BYTES - amount_bytes
        if wanted_bytes < sum(self._leases.values()):
            for lease in tuple(self._leases):
                self.drop(lease)
        if (more_bytes := wanted_bytes - sum(self._leases.values())) > 0:
            self._leases[self.lease(more_bytes)] = more_bytes
        with self.server.ledger() as card:
            card.reset_peaks()

    def leave_for_layers(self, count: int) -> int:
        """Leave what so many layers of the language model take, and hardly more; how much that is."""
        held = {}
        for layers in (count, count + 1):
            self.put("/api/models/talker/level", level="partial", layers=layers)
            self.until("level", lambda data, n=layers: (data["level"], data["layers"]) == ("partial", n))
            held[layers] = self.tenants()["llm/talker"]["predicted_bytes"]
        left_bytes = (held[count] + held[count + 1]) // 2
        self.unload("talker")
        self.stands("cold")
        self.leave(left_bytes)
        return left_bytes

    def foreign(self, amount_bytes: int) -> None:
        """Somebody takes so much of what is free on the card, without asking; comes back when it was seen."""
        with self.server.ledger() as card:
            card.set_foreign(amount_bytes)
        while self.pool()["foreign_bytes"] != amount_bytes:
            pass

    def pool(self, name: str = "VCARD0") -> Json:
        """A card, or RAM."""
        found: Json = next(one for one in self.get("/api/vram")["pools"] if one["name"] == name)
        return found

    def peak(self) -> int:
        """The most that ours had of the card since what is left of it last changed."""
        return self.server.card().tenants_peak_bytes

    def lease(self, amount_bytes: int) -> str:
        """Card memory for a guest, once it was granted."""
        wish = {"bytes": amount_bytes, "purpose": "a guest", "wait_ms": 60_000, "hold_ms": 300_000}
        lease = self.post("/internal/negotiate_vram", **wish)
        while lease["state"] == "waiting":
            lease = self.get(f"/internal/leases/{lease['lease']}", wait_ms=10_000)
        assert lease["state"] == "granted", lease
        return str(lease["lease"])

    def drop(self, lease: str) -> None:
        """Give a lease back."""
        self._leases.pop(lease, None)
        _answered(self._client.delete(f"/internal/leases/{lease}"))

    def tenants(self, pool: str = "VCARD0") -> dict[str, Json]:
        """Who holds what of a pool, by name; parts by name too."""
        found = {tenant["name"]: tenant for tenant in self.pool(pool)["tenants"]}
        for tenant in found.values():
            tenant["parts"] = {part["part"]: part for part in tenant["parts"]}
        return found

    def parts(self, tenant: str) -> set[str]:
        """What a tenant has on the card."""
        return set(self.tenants().get(tenant, {"parts": ()})["parts"])

    def held(self, worker: str) -> int:
        """Bytes that a worker holds on the card, as the card's ledger has it."""
        pid = self.pid(worker)
        with self.server.ledger() as card:
            row = card.read().row_of(pid) if pid else None
        return row.held_bytes() if row else 0

    def unload(self, *models: str) -> None:
        """Have models give everything back."""
        for model in models:
            self.post(f"/api/models/{model}/unload")

    def recover(self) -> None:
        """Nobody takes anything of the card any more, nothing is refused, and the planner decides."""
        with self.server.ledger() as card:
            card.clear_faults()
        self.foreign(0)
        self.leave(CARD_BYTES)
        self.put("/api/models/talker/level", level="auto")

    # --- processes and levels

    def pid(self, worker: str) -> int:
        """The process of a worker, 0 when there is none."""
        workers = self.get("/internal/health")["workers"]
        return next((int(found["pid"]) for found in workers if found["name"] == worker), 0)

    def strike(self, worker: str, number: signal.Signals) -> int:
        """Send a signal to a worker; its process."""
        pid = self.pid(worker)
        os.kill(pid, number)
        return pid

    def level(self, model: str = "talker") -> str:
        """Where a language model stands."""
        models = self.get("/api/models")["models"]
        return str(next(found for found in models if found["name"] == model)["language"]["tide"])

    def stands(self, level: str, model: str = "talker") -> None:
        """Wait until a language model stands there."""
        with self._heard:
            assert self._heard.wait_for(lambda: self._last_level(model) == level, WAIT_S), self._events[-20:]

    def _last_level(self, model: str) -> str:
        told = (data for kind, data in reversed(self._events) if kind == "level" and data["model"] == model)
        return str(next(told, {"level": "cold"})["level"])

    # --- events

    def mark(self) -> int:
        """A place in what was told so far."""
        with self._heard:
            return len(self._events)

    def told(self, since: int = 0) -> list[str]:
        """Texts of all notices since a mark."""
        with self._heard:
            return [data["text"] for kind, data in self._events[since:] if kind == "notice"]

    def until(self, kind: str, holds: Callable[[Json], object], *, since: int = 0) -> Json:
        """Wait for an event, or find it among those since a mark."""

        def found() -> Json | None:
            matching = (data for name, data in self._events[since:] if name == kind and holds(data))
            return next(matching, None)

        with self._heard:
            assert self._heard.wait_for(lambda: found() is not None, WAIT_S), self._events[since:][-20:]
            data = found()
            assert data is not None
            return data

    def comes(self, kind: str, holds: Callable[[Json], object], *, until_s: float) -> bool:
        """Whether such an event is there by this moment of the monotonic clock."""
        with self._heard:
            left_s = max(0.0, until_s - time.monotonic())
            return self._heard.wait_for(
                lambda: any(name == kind and holds(data) for name, data in self._events), left_s
            )

    def notice(self, words: str, *, since: int = 0) -> str:
        """Wait for a notice with these words; all of it."""
        return str(self.until("notice", lambda data: words in data["text"], since=since)["text"])

    def computing(self, job: str, stage: str, *, step: int) -> None:
        """Wait until a job has come as far as this step of a stage."""
        self.until(
            "progress",
            lambda data: (data["job"], data["stage"]) == (job, stage) and data["step"] >= step,
        )

    def _listen(self) -> None:
        client = self._client
        with (
            contextlib.suppress(httpx2.TransportError),
            client.stream("GET", "/api/events?after=0", timeout=None) as answer,
        ):  # it ends with the server
            name = ""
            for line in answer.iter_lines():
                self._is_open.set()
                field, _, value = line.partition(": ")
                if field == "event":
                    name = value
                elif field == "data":
                    with self._heard:
                        self._events.append((name, json.loads(value)))
                        self._heard.notify_all()


def placements(view: Json) -> dict[str, str]:
    """Where each stage of a job ran, with its tile."""
    found = view["images"][0]["executions"].items()
    return {stage: how["placement"] + (f"/{how['tile']}" if how["tile"] else "") for stage, how in found}


def _answered(answer: httpx2.Response) -> Json:
    assert answer.is_success, answer.text
    found: Json = answer.json()
    return found
