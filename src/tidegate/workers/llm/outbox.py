"""The outbox: what the child tells the front, in as few frames as possible and in order.

Owns the tokens that wait for their frame. A frame is written for a stream's first token, for its end, before
anything else is said of it, and otherwise when `FLUSH_S` have passed: below what a reader notices, and at the
speed of a small model several tokens share one frame.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import Final

from tidegate.wire import channel, llm_link
from tidegate.wire.llm_link import Ending, Likely, Run
from tidegate.wire.messages import Message

# Pictures that move do not move more often. Whoever is woken for a frame finds its code pushed out of the
# caches by the weights, and takes 200 to 300 µs however little there is to do.
FLUSH_S: Final = 1 / 30


class Outbox:
    """One link's outgoing side; without a link everything is dropped, as nobody waits for it."""

    def __init__(self) -> None:
        self.link: channel.Channel[llm_link.ToEngine] | None = None
        self._ids: dict[int, list[int]] = {}
        self._likely: dict[int, list[Likely]] = {}
        self._endings: dict[int, Ending] = {}
        self._is_due = False
        self._flushed_s = 0.0

    def token(self, stream: int, token: int, *, likely: Likely | None, is_first: bool) -> None:
        """A stream chose a token."""
        self._ids.setdefault(stream, []).append(token)
        if likely is not None:
            self._likely.setdefault(stream, []).append(likely)
        self._is_due = self._is_due or is_first

    def end(self, stream: int, ending: Ending) -> None:
        """A stream is over."""
        self._ids.setdefault(stream, [])
        self._endings[stream] = ending
        self._is_due = True

    def forget(self, stream: int) -> None:
        """Nobody wants to hear of this stream any more."""
        self._ids.pop(stream, None)
        self._likely.pop(stream, None)
        self._endings.pop(stream, None)

    def flush_if_due(self) -> None:
        """Write the frame when it is time."""
        if self._ids and (self._is_due or time.monotonic() - self._flushed_s >= FLUSH_S):
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        if not self._ids:
            return
        runs = tuple(
            Run(stream, tuple(ids), self._endings.get(stream), tuple(self._likely.get(stream, ())))
            for stream, ids in self._ids.items()
        )
        self._ids, self._likely, self._endings, self._is_due = {}, {}, {}, False
        self._flushed_s = time.monotonic()
        self._send(llm_link.Tokens(runs=runs), ())

    def say(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        """Say something else, after the tokens that came before it."""
        self.flush()
        self._send(message, descriptors)

    def _send(self, message: Message, descriptors: Sequence[int]) -> None:
        if self.link is not None:
            # The front's end is noticed where we read; until then words to it go nowhere.
            with contextlib.suppress(channel.Closed):
                self.link.send(message, descriptors)
