"""The server: all parts put together, started in order and ended in order.

    lock -> journal, gallery -> predictor process, registry -> core (resumed) -> telemetry -> mailbox

Owns the assembly and the one task group under which everything runs. What clients ask is answered by
`frontdesk`; `serving` is the way in.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final

from tidegate.core import events as ev
from tidegate.core.arbiter import Arbiter
from tidegate.core.effects import GuestState
from tidegate.core.worker import PREDICTOR, WorkerKind
from tidegate.runtime import registry, restart, whatif
from tidegate.runtime.askdesk import AskDesk
from tidegate.runtime.chats import Chats
from tidegate.runtime.clock import Clock
from tidegate.runtime.darkroom import Darkroom, kept_by
from tidegate.runtime.exhibits import Showroom
from tidegate.runtime.frontdesk import Desk, FrontDesk
from tidegate.runtime.groundwork import Ground, laid
from tidegate.runtime.guestdesk import GuestDesk
from tidegate.runtime.jobbook import JobBook
from tidegate.runtime.journal.records import Record
from tidegate.runtime.kin import kin
from tidegate.runtime.llm_registry import LlmRegistry
from tidegate.runtime.newsroom import Newsroom
from tidegate.runtime.parlour import FOLDER, Furniture, Parlour
from tidegate.runtime.performer import Performer
from tidegate.runtime.prefetch import Prefetch
from tidegate.runtime.reload import Reload
from tidegate.runtime.settings import Settings
from tidegate.runtime.shell import Shell
from tidegate.runtime.supervisor import Process, Supervisor
from tidegate.runtime.survey import Site, surveyed
from tidegate.runtime.telemetry import Telemetry
from tidegate.runtime.threads import Threads, on
from tidegate.runtime.tidekeeper import Berth
from tidegate.runtime.warmup import WarmUp, sizes_of

_RELIEF: Final = {
    "journal": "The journal can be written again.",
    "storage": "Finished work and images can be saved again.",
}


class Server:
    """One running server. Made by `serving`."""

    def __init__(self, settings: Settings, *, reread: Callable[[], Settings]) -> None:
        self._settings = settings
        self._reread = reread
        self._clock = Clock()
        self._threads = Threads()
        self._trouble: dict[str, str] = {}
        self._loop = asyncio.get_running_loop()
        self._closing = contextlib.ExitStack()
        self._book = JobBook()
        self._news = Newsroom(self._book, self._clock)
        self._guests: dict[str, int] = {}
        self._supervisor: Supervisor | None = None
        self._shell: Shell | None = None
        self._parlour: Parlour | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[FrontDesk]:
        """Start everything, hand out the gate, and end everything again."""
        try:
            ground = await on(self._threads.files, laid, self._settings, on_problem=self._journal_trouble)
            self._closing.callback(ground.lock.release)
            # Closed after telemetry, which is put on this stack later, and before the lock is let go.
            self._closing.callback(ground.journal.close)
            async with asyncio.TaskGroup() as group:
                try:
                    yield await self._assembled(ground, group)
                finally:
                    await self._stop()
        finally:
            self._closing.close()
            self._threads.close()

    # --- assembly

    async def _assembled(self, ground: Ground, group: asyncio.TaskGroup) -> FrontDesk:
        virtual = ground.virtual
        supervisor = Supervisor(self._threads, ledger_path=str(virtual.path) if virtual else "")
        self._supervisor = supervisor
        supervisor.begin(group)
        site = await surveyed(
            ground,
            supervisor,
            settings=self._settings,
            threads=self._threads,
            clock=self._clock,
            post=self._post,
        )
        self._closing.callback(site.place.close)
        resumption = await self._resumed(ground, site)
        darkroom = self._darkroom(ground, site)
        tapes = kept_by([frame for _, frame in self._book.unfinished()])
        await on(self._threads.files, ground.store.sweep, darkroom.objects(), tapes=tapes)
        prefetch = Prefetch(self._threads, site.models)
        if ground.llms.entries:
            prefetch.whole(ground.llms.find("").files.values())
        parlour = self._parlour = self._furnished(ground, site)
        performer, shell = self._stage(ground, site, darkroom, prefetch, resumption.arbiter)
        telemetry = self._begin(ground, site, group, performer, resumption)
        desk = self._desk(ground, site, darkroom, prefetch, shell, telemetry)
        self._tasks.append(group.create_task(desk.warming.run(), name="warm-up"))

        def spread(models: registry.Registry, llms: LlmRegistry) -> None:
            darkroom.models = prefetch.models = desk.models = desk.showroom.models_known = models
            parlour.models = site.predictor.llms = llms

        reload = Reload(
            settings=self._settings,
            reread=self._reread,
            clock=self._clock,
            desk=desk,
            supervisor=supervisor,
            predictor=site.predictor,
            telemetry=telemetry,
            predicting=self._predicting,
            spread=spread,
        )
        return FrontDesk(desk, reload=reload.run)

    def _stage(
        self, ground: Ground, site: Site, darkroom: Darkroom, prefetch: Prefetch, arbiter: Arbiter
    ) -> tuple[Performer, Shell]:
        """The core with those who carry out what it says."""
        assert self._supervisor is not None and self._parlour is not None, "they were made before"
        performer = Performer(
            clock=self._clock,
            supervisor=self._supervisor,
            predictor=site.predictor,
            darkroom=darkroom,
            book=self._book,
            news=self._news,
            prefetch=prefetch,
            parlour=self._parlour,
            device=site.place.engine_name,
            post=self._post,
        )
        self._shell = Shell(
            arbiter,
            ground.journal,
            perform=performer.perform,
            records_of=performer.records_of,
            on_handled=self._news.levels,
        )
        return performer, self._shell

    async def _resumed(self, ground: Ground, site: Site) -> restart.Resumption:
        """Take up what the journal held."""
        self._book.restore(ground.found.jobs.values())
        return await on(
            self._threads.files,
            restart.resumed,
            ground.found,
            self._book,
            house=site.house,
            policy=self._settings.policy,
            models=site.models,
            engine_build=site.predictor.engine_build,
            is_sound=ground.store.is_sound,
            now_ms=self._clock.now_ms(),
        )

    def _furnished(self, ground: Ground, site: Site) -> Parlour:
        device = site.place.engine_name if site.place.card else ""
        return Parlour(
            Furniture(
                berth=Berth(device=device, ledger_path=site.place.ledger_path),
                folder=ground.state / FOLDER,
                keep=self._settings.keep,
            ),
            models=ground.llms,
            chats=Chats(self._news.chat_changed),
            clock=self._clock,
            threads=self._threads,
            post=self._post,
        )

    def _darkroom(self, ground: Ground, site: Site) -> Darkroom:
        darkroom = Darkroom(
            store=ground.store,
            gallery=ground.gallery,
            book=self._book,
            models=site.models,
            threads=self._threads,
            clock=self._clock,
            engine_build=site.predictor.engine_build,
            device=site.place.engine_name,
            embeddings=ground.found.embeddings,
            embeddings_bytes_max=self._settings.keep.embeddings_bytes_max,
            on_problem=self._storage_trouble,
            remember=lambda records: ground.journal.append(None, records),
        )
        darkroom.filing.resume(ground.found.pictures)
        self._closing.callback(darkroom.filing.close)
        return darkroom

    def _begin(
        self,
        ground: Ground,
        site: Site,
        group: asyncio.TaskGroup,
        performer: Performer,
        resumption: restart.Resumption,
    ) -> Telemetry:
        """Let journal, telemetry and mailbox run, and tell the core what happened since it was saved."""
        shell, supervisor = self._shell, self._supervisor
        assert shell is not None and supervisor is not None and self._parlour is not None, "they were made"
        telemetry = Telemetry(
            site.place,
            ram_total_bytes=site.house.ram.total_bytes,
            clock=self._clock,
            holders=self._holders,
            household=self._household,
            report=self._from_thread,
        )
        self._closing.callback(telemetry.close)
        self._closing.callback(performer.close)
        performer.begin(group, telemetry)
        self._parlour.begin(group)
        replica = Arbiter.restored(resumption.arbiter.snapshot())
        ground.journal.begin(replica, is_fresh=resumption.is_fresh)
        if resumption.records:
            ground.journal.append(None, resumption.records)
        for event in resumption.events:
            shell.post(event)
        telemetry.begin()
        self._tasks = [group.create_task(shell.run(), name="mailbox")]
        supervisor.keep_standby(WorkerKind.IMAGE)
        if ground.llms.entries:
            supervisor.keep_standby(WorkerKind.LLM)
        notices = (*ground.problems, *resumption.problems, site.place.notice)
        for text in (notice for notice in notices if notice):
            self._news.announce(text)
        return telemetry

    def _desk(
        self,
        ground: Ground,
        site: Site,
        darkroom: Darkroom,
        prefetch: Prefetch,
        shell: Shell,
        telemetry: Telemetry,
    ) -> Desk:
        supervisor, parlour = self._supervisor, self._parlour
        assert supervisor is not None and parlour is not None, "they were made before"
        showroom = Showroom(
            clock=self._clock,
            shell=shell,
            premises=site.place,
            supervisor=supervisor,
            telemetry=telemetry,
            models_known=site.models,
            book=self._book,
            news=self._news,
            parlour=parlour,
            engine_build=site.predictor.engine_build,
            started_at_ms=self._clock.now_ms(),
            trouble=self._trouble,
        )
        oracle = whatif.Oracle(
            shell=shell,
            predictor=site.predictor,
            process=self._predicting,
            remember=lambda records: ground.journal.append(None, records),
        )
        return Desk(
            clock=self._clock,
            threads=self._threads,
            shell=shell,
            book=self._book,
            news=self._news,
            store=ground.store,
            gallery=ground.gallery,
            darkroom=darkroom,
            prefetch=prefetch,
            showroom=showroom,
            oracle=oracle,
            warming=WarmUp(oracle, self._news, sizes=sizes_of(self._settings)),
            asks=AskDesk(
                parlour=parlour, shell=shell, clock=self._clock, threads=self._threads, prefetch=prefetch
            ),
            guests=GuestDesk(shell=shell, clock=self._clock, news=self._news, pids=self._guests),
            models=site.models,
        )

    # --- while it runs

    def _post(self, event: ev.Event, records: Sequence[Record] = ()) -> None:
        assert self._shell is not None, "events come after the assembly"
        self._shell.post(event, records)

    def _from_thread(self, event: ev.Event) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody needs the sample any more
            self._loop.call_soon_threadsafe(self._post, event)

    def _holders(self) -> list[tuple[str, int, int]]:
        assert self._supervisor is not None, "telemetry begins after the assembly"
        workers = [
            (name, number, process.pid) for name, (number, process) in self._supervisor.named().items()
        ]
        guests = self._present().items()
        return workers + [(f"guest/{lease}", 0, member) for lease, pid in guests for member in kin(pid)]

    def _household(self) -> list[tuple[str, int]]:
        assert self._supervisor is not None, "telemetry begins after the assembly"
        return [("server", os.getpid()), *(("standby", pid) for pid in self._supervisor.unnamed())]

    def _present(self) -> dict[str, int]:
        """Guests with their processes. Who was denied or let its lease run out is a guest no more."""
        for lease in self._guests.copy():
            view = self._news.leases.get(lease)
            if view is not None and view.state not in (GuestState.WAITING, GuestState.GRANTED):
                self._guests.pop(lease, None)
        return self._guests.copy()

    def _predicting(self) -> Process | None:
        supervisor = self._supervisor
        assert supervisor is not None, "plans come after the assembly"
        named = supervisor.named().get(PREDICTOR)
        return named[1] if named else supervisor.standby(WorkerKind.PREDICTOR)

    def _journal_trouble(self, text: str) -> None:
        with contextlib.suppress(RuntimeError):  # as above
            self._loop.call_soon_threadsafe(self._note, "journal", text)

    def _storage_trouble(self, text: str) -> None:
        with contextlib.suppress(RuntimeError):  # as above
            self._loop.call_soon_threadsafe(self._note, "storage", text)

    def _note(self, subject: str, text: str) -> None:
        if self._trouble.get(subject, "") == text:
            return
        self._trouble[subject] = text
        self._news.announce(text or _RELIEF[subject])

    async def _stop(self) -> None:
        """End what runs; unfinished jobs go on at the next start."""
        self._news.close()
        if self._parlour is not None:
            self._parlour.close()
        if self._supervisor is not None:
            await self._supervisor.close()
        for task in self._tasks:
            task.cancel()


@contextlib.asynccontextmanager
async def serving(
    settings: Settings, *, reread: Callable[[], Settings] | None = None
) -> AsyncIterator[FrontDesk]:
    """Run a server for as long as the block lasts; `reread` gives the settings for a reload.

    Raises Fault when it cannot begin.
    """
    async with Server(settings, reread=reread or (lambda: settings)).running() as desk:
        yield desk
