"""A lease of card memory, as a command holds it: asked for, waited for, renewed and given back.

Owns the talk with `/internal/negotiate_vram` and `/internal/leases`, and what is told of it in words. Who
gets what is decided by the server; what is done with the memory is `run`'s business.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from typing import Any, Final  # Any: what a server answers is JSON of any shape

from tidegate.cli.caller import Caller
from tidegate.core.faults import CapacityError, Fault
from tidegate.core.quantity import size_text, time_text
from tidegate.runtime.cards.sizes import size_literal

# Renewed three times in this time. Whoever dies without a word holds nothing any more after it.
HOLD_MS: Final = 60_000
RENEW_S: Final = 20.0
# A server that does not answer a renewal by then is asked again later; signals are not heard meanwhile.
RENEWAL_MAX_S: Final = 5.0
# The most that is asked for at a time; a longer wait asks again.
ASK_MAX_MS: Final = 60_000
# Waiting is in pieces, so that a signal is heard soon.
PIECE_MS: Final = 500
_WAITING, _GRANTED = "waiting", "granted"

Json = dict[str, Any]  # Any: see the import


class Lease:
    """One guest of a server. `say` is told what a user should know."""

    def __init__(
        self, caller: Caller, amount_bytes: int, *, purpose: str, card: str, say: Callable[[str], None]
    ) -> None:
        self._caller = caller
        self._amount_bytes = amount_bytes
        self._wish: Json = {"bytes": amount_bytes, "purpose": purpose, "card": card, "hold_ms": HOLD_MS}
        # What this process starts is counted with it.
        self._wish["pid"] = os.getpid()
        self._say = say
        self._id = ""
        self._is_lost = False
        self._told_ms = -1

    def take(self, *, wait_max_ms: int, look: Callable[[], None]) -> None:
        """Ask, and wait until it is granted; `look` is called while it waits. Raises Fault."""
        ends = time.monotonic() + wait_max_ms / 1000
        while True:
            left_ms = max(0, round((ends - time.monotonic()) * 1000))
            answer = self._ask(wait_ms=min(left_ms, ASK_MAX_MS))
            if "error" in answer:
                raise self._denied(answer)
            while answer["state"] == _WAITING:
                self._tell_wait(int(answer["eta_ms"]), wait_max_ms)
                answer = self._caller.get(f"/internal/leases/{self._id}", wait_ms=PIECE_MS)
                look()
            if answer["state"] == _GRANTED:
                return
            if time.monotonic() >= ends:
                raise self._denied(answer)

    def renew(self) -> None:
        """Keep it; ask for it anew where the server knows it no more. Never raises a Fault."""
        try:
            answer = self._renewed()
        except Fault as fault:  # the server ended, or has forgotten it with a restart
            self._lose(fault.message)
            return
        if answer.get("state") == _GRANTED:
            if self._is_lost:
                self._say(f"{size_text(self._amount_bytes)} are granted again.")
            self._is_lost = False
        elif answer.get("state") != _WAITING:
            self._lose("The lease has ended.")

    def release(self) -> None:
        """Give it back; a server that is gone has it back already."""
        if self._id:
            with contextlib.suppress(Fault):
                self._caller.delete(f"/internal/leases/{self._id}")
            self._id = ""

    def _ask(self, *, wait_ms: int) -> Json:
        wish = {**self._wish, "wait_ms": wait_ms}
        answer: Json = self._caller.post("/internal/negotiate_vram", wish, accepted=(409,))
        self._id = str(answer.get("lease", ""))
        return answer

    def _renewed(self) -> Json:
        if not self._id:
            return self._ask(wait_ms=ASK_MAX_MS)
        path, body = f"/internal/leases/{self._id}", {"hold_ms": HOLD_MS}
        answer: Json = self._caller.put(path, body, answer_max_s=RENEWAL_MAX_S)
        return answer

    def _lose(self, why: str) -> None:
        if not self._is_lost:
            self._say(f"{why} The command goes on; its memory is asked for again.")
        self._id, self._is_lost = "", True

    def _tell_wait(self, eta_ms: int, wait_max_ms: int) -> None:
        if eta_ms == self._told_ms:
            return
        self._told_ms = eta_ms
        size = size_text(self._amount_bytes)
        # Whoever has to be waited for without end is told as the whole wait.
        if eta_ms >= min(wait_max_ms, ASK_MAX_MS):
            self._say(f"{size} are in use; waiting for at most {time_text(wait_max_ms)} (--wait).")
        else:
            self._say(f"{size} are being made free; expected in {time_text(eta_ms)}.")

    def _denied(self, answer: Json) -> CapacityError:
        largest_bytes = int(answer["largest_now_bytes"])
        # Whole MiB read better than bytes, and are never more than there is.
        whole_bytes = largest_bytes >> 20 << 20
        hints = [f"At most {size_text(largest_bytes)} can be had now"] if largest_bytes else []
        hints = [f"{hint}: --vram {size_literal(whole_bytes)}" if whole_bytes else hint for hint in hints]
        # The server's advice is for programs; the largest amount stands here already.
        advice = [text for text in answer["alternatives"] if not text.startswith("ask for at most")]
        hints += [f"{text[:1].upper()}{text[1:]}".replace("with wait_ms", "with --wait") for text in advice]
        return CapacityError(
            f"{size_text(self._amount_bytes)} of card memory cannot be had.",
            remedy=" ".join(f"{hint}." for hint in hints or ["Nothing can be had now"]),
            code="denied",
        )
