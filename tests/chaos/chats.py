"""Chats as a workload of the storm: what is asked, what is heard, and whether it is the right answer.

    client: ask, hear the stream to its end
            the server was killed -> ask again when there is another one, as clients do

Owns the questions, the clients, and the judgement. A chat is finished when its answer came to an end that is
no failure; it is the right one when it is, to the letter, what the model says in peace (`quiet`), and when no
word that was heard before a server was killed turned out otherwise.
"""

from __future__ import annotations

import json
import random
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any  # Any: JSON as the server sends it

import httpx2
from tests.chaos.place import Broken, Place
from tests.chaos.quiet import Quiet, digest_of
from tests.chaos.tally import Outcome

TALKER = "talker"
SAYINGS = (
    "Hello there",
    "Tell me of the sea, and of those who sail it.",
    "Count to a hundred, slowly, in words.",
    "What is a tide? " * 20,
    "Write a letter to a lighthouse. " * 60,
)
QUESTIONS_COUNT = 24
# Seconds that an answer may be silent when everything is struck that can be.
SILENCE_MAX_S = 300.0


def question(number: int) -> dict[str, Any]:  # Any: see the import
    """One of the requests that the storm draws from; few, so that each answer is compared many times."""
    chance = random.Random(f"question {number}")
    messages = [{"role": "user", "content": chance.choice(SAYINGS)}]
    if chance.random() < 0.3:
        messages = [*messages, {"role": "assistant", "content": "Yes."}]
        messages = [*messages, {"role": "user", "content": chance.choice(SAYINGS)}]
    return {
        "messages": messages,
        "seed": chance.randrange(4),
        "temperature": chance.choice((0.0, 0.8)),
        "top_p": 0.95,
        "max_tokens": chance.choice((8, 40, 120, 300)),
    }


@dataclass(slots=True, kw_only=True)
class Client:
    """Somebody who asks. `heard` is what came before the stream ended or was cut."""

    key: str
    body: dict[str, Any]  # Any: see the import
    thread: threading.Thread | None = None
    heard: str = ""
    finish: str = ""
    is_cut: bool = False
    troubles: list[str] = field(default_factory=list)

    def ask(self, url: str) -> None:
        """Ask a server, on a thread of its own."""
        self.thread = threading.Thread(target=self._listen, args=(url,), name=f"client {self.key}")
        self.thread.start()

    def wait(self) -> None:
        """Until the stream has ended, well or not."""
        if self.thread is not None:
            self.thread.join()
            self.thread = None

    def _listen(self, url: str) -> None:
        before, self.heard = self.heard, ""
        self.is_cut = False
        try:
            self._stream(url)
        except httpx2.TransportError:  # nobody is there any more
            self.is_cut = True
        except Broken as broken:
            self.troubles.append(str(broken))
        shorter = min(len(before), len(self.heard))
        if before[:shorter] != self.heard[:shorter]:
            self.troubles.append(f"{self.key}: words that were heard turned out otherwise")
        if self.is_cut and len(before) > len(self.heard):
            self.heard = before

    def _stream(self, url: str) -> None:
        body = {**self.body, "model": TALKER, "stream": True}
        with (
            httpx2.Client(base_url=url, timeout=SILENCE_MAX_S) as client,
            client.stream("POST", "/v1/chat/completions", json=body) as answer,
        ):
            if answer.status_code != 200:
                answer.read()
                raise Broken(f"{self.key}: {answer.status_code} {answer.text}")
            for line in answer.iter_lines():
                if line == "data: [DONE]":
                    return
                if line.startswith("data: "):
                    self._take(json.loads(line[len("data: ") :]))
        # Without the last line it was cut, however politely the connection was closed.
        self.is_cut = True

    def _take(self, chunk: dict[str, Any]) -> None:  # Any: see the import
        if "error" in chunk:
            raise Broken(f"{self.key}: {chunk['error']}")
        for choice in chunk["choices"]:
            self.heard += choice["delta"].get("content") or ""
            self.finish = choice.get("finish_reason") or self.finish


class Chats:
    """The chats of one run."""

    name = "chats"

    def __init__(self, model: Path, *, known: dict[str, str], questions_count: int = QUESTIONS_COUNT) -> None:
        """`known` holds the hashes of undisturbed answers and is added to."""
        self._quiet = Quiet(model, known=known)
        self._questions_count = questions_count
        self._clients: list[Client] = []

    def begin(self, place: Place, chance: random.Random, *, prefix: str) -> None:
        """Ask up to three questions at once."""
        for number in range(chance.choice((0, 1, 1, 2, 3))):
            body = question(chance.randrange(self._questions_count))
            self._clients.append(Client(key=f"{prefix}-{number}", body=body))
        for client in self._clients:
            client.ask(place.url)

    def again(self, place: Place) -> None:
        """After a restart whoever was cut off asks again."""
        for client in self._clients:
            if client.finish:
                continue
            client.wait()
            if client.is_cut:
                client.ask(place.url)

    def finish(self, place: Place) -> Outcome:
        """Wait for all answers, and judge."""
        del place
        outcome = Outcome(started=len(self._clients))
        for client in self._clients:
            client.wait()
            outcome.troubles += client.troubles
            if client.is_cut or not client.finish or client.troubles:
                outcome.troubles.append(f"{client.key}: no whole answer, {len(client.heard)} characters")
                continue
            outcome.finished += 1
            outcome.compared += 1
            if digest_of(client.heard) == self._quiet.text(client.body):
                outcome.identical += 1
            else:
                outcome.troubles.append(f"{client.key}: another answer than in peace: {client.body}")
        self._clients.clear()
        return outcome

    def close(self) -> None:
        """Let go of everything."""
        for client in self._clients:
            client.wait()
        self._quiet.close()
