"""The groundwork: what a server stands on before it starts its first process.

Owns making and locking the state folder and reading back what an earlier server left there. What is made of
it is the `server`'s part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tidegate.core.faults import ClientError
from tidegate.runtime import premises, registry
from tidegate.runtime.cards.device import parse_device
from tidegate.runtime.cards.virtual import VirtualCard
from tidegate.runtime.gallery import Gallery
from tidegate.runtime.journal.journal import Journal
from tidegate.runtime.journal.recovery import Recovered
from tidegate.runtime.llm_registry import LlmRegistry, gathered_llms
from tidegate.runtime.lock import Lock
from tidegate.runtime.settings import Settings
from tidegate.runtime.settings_file import state_folder_of
from tidegate.runtime.store import FOLDER_MODE, Store


@dataclass(slots=True, kw_only=True)
class Ground:
    """What stands before the first process is started."""

    state: Path
    lock: Lock
    store: Store
    gallery: Gallery
    journal: Journal
    found: Recovered
    virtual: VirtualCard | None
    models: registry.Registry
    llms: LlmRegistry
    problems: list[str]


def laid(settings: Settings, *, on_problem: Callable[[str], None]) -> Ground:
    """Make the state folder, lock it and read what is there. Blocks. Raises Fault."""
    state = state_folder_of(settings)
    try:
        state.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        state.chmod(FOLDER_MODE)
        lock = premises.state_lock(state)
    except OSError as error:
        raise ClientError(
            f"The state folder {state} cannot be used: {error.strerror}.",
            remedy="Name another one with --state.",
            code="bad_state_folder",
        ) from error
    try:
        store = Store(state)
        store.prepare()
        gallery = Gallery(state, store, settings.keep)
        problems = gallery.open()
        journal = Journal(state, on_problem=on_problem, events_count_max=settings.keep.events_count_max)
        found = journal.open()
        virtual = premises.ledger_for(parse_device(settings.cards[0].device), state)
        models = registry.gathered(settings)
        llms = gathered_llms(settings, taken=models.entries.keys())
    except BaseException:
        lock.release()
        raise
    return Ground(
        state=state,
        lock=lock,
        store=store,
        gallery=gallery,
        journal=journal,
        found=found,
        virtual=virtual,
        models=models,
        llms=llms,
        problems=problems + found.problems,
    )
