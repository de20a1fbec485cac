"""Reload: other settings for a running server, without losing a job.

    read settings and models  ->  hold the mailbox, end the workers  ->  a new core gets every unfinished job

Owns that exchange. Finished stages and tapes are kept, so what was being made goes on after a moment. What a
running server cannot change (device, address, folders) is named, and needs a restart, which loses no job
either.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from tidegate.core.arbiter import Arbiter
from tidegate.core.effects import GuestState
from tidegate.core.faults import CapacityError
from tidegate.core.house import RAM, House
from tidegate.core.worker import WorkerKind
from tidegate.runtime import registry, restart
from tidegate.runtime.clock import Clock
from tidegate.runtime.conversation import Gone
from tidegate.runtime.frontdesk import Desk
from tidegate.runtime.llm_registry import LlmRegistry, gathered_llms
from tidegate.runtime.predictor import Predictor
from tidegate.runtime.premises import ram_for
from tidegate.runtime.registry import Entry, Registry
from tidegate.runtime.settings import Settings
from tidegate.runtime.supervisor import Process, Supervisor
from tidegate.runtime.telemetry import Telemetry
from tidegate.runtime.threads import on
from tidegate.runtime.views import ReloadView


@dataclass(slots=True, kw_only=True)
class Reload:
    """What an exchange of settings needs. `settings` are those that hold now."""

    settings: Settings
    reread: Callable[[], Settings]
    clock: Clock
    desk: Desk
    supervisor: Supervisor
    predictor: Predictor
    telemetry: Telemetry
    predicting: Callable[[], Process | None]
    spread: Callable[[Registry, LlmRegistry], None]

    async def run(self) -> ReloadView:
        """Read the settings again and apply what can be applied. Raises Fault when they are wrong."""
        desk = self.desk
        settings = await on(desk.threads.files, self.reread)
        found = await on(desk.threads.files, registry.gathered, settings)
        llms = await on(desk.threads.files, gathered_llms, settings, taken=found.entries.keys())
        try:
            process = self.predicting()
            if process is None:
                process = await self.supervisor.bring_up(WorkerKind.PREDICTOR)
                self.supervisor.put_aside(WorkerKind.PREDICTOR, process)
            models = await self.predictor.surveyed(process, found)
        except Gone as error:
            raise CapacityError(
                "The predictor ended while it read the models.",
                remedy="Try again.",
                code="busy",
                retry_after_ms=1_000,
            ) from error
        old = desk.shell.arbiter.state
        ram = await on(desk.threads.files, ram_for, settings.ram)
        house = House(
            ram=ram,
            cards=old.house.cards,
            image_models=models.image_models(),
            language_models=llms.language_models(old.house.cards[0].name if old.house.cards else ""),
        )
        changed = _changes(desk.models, models) + _llm_changes(desk.asks.parlour.models, llms)
        changed += ["limits of RAM"] if ram != old.house.ram else []
        changed += ["policy"] if settings.policy != old.policy else []
        view = ReloadView(changed=tuple(changed), restart_needed=_fixed(self.settings, settings))
        if changed:
            await self._exchange(house, settings, models, llms)
        self.settings = settings
        return view

    async def _exchange(self, house: House, settings: Settings, models: Registry, llms: LlmRegistry) -> None:
        desk = self.desk
        async with desk.shell.between_events():
            await self.supervisor.end_workers()
            old, new = desk.shell.arbiter.state, Arbiter(house, settings.policy)
            new.inherit(desk.shell.arbiter)
            for name, worker in new.state.workers.items():
                # Numbers go on, so that the fence drops what the ended processes still had to say.
                worker.incarnation = old.workers[name].incarnation if name in old.workers else 0
            self.spread(models, llms)
            for lease, view in tuple(desk.news.leases.items()):
                if view.state in (GuestState.GRANTED, GuestState.WAITING):
                    desk.news.end_guest(lease)
            desk.shell.replace(new)
        for entry, frame in desk.book.unfinished():
            model = models.entries.get(entry.ticket.model)
            desk.shell.post(restart.submission(entry, frame, model, at_ms=self.clock.now_ms()))
        desk.asks.submit_again()
        for pool in (RAM, *(card.name for card in house.cards)):
            self.telemetry.observe(pool)


def _changes(old: Registry, new: Registry) -> list[str]:
    """What is different, in words."""
    told = [f"model {name} added" for name in new.entries if name not in old.entries]
    told += [f"model {name} removed" for name in old.entries if name not in new.entries]
    told += [
        f"model {name} changed"
        for name, entry in new.entries.items()
        if name in old.entries and _bare(old.entries[name]) != _bare(entry)
    ]
    if old.default != new.default:
        told.append(f"default model {new.default}")
    return told


def _llm_changes(old: LlmRegistry, new: LlmRegistry) -> list[str]:
    """As `_changes`, of language models."""
    told = [f"language model {name} added" for name in new.entries if name not in old.entries]
    told += [f"language model {name} removed" for name in old.entries if name not in new.entries]
    told += [
        f"language model {name} changed"
        for name, entry in new.entries.items()
        if name in old.entries and old.entries[name] != entry
    ]
    if old.default != new.default:
        told.append(f"default language model {new.default}")
    return told


def _bare(entry: Entry) -> Entry:
    """The model without what others around it decide."""
    return replace(entry, facts=None, owners={})


def _fixed(old: Settings, new: Settings) -> tuple[str, ...]:
    """The tables that only a restart can change."""
    return tuple(name for name in ("cards", "paths", "keep") if getattr(old, name) != getattr(new, name))
