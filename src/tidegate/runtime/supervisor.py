"""The supervisor: processes of workers brought up, watched and ended, each with its name and incarnation.

Owns live processes and the standby. It decides nothing: when to start, end and kill is told by the core's
effects, and how a process ended is reported as it was seen. What a process is told to do is the business of
`studio`, `predictor`, `front` and `tidekeeper`.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, assert_never

from tidegate.core.worker import PREDICTOR, WorkerKind
from tidegate.runtime import children
from tidegate.runtime.conversation import AnyChild, Conversation, Gone
from tidegate.runtime.threads import Threads, on
from tidegate.wire import channel, messages

# These compute stages, and look at the devices before anything else.
_COMPUTING: Final = (WorkerKind.IMAGE, WorkerKind.PREDICTOR)
# These hold conversations.
_KEEPING: Final = (WorkerKind.LLM, WorkerKind.FRONT)
# The front never touches a card; without these no driver is opened for it either.
_NO_CARDS: Final = {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "", "GGML_VK_VISIBLE_DEVICES": ""}
# How long a process has to leave by itself when the server closes. One that computes an image does not hear
# before the stage is over; one that holds conversations hands them over, or writes them, and then leaves.
_GOODBYE_MS: Final = 1_500
_HANDOVER_MS: Final = 5_000
# How long the kernel may take to end a killed one before it is waited for without a watch.
_KILLED_MS: Final = 5_000


@dataclass(slots=True, kw_only=True)
class Process:
    """One live process. `ended` is set when it was reaped."""

    child: AnyChild
    talk: Conversation
    ended: asyncio.Future[children.Ending]
    pid: int
    kind: WorkerKind
    engine_build: str = ""
    watch: int = -1
    was_asked: bool = False  # To end, by SIGTERM: ending by it is no failure then.


class Supervisor:
    """All processes of one server."""

    def __init__(self, threads: Threads, *, ledger_path: str) -> None:
        self._threads = threads
        self._ledger_path = ledger_path
        self._group: asyncio.TaskGroup | None = None
        self._standby: dict[WorkerKind, Process] = {}
        self._spawning: set[asyncio.Future[Process]] = set()
        self._live: dict[int, Process] = {}
        self._named: dict[str, tuple[int, Process]] = {}
        self.last_errors: dict[str, str] = {}
        self.is_closing = False

    def begin(self, group: asyncio.TaskGroup) -> None:
        """Use this task group for watching."""
        self._group = group

    async def bring_up(self, kind: WorkerKind) -> Process:
        """Start a process and wait until its engine is imported and the virtual card attached.

        Raises `Gone` when it ended before.
        """
        process = await self._spawned(kind)
        try:
            hello = await process.talk.hello()
            process.engine_build = hello.engine_build
            if self._ledger_path and kind in _COMPUTING:
                survey = messages.Survey(serial=0, ledger_path=self._ledger_path)
                await process.talk.ask(survey, messages.Surveyed)
        except Gone:
            await asyncio.shield(process.ended)
            raise
        return process

    async def start(
        self, worker: str, incarnation: int, *, kind: WorkerKind, on_exit: Callable[[children.Ending], None]
    ) -> Process | None:
        """Give a worker its process, the standby where there is one; None when it could not be brought up.

        `on_exit` is called once, whatever happens.
        """
        process = self._standby.pop(kind, None)
        try:
            if process is None or not process.talk.is_open:
                process = await self.bring_up(kind)
        except (Gone, OSError) as error:
            self.last_errors[worker] = str(error)
            on_exit(children.Ending(exit_code=127, signal_number=0, last_lines=()))
            return None
        self._named[worker] = (incarnation, process)
        process.ended.add_done_callback(
            lambda done: self._left(worker, incarnation, done.result(), process, on_exit)
        )
        return process

    def keep_standby(self, kind: WorkerKind) -> None:
        """Have a process of this kind wait, unless one does."""
        waiting = self._standby.get(kind)
        if not self.is_closing and (waiting is None or not waiting.talk.is_open):
            self._standby.pop(kind, None)
            self._spawn_task(self._wait_aside(kind))

    def put_aside(self, kind: WorkerKind, process: Process) -> None:
        """Let a process that is up wait as standby."""
        self._standby[kind] = process

    def standby(self, kind: WorkerKind) -> Process | None:
        """The waiting process of a kind, if there is one."""
        return self._standby.get(kind)

    def process(self, worker: str, incarnation: int) -> Process | None:
        """The live process of this incarnation, or None when it is gone."""
        known = self._named.get(worker)
        return known[1] if known and known[0] == incarnation else None

    def named(self) -> dict[str, tuple[int, Process]]:
        """Every worker that has a process, with its incarnation."""
        return dict(self._named)

    def unnamed(self) -> list[int]:
        """Process ids of those that are nobody's worker: standbys, and who is being brought up. From any
        thread.
        """
        named = {process.pid for _, process in tuple(self._named.values())}
        return [pid for pid in tuple(self._live) if pid not in named]

    def signal(self, worker: str, incarnation: int, number: int) -> None:
        """Send a signal to this incarnation; nothing happens when it is gone."""
        process = self.process(worker, incarnation)
        if process is not None:
            process.was_asked = process.was_asked or number == signal.SIGTERM
            process.child.signal(number)
            process.child.signal(signal.SIGCONT)

    async def end_workers(self) -> None:
        """Kill the process of every worker and wait until it is gone. The predictor's becomes the standby: it
        holds nothing that anybody could miss.
        """
        ending = []
        for name, (_, process) in tuple(self._named.items()):
            if name == PREDICTOR and process.talk.is_open:
                del self._named[name]
                self._standby[WorkerKind.PREDICTOR] = process
                continue
            process.child.signal(signal.SIGKILL)
            ending.append(process.ended)
        if ending:
            await asyncio.wait(ending)
        self.last_errors.clear()  # They ended because they were told to.

    async def close(self) -> None:
        """End every process: politely first, then by KILL; return when all of them were reaped."""
        self.is_closing = True
        self._standby.clear()
        while self._spawning:
            await asyncio.wait(self._spawning)
        # The front last: what children hold of conversations is handed over to it.
        for kinds in ((WorkerKind.IMAGE, WorkerKind.PREDICTOR, WorkerKind.LLM), (WorkerKind.FRONT,)):
            await self._see_off(kinds)
        await self._ended_within(_KILLED_MS, tuple(WorkerKind))
        for process in tuple(self._live.values()):
            # Whoever watched it was cancelled with the task group.
            process.talk.close()
            self._unwatch(process)
            await on(self._threads.endings, process.child.end, 0)
            self._live.pop(process.pid)

    async def _see_off(self, kinds: tuple[WorkerKind, ...]) -> None:
        """Let processes of these kinds leave, and kill those that do not."""
        for process in self._live.values():
            if process.kind in kinds:
                process.talk.say_goodbye()
        for some, wait_ms in ((_COMPUTING, _GOODBYE_MS), (_KEEPING, _HANDOVER_MS)):
            await self._ended_within(wait_ms, [kind for kind in some if kind in kinds])
            for process in self._live.values():
                if process.kind in some and process.kind in kinds:
                    process.child.signal(signal.SIGKILL)

    async def _ended_within(self, wait_ms: int, kinds: Sequence[WorkerKind]) -> None:
        ends = [process.ended for process in self._live.values() if process.kind in kinds]
        if ends:
            await asyncio.wait(ends, timeout=wait_ms / 1000)

    async def _wait_aside(self, kind: WorkerKind) -> None:
        try:
            process = await self.bring_up(kind)
        except (Gone, OSError) as error:
            # The next worker is then started from nothing, and its end is reported like any other.
            self.last_errors[f"standby/{kind}"] = str(error)
            return
        if kind in self._standby or self.is_closing:
            process.talk.say_goodbye()
        else:
            self._standby[kind] = process

    async def _spawned(self, kind: WorkerKind) -> Process:
        if self.is_closing:
            raise Gone("the server ends")
        loop = asyncio.get_running_loop()
        entering = asyncio.ensure_future(self._entered(kind, loop))
        self._spawning.add(entering)
        entering.add_done_callback(self._spawning.discard)
        # Shielded: a process that was begun is entered even if nobody wants it any more.
        return await asyncio.shield(entering)

    async def _entered(self, kind: WorkerKind, loop: asyncio.AbstractEventLoop) -> Process:
        child = await on(self._threads.processes, _spawned, kind)
        process = Process(
            child=child, talk=Conversation(child), ended=loop.create_future(), pid=child.pid, kind=kind
        )
        process.watch = os.pidfd_open(child.pid)
        self._live[child.pid] = process
        loop.add_reader(process.watch, self._dying, process)
        if self.is_closing:
            process.talk.say_goodbye()
        return process

    def _dying(self, process: Process) -> None:
        self._unwatch(process)
        self._spawn_task(self._reap(process))

    def _unwatch(self, process: Process) -> None:
        if process.watch >= 0:
            asyncio.get_running_loop().remove_reader(process.watch)
            os.close(process.watch)
            process.watch = -1

    async def _reap(self, process: Process) -> None:
        process.talk.drain()
        process.talk.close()
        ending = await on(self._threads.endings, process.child.finish)
        self._live.pop(process.pid, None)
        for kind, waiting in tuple(self._standby.items()):
            if waiting is process:
                del self._standby[kind]
        process.ended.set_result(ending)

    def _left(
        self,
        worker: str,
        incarnation: int,
        ending: children.Ending,
        process: Process,
        on_exit: Callable[[children.Ending], None],
    ) -> None:
        if self._named.get(worker, (0, None))[0] == incarnation:
            del self._named[worker]
        obeyed = process.was_asked and ending.signal_number == signal.SIGTERM
        if (ending.signal_number and not obeyed) or ending.exit_code:
            said = next((line for line in reversed(ending.last_lines) if line.strip()), "")
            self.last_errors[worker] = f"{ending.text()}: {said}" if said else ending.text()
        on_exit(ending)

    def _spawn_task(self, work: object) -> None:
        assert self._group is not None and asyncio.iscoroutine(work), "the supervisor works in a task group"
        self._group.create_task(work)


def _spawned(kind: WorkerKind) -> AnyChild:
    match kind:
        case WorkerKind.IMAGE:
            environment = children.engine_environment()
            return children.Child.spawn("tidegate.workers.image", environment=environment)
        case WorkerKind.PREDICTOR:
            return children.Child.spawn("tidegate.workers.predictor")
        case WorkerKind.LLM:
            environment = children.engine_environment()
            return children.spawned("tidegate.workers.llm", channel.child_parent_end, environment=environment)
        case WorkerKind.FRONT:
            environment = {**os.environ, **_NO_CARDS}
            return children.spawned(
                "tidegate.workers.front", channel.front_parent_end, environment=environment
            )
        case _:
            assert_never(kind)
