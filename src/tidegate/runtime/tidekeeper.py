"""The tidekeeper: one incarnation of a language model's GPU child, opened and moved between its levels.

    open the model -> (attach to the front) -> HOT, PARTIAL or WARM as the core says -> report

Owns the commands to that process and what it says that it holds. COLD is its end, which the supervisor sees.
What it says to clients goes through the front.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

from tidegate.core import effects as ef
from tidegate.core.image.failure import Failure
from tidegate.core.llm.level import Level
from tidegate.runtime.conversation import Declined
from tidegate.runtime.llm_registry import LlmEntry
from tidegate.runtime.supervisor import Process
from tidegate.wire import llm_child
from tidegate.wire.messages import FaultKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Berth:
    """Where children compute: the engine's name of the card ("" = none) and a virtual card's ledger."""

    device: str
    ledger_path: str = ""


class LevelMissed(Exception):
    """The child lives and could not reach the level."""

    def __init__(self, failure: Failure, message: str) -> None:
        super().__init__(message)
        self.failure = failure
        self.message = message


_FAILURE_OF: Final = {FaultKind.OUT_OF_MEMORY: Failure.REFUSED, FaultKind.NOT_FINITE: Failure.NOT_FINITE}


class Tidekeeper:
    """One live child."""

    def __init__(
        self, process: Process, entry: LlmEntry, *, worker: str, incarnation: int, asked_ns: int
    ) -> None:
        """`asked_ns` is when its start was wanted, on the monotonic clock."""
        self.process = process
        self.entry = entry
        self.worker = worker
        self.incarnation = incarnation
        self.level: Level | None = None
        self.holdings: tuple[llm_child.Holding, ...] = ()
        self._asked_ns = asked_ns

    async def open(self, berth: Berth) -> None:
        """Tell it which model it is. Raises `Gone` and `Declined`."""
        options, entry = self.entry.options, self.entry
        command = llm_child.OpenLlm(
            serial=0,
            model=entry.name,
            path=str(entry.path),
            fingerprint=entry.fingerprint,
            device=berth.device if entry.layers_max else "",
            ledger_path=berth.ledger_path,
            projector_path=str(entry.mmproj) if entry.mmproj else "",
            context_tokens_count=entry.context_count,
            slots_count=options.slots,
            batch_tokens_count=options.batch,
            threads_count=options.threads,
            kv_type_k=options.kv_type.value,
            kv_type_v=options.kv_type.value,
            flash_attention=options.flash_attention,
            evaluation=options.evaluation,
            overflow=options.overflow,
            image_tokens_max=options.image_tokens_max if entry.mmproj else 0,
            # Pools of a real card's driver grow with use; a virtual card and the CPU have none.
            warm_up_tokens_count=options.batch if berth.device and not berth.ledger_path else 0,
        )
        await self.process.talk.ask(command, llm_child.LlmOpened)

    async def move(self, effect: ef.SetLevel) -> llm_child.LevelReached:
        """Bring it to a level. Raises `Gone`, and `LevelMissed` when it could not get there."""
        command = llm_child.SetLevel(
            serial=0,
            level=effect.level,
            layers_count=effect.layers_count,
            card_bytes=effect.card_bytes,
            ram_bytes=effect.ram_bytes,
        )
        try:
            reached = await self.process.talk.ask(command, llm_child.LevelReached)
        except Declined as declined:
            if isinstance(declined.answer, llm_child.LevelFailed):
                self.holdings = declined.answer.holdings
            failure = _FAILURE_OF.get(declined.fault, Failure.ENGINE)
            raise LevelMissed(failure, declined.message) from declined
        self.level = reached.level
        self.holdings = reached.holdings
        return reached

    def rising_ms(self) -> int:
        """Since its start was wanted: what a rise from COLD costs, the process included."""
        return (time.monotonic_ns() - self._asked_ns) // 1_000_000
