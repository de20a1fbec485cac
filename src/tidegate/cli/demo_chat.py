"""The demo's chat: an answer that is listened to while something else happens to the card.

Owns the thread that listens and what it heard. What is done to the card meanwhile is told by `demo`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any, Final  # Any: a chunk of an answer is JSON

from tidegate.cli.caller import Caller
from tidegate.cli.chat import PAUSED
from tidegate.core.faults import Fault, WorkerError

TOKENS: Final = 1_200
# The weights are random, so it never comes to an end by itself; the seed makes the answer the same each time.
WISH: Final = {
    "messages": [{"role": "user", "content": "Tell me about the lighthouse."}],
    "max_tokens": TOKENS,
    "seed": 7,
    "stream": True,
}
# The last characters that are shown of what was heard.
SHOWN: Final = 32


class Answer:
    """An answer under way. `tell` is called from the listening thread, when it pauses and when it goes on."""

    def __init__(self, caller: Caller, tell: Callable[[str], None]) -> None:
        self.words: list[str] = []
        self.pauses_count = 0  # In mid-sentence: waiting for the first word is none.
        self.fault: Fault | None = None
        self._begun = threading.Event()
        self._tell = tell
        self._thread = threading.Thread(target=self._listen, args=(caller,), name="demo chat")
        self._thread.start()

    def wait_for_sentence(self) -> None:
        """Wait until the answer is in mid-sentence. Raises what went wrong instead."""
        self._begun.wait()
        if self.fault is not None:
            raise self.fault

    def whole(self) -> str:
        """Wait for the end; the text. Raises what went wrong."""
        self._thread.join()
        if self.fault is not None:
            raise self.fault
        return "".join(self.words)

    @property
    def end(self) -> str:
        """The last characters so far, as they can be shown in a line."""
        return ascii("".join(self.words)[-SHOWN:])[1:-1]

    def _listen(self, caller: Caller) -> None:
        try:
            for line in caller.lines("/v1/chat/completions", WISH):
                if line.startswith(f": {PAUSED}"):
                    self.pauses_count += bool(self.words)
                    self._tell(f"the answer pauses: {line[len(PAUSED) + 2 :]}")
                elif line == ": resumed" and self.words:
                    self._tell("the answer goes on")
                elif line.startswith("data: {"):
                    self._hear(json.loads(line[len("data: ") :]))
        except Fault as fault:  # told by whoever waits for the answer
            self.fault = fault
        finally:
            self._begun.set()

    def _hear(self, chunk: dict[str, Any]) -> None:
        if "error" in chunk:
            raise WorkerError(f"The answer broke off: {chunk['error']['message']}")
        for choice in chunk["choices"]:
            if text := choice["delta"].get("content"):
                self.words.append(text)
        if sum(map(len, self.words)) > SHOWN:
            self._begun.set()
