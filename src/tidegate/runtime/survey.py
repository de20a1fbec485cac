"""The survey: what the engine and the machine say about themselves before a server begins.

    the predictor's process is brought up -> devices -> the card and RAM -> every model's headers -> the house

Owns that order and what came of it. The card is `premises`, headers are `predictor` and `registry`, and what
stands on the disk is `groundwork`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tidegate.core import events as ev
from tidegate.core.faults import WorkerError
from tidegate.core.house import House
from tidegate.core.worker import WorkerKind
from tidegate.runtime import premises, registry
from tidegate.runtime.clock import Clock
from tidegate.runtime.conversation import Gone
from tidegate.runtime.groundwork import Ground
from tidegate.runtime.journal.records import Record
from tidegate.runtime.predictor import Predictor
from tidegate.runtime.settings import Settings
from tidegate.runtime.supervisor import Process, Supervisor
from tidegate.runtime.threads import Threads, on
from tidegate.wire import messages


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What the engine and the machine said about themselves."""

    place: premises.Premises
    predictor: Predictor
    models: registry.Registry
    house: House


async def surveyed(
    ground: Ground,
    supervisor: Supervisor,
    *,
    settings: Settings,
    threads: Threads,
    clock: Clock,
    post: Callable[[ev.Event, Sequence[Record]], None],
) -> Site:
    """Have the engine list its devices and open every model's headers; the card is the caller's to close.

    Raises WorkerError when there is no engine, and ClientError when there is no such card.
    """
    process = await _brought_up(supervisor)
    seen = await process.talk.ask(messages.Survey(serial=0), messages.Surveyed)
    place = await on(
        threads.files,
        premises.premises_for,
        settings.cards[0],
        virtual=ground.virtual,
        seen=seen.devices,
        state=ground.state,
    )
    try:
        predictor = Predictor(
            device=place.engine_name,
            device_class=place.device_class,
            engine_build=process.engine_build,
            clock=clock,
            known=ground.found.footprints,
            post=post,
            has_card=place.card is not None,
            ledger_path=place.ledger_path,
            llms=ground.llms,
        )
        models = await predictor.surveyed(process, ground.models)
        ram = await on(threads.files, premises.ram_for, settings.ram)
    except BaseException:  # nobody else knows the card yet, so nobody else lets go of its lock
        place.close()
        raise
    supervisor.put_aside(WorkerKind.PREDICTOR, process)
    house = House(
        ram=ram,
        cards=(place.card,) if place.card else (),
        image_models=models.image_models(),
        language_models=ground.llms.language_models(place.card.name if place.card else ""),
    )
    return Site(place=place, predictor=predictor, models=models, house=house)


async def _brought_up(supervisor: Supervisor) -> Process:
    try:
        return await supervisor.bring_up(WorkerKind.PREDICTOR)
    except Gone as error:
        raise WorkerError(
            "The engine could not be started: its process ended at once.",
            remedy="Build the engine with `make setup`, and look at its last words with `tidegate doctor`.",
            code="engine_unavailable",
        ) from error
