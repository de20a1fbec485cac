"""The shell around the core: mailbox -> core -> journal -> effects, one event at a time.

    post(event)  ->  arbiter.handle  ->  journal (on the disk first where a promise hangs on it)  ->  perform

Owns the mailbox and this order, and decides nothing. Effects are performed by the `performer`, each answered
by an event that comes back here. The core's state may be read between two events, never changed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from tidegate.core import effects as ef
from tidegate.core import events as ev
from tidegate.core.arbiter import Arbiter
from tidegate.core.state import State
from tidegate.runtime.journal.journal import Journal
from tidegate.runtime.journal.records import Record

# A promise hangs on these: they are on the disk before anything that follows from them is done.
_PROMISES = (ev.JobSubmitted, ev.JobCancelled, ev.StageFinished)


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """An event in the mailbox, with the rows to be committed with it."""

    event: ev.Event
    records: Sequence[Record] = ()
    done: asyncio.Event | None = None


class Shell:
    """The one place where events meet the core."""

    def __init__(
        self,
        arbiter: Arbiter,
        journal: Journal,
        *,
        perform: Callable[[ef.Effect], None],
        records_of: Callable[[ef.Effect], Sequence[Record]],
        on_handled: Callable[[State], None] = lambda _state: None,
    ) -> None:
        """`records_of` gives the rows that an effect leaves in the journal, committed with its event;
        `on_handled` looks at the core after each event.
        """
        self.arbiter = arbiter
        self._journal = journal
        self._perform = perform
        self._records_of = records_of
        self._on_handled = on_handled
        self._mailbox: asyncio.Queue[Letter] = asyncio.Queue()
        self._turn = asyncio.Lock()
        self._handled = asyncio.Event()
        self.handled_count = 0

    @contextlib.asynccontextmanager
    async def between_events(self) -> AsyncIterator[None]:
        """Hold the mailbox: no event is handled inside this block."""
        async with self._turn:
            yield

    def replace(self, arbiter: Arbiter) -> None:
        """Go on with another core; only between events. What is in the mailbox is for the new one."""
        assert self._turn.locked(), "a core is replaced between two events"
        self.arbiter = arbiter
        self._journal.rebase(Arbiter.restored(arbiter.snapshot()))

    def post(self, event: ev.Event, records: Sequence[Record] = ()) -> None:
        """Put a fact into the mailbox."""
        self._mailbox.put_nowait(Letter(event=event, records=records))

    async def tell(self, event: ev.Event, records: Sequence[Record] = ()) -> None:
        """Put a fact into the mailbox and wait until what follows from it at once was done."""
        letter = Letter(event=event, records=records, done=asyncio.Event())
        assert letter.done is not None, "it was made in the line above"
        self._mailbox.put_nowait(letter)
        await letter.done.wait()

    async def until(self, holds: Callable[[State], bool]) -> None:
        """Wait until this holds; it is asked now and after every event."""
        while not holds(self.arbiter.state):
            await self._handled.wait()

    async def run(self) -> None:
        """Handle events for ever."""
        while True:
            letter = await self._mailbox.get()
            async with self._turn:
                await self._handle(letter)
            if letter.done is not None:
                letter.done.set()
            self._handled.set()
            self._handled.clear()

    async def _handle(self, letter: Letter) -> None:
        event = letter.event
        effects = self.arbiter.handle(event)
        self.handled_count += 1
        records = list(letter.records)
        for effect in effects:
            records += self._records_of(effect)
        is_promise = isinstance(event, _PROMISES) or any(
            isinstance(effect, ef.FinishJob) for effect in effects
        )
        if is_promise:
            # Looking changes nothing: what it shows is there when the disk is done.
            effects = self._looked(effects)
            await self._journal.commit(event, records)
        else:
            self._journal.append(event, records)
        for effect in effects:
            self._perform(effect)
        self._on_handled(self.arbiter.state)

    def _looked(self, effects: Sequence[ef.Effect]) -> tuple[ef.Effect, ...]:
        """Take the samples that are asked for; what is left to do."""
        for effect in effects:
            if isinstance(effect, ef.Observe):
                self._perform(effect)
        return tuple(effect for effect in effects if not isinstance(effect, ef.Observe))
