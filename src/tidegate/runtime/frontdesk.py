"""The front desk: what clients ask of a running server, checked and passed on.

Owns the implementation of the `gate`. It reads the core's state between two events and never changes it;
whatever shall happen becomes an event. How things are shown is the neighbour `exhibits`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from tidegate.core import events as ev
from tidegate.core.faults import CapacityError
from tidegate.core.foresight import is_unwanted
from tidegate.core.image.job import JobPhase
from tidegate.core.stage import Component, Stage
from tidegate.core.state import State
from tidegate.runtime import asks, exhibits, whatif
from tidegate.runtime.askdesk import AskDesk
from tidegate.runtime.clock import Clock
from tidegate.runtime.darkroom import Darkroom
from tidegate.runtime.gallery import Gallery
from tidegate.runtime.guestdesk import GuestDesk
from tidegate.runtime.jobbook import Entry, Frame, JobBook, view_of
from tidegate.runtime.journal import records as rec
from tidegate.runtime.journal.records import Checkpoint, Ticket
from tidegate.runtime.newsroom import Newsroom
from tidegate.runtime.order import check_order, check_request
from tidegate.runtime.prefetch import Prefetch
from tidegate.runtime.registry import Registry
from tidegate.runtime.restart import submission
from tidegate.runtime.shell import Shell
from tidegate.runtime.store import Store
from tidegate.runtime.threads import Threads, on
from tidegate.runtime.views import (
    EventItem,
    FeedItem,
    HealthView,
    ImageView,
    JobHandle,
    JobOrder,
    JobView,
    LeaseRequest,
    LeaseView,
    MetricsView,
    ModelView,
    PlanView,
    ReloadView,
    ResidencyView,
    VramView,
)
from tidegate.runtime.warmup import WarmUp
from tidegate.wire.asks import Item

UNLOAD_WAIT_MAX_S: Final = 10


@dataclass(slots=True, kw_only=True)
class Desk:
    """What the front desk works with."""

    clock: Clock
    threads: Threads
    shell: Shell
    book: JobBook
    news: Newsroom
    store: Store
    gallery: Gallery
    darkroom: Darkroom
    prefetch: Prefetch
    showroom: exhibits.Showroom
    oracle: whatif.Oracle
    warming: WarmUp
    asks: AskDesk
    guests: GuestDesk
    models: Registry


class FrontDesk:
    """The gate of one server."""

    def __init__(self, desk: Desk, *, reload: Callable[[], Awaitable[ReloadView]]) -> None:
        self._desk = desk
        self._reload = reload

    # --- jobs

    async def submit(self, order: JobOrder) -> JobHandle:
        """Accept an order; see `gate`."""
        desk = self._desk
        known = desk.book.by_key(order.idempotency_key)
        if known is not None:
            return JobHandle(id=known.id, created=False)
        model = desk.models.find(order.model)
        check_order(order)
        check_request(order.request, model.opened)
        init_sha256 = ""
        if order.init is not None:
            init_sha256 = await on(desk.threads.files, desk.store.put, order.init.pixels)
        ticket = Ticket(
            request=order.request,
            model=model.name,
            count=order.count,
            priority=order.priority,
            init_sha256=init_sha256,
        )
        # Asked again: another request with the same key may have come while the picture was written.
        known = desk.book.by_key(order.idempotency_key)
        if known is not None:
            return JobHandle(id=known.id, created=False)
        entry = desk.book.open(ticket, key=order.idempotency_key, at_ms=desk.clock.now_ms())
        await self._enter(entry)
        return JobHandle(id=entry.id, created=True)

    async def _enter(self, entry: Entry) -> None:
        desk = self._desk
        model = desk.models.find(entry.ticket.model)
        records = rec.job_accepted(
            entry.id,
            entry.ticket,
            key=entry.key,
            at_ms=entry.submitted_at_ms,
            images=tuple(frame.name for frame in entry.frames),
        )
        for forgotten in desk.book.enter(entry):
            records += rec.job_forgotten(forgotten)
        remembered = desk.darkroom.remembered(
            model, entry.ticket.request, has_card=bool(desk.shell.arbiter.state.house.cards)
        )
        told: list[Awaitable[None]] = []
        for frame in entry.frames:
            if remembered is not None:
                checkpoint = Checkpoint(
                    stage=Stage.ENCODE,
                    sha256=remembered.sha256,
                    engine_build=desk.darkroom.engine_build,
                    execution=remembered.execution,
                )
                frame.checkpoints[Stage.ENCODE] = checkpoint
                frame.executions[Stage.ENCODE] = remembered.execution
                records.append(rec.stage_kept(frame.name, checkpoint))
            event = submission(entry, frame, model, at_ms=desk.clock.now_ms())
            told.append(desk.shell.tell(event, records))
            records = []
        desk.news.submitted(entry)
        await asyncio.gather(*told)
        await self._refuse_if_busy(entry)

    async def _refuse_if_busy(self, entry: Entry) -> None:
        busy = next((frame for frame in entry.frames if frame.code == "busy"), None)
        if busy is None:
            return
        await self.cancel(entry.id)
        raise CapacityError(
            busy.message, remedy="Try again later.", code="busy", retry_after_ms=busy.retry_after_ms
        )

    def job(self, job: str) -> JobView:
        """A job as it stands."""
        return view_of(self._desk.book.entry(job), self._phase)

    def jobs(self, *, count_max: int = 100) -> tuple[JobView, ...]:
        """The jobs known, the youngest first."""
        return tuple(view_of(entry, self._phase) for entry in self._desk.book.entries()[:count_max])

    async def cancel(self, job: str) -> JobView:
        """Nobody wants it any more."""
        entry = self._desk.book.entry(job)
        for frame in entry.frames:
            if frame.outcome is None:
                await self._desk.shell.tell(ev.JobCancelled(at_ms=self._desk.clock.now_ms(), job=frame.name))
        return self.job(job)

    async def ended(self, job: str) -> JobView:
        """Wait until the job has ended."""
        entry = self._desk.book.entry(job)
        while not entry.ended_at_ms:
            await self._desk.news.any_end()
        return self.job(job)

    def result(self, job: str) -> tuple[str, ...]:
        """Ids of the images of a job that are done."""
        frames = self._desk.book.entry(job).frames
        return tuple(frame.name for frame in frames if frame.outcome is JobPhase.DONE)

    def story(self, job: str) -> tuple[str, ...]:
        """What happened to a job, line by line."""
        lines: list[str] = []
        for frame in self._desk.book.entry(job).frames:
            lines += self._desk.shell.arbiter.story(frame.name)
        return tuple(lines)

    def feed(self, job: str) -> AsyncIterator[FeedItem]:
        """Items of a job from now on."""
        entry = self._desk.book.entry(job)
        return self._desk.news.feeds.watch(job, is_ended=bool(entry.ended_at_ms))

    async def plan(self, order: JobOrder) -> PlanView:
        """What would be done with an order now."""
        model = self._desk.models.find(order.model)
        check_order(order)
        check_request(order.request, model.opened)
        return await self._desk.oracle.plan(order, model)

    def _phase(self, frame: Frame) -> JobPhase:
        if frame.outcome is not None:
            return frame.outcome
        job = self._desk.shell.arbiter.state.jobs.get(frame.name)
        return job.phase if job is not None else JobPhase.QUEUED

    # --- asks

    async def ask(self, order: asks.AskOrder) -> asks.AskHandle:
        """Take an ask in; see `gate`."""
        return await self._desk.asks.ask(order)

    def hear(self, ask: str) -> AsyncIterator[Item]:
        """What comes of an ask; see `gate`."""
        return self._desk.asks.hear(ask)

    async def cancel_ask(self, ask: str) -> None:
        """Nobody wants it any more."""
        await self._desk.asks.cancel(ask)

    async def tokenize(self, wish: asks.TokenWish) -> asks.TokenView:
        """Take a text apart."""
        return await self._desk.asks.tokenize(wish)

    async def detokenize(self, wish: asks.DetokenWish) -> str:
        """Put tokens together."""
        return await self._desk.asks.detokenize(wish)

    async def set_level(self, model: str, wish: asks.LevelWish) -> ModelView:
        """Hold a language model at a level, or give it back to the planner."""
        entry = await self._desk.asks.set_level(model, wish)
        return self._desk.showroom.language_model(entry)

    async def intent(self, kind: asks.IntentKind, model: str = "") -> None:
        """Somebody will probably ask a language model something soon."""
        await self._desk.asks.intent(kind, model)

    # --- images

    async def images(self, *, count_max: int = 100, before: str = "") -> tuple[ImageView, ...]:
        """Finished images, the youngest first."""
        return self._desk.gallery.page(count_max=count_max, before=before)

    async def image(self, image: str) -> ImageView:
        """The metadata of one image."""
        return self._desk.gallery.view(image)

    async def image_png(self, image: str) -> bytes:
        """The PNG file of one image."""
        return await on(self._desk.threads.files, self._desk.gallery.png, image)

    async def delete_image(self, image: str) -> None:
        """Remove an image."""
        await on(self._desk.threads.files, self._desk.gallery.delete, image)

    # --- memory and models

    def vram(self) -> VramView:
        """Who holds what."""
        return self._desk.showroom.vram()

    def models(self) -> tuple[ModelView, ...]:
        """The registry."""
        return self._desk.showroom.models()

    async def load(self, model: str) -> ModelView:
        """Bring a model's files into the page cache, and know what its next image will need."""
        if (llm := self._desk.asks.named(model)) is not None:
            await self._desk.asks.load(llm)
            return self._desk.showroom.language_model(llm)
        entry = self._desk.models.find(model)
        read = asyncio.wrap_future(self._desk.prefetch.whole(entry.files.values()))
        await self._desk.warming.foresee(entry)
        await read
        return self._desk.showroom.model(entry.name)

    async def unload(self, model: str) -> ModelView:
        """Give back what a model holds, as soon as nobody computes with it."""
        if (llm := self._desk.asks.named(model)) is not None:
            await self._desk.asks.unload(llm)
            return self._desk.showroom.language_model(llm)
        desk, entry = self._desk, self._desk.models.find(model)
        await desk.shell.tell(ev.ModelUnwanted(at_ms=desk.clock.now_ms(), model=entry.name))
        parts = {entry.part(component) for component in Component}

        def is_given_back(state: State) -> bool:
            """Seen to be free, not only asked for; what another model shares stays."""
            held = {lease.part for lease in state.ledger.leases() if lease.is_charged}
            return not any(is_unwanted(state, part) for part in parts & held)

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(UNLOAD_WAIT_MAX_S):
                await desk.shell.until(is_given_back)
        state = desk.shell.arbiter.state
        if not is_given_back(state) or entry.name not in state.unwanted:
            raise CapacityError(
                f"{entry.name} is in use.",
                remedy="Cancel its jobs, or wait until they are done.",
                code="in_use",
                retry_after_ms=5_000,
            )
        return desk.showroom.model(entry.name)

    def residency(self) -> ResidencyView:
        """What is warm here."""
        return self._desk.showroom.residency()

    # --- guests

    async def negotiate(self, wish: LeaseRequest) -> LeaseView:
        """Ask for card memory."""
        return await self._desk.guests.negotiate(wish)

    async def lease(self, lease: str, *, wait_ms: int = 0) -> LeaseView:
        """A lease as it stands, or as soon as it stands otherwise."""
        return await self._desk.guests.lease(lease, wait_ms=wait_ms)

    async def renew(self, lease: str, *, hold_ms: int) -> LeaseView:
        """Keep a lease for longer."""
        return await self._desk.guests.renew(lease, hold_ms=hold_ms)

    async def release(self, lease: str) -> None:
        """Give a lease back."""
        await self._desk.guests.release(lease)

    # --- the server

    def events(self, *, after: int = -1) -> AsyncIterator[EventItem]:
        """Events from now on, or replayed from the one after this id."""
        return self._desk.news.events.listen(after)

    def health(self) -> HealthView:
        """The server's own state."""
        return self._desk.showroom.health()

    def metrics(self) -> MetricsView:
        """Counters and gauges."""
        return self._desk.showroom.metrics()

    async def reload(self) -> ReloadView:
        """Read the registry again."""
        return await self._reload()
