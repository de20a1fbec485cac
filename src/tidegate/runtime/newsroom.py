"""The newsroom: what clients are told while it happens.

Owns turning effects and progress into feed items and events, and what guests were answered last. It is the
data path: nothing told here passes the core. Who listens is the business of `feed`.
"""

from __future__ import annotations

import asyncio
from typing import Final

from tidegate.core import effects as ef
from tidegate.core.image.job import JobPhase
from tidegate.core.notice import Notice
from tidegate.core.state import State
from tidegate.runtime.chats import Chat
from tidegate.runtime.clock import Clock
from tidegate.runtime.feed import EventLog, JobFeeds
from tidegate.runtime.jobbook import NOTICES_MAX, Entry, Frame, JobBook
from tidegate.runtime.views import FeedItem, LeaseView
from tidegate.wire import messages

GUESTS_MAX: Final = 256
HOUSE_NOTICES_MAX: Final = 100


class Newsroom:
    """The news of one server."""

    def __init__(self, book: JobBook, clock: Clock) -> None:
        self._book = book
        self.feeds = JobFeeds()
        # Ids begin at the time, so that they rise over restarts without being written down.
        self.events = EventLog(clock.now_ms() * 1_000)
        self.leases: dict[str, LeaseView] = {}
        self.notices: list[str] = []
        self._levels: dict[str, tuple[str, int]] = {}
        self._lease_changed = asyncio.Event()
        self._ended = asyncio.Event()

    def close(self) -> None:
        """Nobody waits for news any more."""
        self.feeds.close()
        self.events.close()
        self._lease_changed.set()
        self._ended.set()

    # --- jobs

    def stage_began(self, task: ef.RunStage) -> None:
        """A stage begins."""
        frame = self._book.frame(task.job)
        if frame is None:
            return
        frame.step, frame.steps_count = 0, 0
        self.feeds.publish(
            FeedItem(
                kind="stage", job=frame.job, index=frame.index, stage=task.stage, execution=task.execution
            )
        )
        self._progress(frame, task, 0, 0)

    def progressed(self, task: ef.RunStage, progress: messages.Progress) -> None:
        """A step or a tile is done."""
        frame = self._book.frame(task.job)
        if frame is None:
            return
        frame.step, frame.steps_count = progress.step, progress.steps
        self.feeds.publish(
            FeedItem(
                kind="progress",
                job=frame.job,
                index=frame.index,
                stage=task.stage,
                execution=task.execution,
                step=progress.step,
                steps_count=progress.steps,
                preview_width=progress.preview_width,
                preview_height=progress.preview_height,
                preview=progress.preview,
            )
        )
        self._progress(frame, task, progress.step, progress.steps)

    def _progress(self, frame: Frame, task: ef.RunStage, step: int, steps_count: int) -> None:
        self.events.publish(
            "progress",
            {
                "job": frame.job,
                "index": frame.index,
                "stage": task.stage.value,
                "placement": task.execution.placement.value,
                "step": step,
                "steps": steps_count,
            },
        )

    def submitted(self, entry: Entry) -> None:
        """A job was accepted."""
        self.events.publish("job", {"job": entry.id, "phase": JobPhase.QUEUED.value})

    def image_ended(self, entry: Entry, frame: Frame) -> None:
        """An image is done, failed or cancelled; with the last one its job ends."""
        assert frame.outcome is not None, "it has ended"
        image = frame.name if frame.outcome is JobPhase.DONE else ""
        self.feeds.publish(
            FeedItem(kind="image", job=entry.id, index=frame.index, image=image, text=frame.outcome.value)
        )
        data = {"job": entry.id, "index": frame.index, "phase": frame.outcome.value, "image": image}
        self.events.publish("job", data)
        if entry.ended_at_ms:
            self.feeds.publish(FeedItem(kind="end", job=entry.id, text=frame.outcome.value))
            self.feeds.end(entry.id)
            self._ended.set()
            self._ended = asyncio.Event()

    async def any_end(self) -> None:
        """Wait until some job has ended."""
        await self._ended.wait()

    # --- notices

    def tell(self, notice: Notice) -> None:
        """Show a notice to whoever it concerns: the watchers of its job, or everybody."""
        frame = self._book.frame(notice.subject)
        if frame is not None:
            entry = self._book.entry(frame.job)
            if notice.text not in entry.notices:  # Several images of a job are often treated alike.
                entry.notices.append(notice.text)
                del entry.notices[:-NOTICES_MAX]
            self.feeds.publish(FeedItem(kind="notice", job=entry.id, index=frame.index, text=notice.text))
        self.events.publish(
            "notice",
            {
                "kind": notice.kind.value,
                "subject": notice.subject,
                "job": frame.job if frame else "",
                "text": notice.text,
                "bytes": notice.amount_bytes,
                "ms": notice.duration_ms,
            },
        )

    def announce(self, text: str) -> None:
        """Tell everybody something about the server itself."""
        self.notices.append(text)
        del self.notices[:-HOUSE_NOTICES_MAX]
        self.events.publish("notice", {"kind": "server", "subject": "server", "job": "", "text": text})

    def levels(self, state: State) -> None:
        """Tell of every language model that stands at another level, or is on another way, than before."""
        for model in state.models.values():
            now = (model.tide.value, model.layers_count)
            if self._levels.get(model.name) != now:
                self._levels[model.name] = now
                data = {"model": model.name, "level": model.tide.value, "layers": model.layers_count}
                self.events.publish("level", data)

    def chat_changed(self, chat: Chat) -> None:
        """A chat was asked, or has ended; what is said in it is nobody else's business."""
        self.events.publish("chat", {"request": chat.id, "model": chat.model, "phase": chat.phase.value})

    def warmed(self, count: int) -> None:
        """The needs of common sizes are known; so many of them were asked for now."""
        self.events.publish("warmed", {"count": count})

    # --- guests

    def answer_guest(self, effect: ef.AnswerGuest) -> None:
        """Note how a lease stands."""
        self.leases.pop(effect.lease, None)
        self.leases[effect.lease] = LeaseView(
            id=effect.lease,
            state=effect.state,
            amount_bytes=effect.amount_bytes,
            eta_ms=effect.eta_ms,
            expires_ms=effect.expires_ms,
            largest_now_bytes=effect.largest_now_bytes,
            alternatives=effect.alternatives,
        )
        if len(self.leases) > GUESTS_MAX:
            del self.leases[next(iter(self.leases))]
        self._lease_changed.set()
        self._lease_changed = asyncio.Event()

    def end_guest(self, lease: str) -> None:
        """A lease ended with the core that granted it."""
        known = self.leases[lease]
        self.leases[lease] = LeaseView(id=lease, state=ef.GuestState.ENDED, amount_bytes=known.amount_bytes)
        self._lease_changed.set()
        self._lease_changed = asyncio.Event()

    def ask_guest(self, effect: ef.AskGuest) -> None:
        """Ask a guest to give its lease back; it hears it when it asks how its lease stands."""
        known = self.leases.get(effect.lease)
        if known is not None:
            self.leases[effect.lease] = LeaseView(
                id=known.id,
                state=known.state,
                amount_bytes=known.amount_bytes,
                expires_ms=known.expires_ms,
                asked_back=effect.reason,
            )
        self._lease_changed.set()
        self._lease_changed = asyncio.Event()

    async def any_lease_change(self) -> None:
        """Wait until some guest was answered."""
        await self._lease_changed.wait()
