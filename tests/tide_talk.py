"""An answer of a language model under way, listened to on a thread while a test does something to the card.

Owns what was heard of it: words, pauses with their reasons, and how it ended.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any  # Any: a chunk of an answer is JSON

import httpx2

WAIT_S = 240
Json = dict[str, Any]  # Any: see the import.


def chat_wish(*, tokens: int = 40, text: str = "Tell me about the lighthouse.", **wish: object) -> Json:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": tokens, "seed": 1, **wish}


class Talk:
    """An answer under way."""

    def __init__(self, client: httpx2.Client, wish: Json) -> None:
        self.words = ""
        self.pauses: list[str] = []
        self.resumed_count = 0
        self.ending = ""
        self._changed = threading.Condition()
        self._is_over = False
        self._thread = threading.Thread(
            target=self._listen, args=(client, wish), name="listener to an answer"
        )
        self._thread.start()

    def begun(self) -> None:
        """Wait for the first words."""
        self.until(lambda: self.words)

    def until(self, holds: Callable[[], object]) -> None:
        """Wait until something holds of it, or it is over."""
        with self._changed:
            assert self._changed.wait_for(lambda: holds() or self._is_over, WAIT_S), self.pauses
            assert holds(), (self.ending, self.pauses)

    def whole(self) -> str:
        """All of it."""
        self.close()
        assert self.ending == "length", self.ending
        return self.words

    def close(self) -> None:
        """Hear it to its end."""
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive(), self.pauses

    def _listen(self, client: httpx2.Client, wish: Json) -> None:
        try:
            with client.stream("POST", "/v1/chat/completions", json=wish) as answer:
                for line in answer.iter_lines():
                    with self._changed:
                        self._take(line)
                        self._changed.notify_all()
        except httpx2.TransportError as error:  # the server was killed
            self.ending = f"cut off: {error}"
        finally:
            with self._changed:
                self._is_over = True
                self._changed.notify_all()

    def _take(self, line: str) -> None:
        if line.startswith(": paused: "):
            self.pauses.append(line.removeprefix(": paused: "))
        elif line == ": resumed":
            self.resumed_count += 1
        elif line.startswith("data: {"):
            chunk = json.loads(line.removeprefix("data: "))
            if "error" in chunk:
                self.ending = chunk["error"]["message"]
                return
            for choice in chunk["choices"]:
                self.words += choice["delta"].get("content") or ""
                self.ending = choice["finish_reason"] or self.ending
