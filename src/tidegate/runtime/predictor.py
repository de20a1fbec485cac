"""The predictor: what stages would need, asked of a process that computes nothing, and remembered for ever.

Owns the questions to that process and the memory of its answers, which hold as long as the model's headers,
the engine, the device's class and the options stay. Which executions to ask about is the core's knowledge.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Final
from weakref import WeakKeyDictionary

import msgspec

from tidegate.core import effects as ef
from tidegate.core import events as ev
from tidegate.core.catalog import FootprintKey
from tidegate.core.house import LlmFootprint, Split
from tidegate.core.planner.option import Footprint
from tidegate.core.stage import Execution
from tidegate.runtime.clock import Clock
from tidegate.runtime.conversation import Conversation, Declined, Gone
from tidegate.runtime.journal import records as rec
from tidegate.runtime.journal.records import Record
from tidegate.runtime.llm_registry import LlmRegistry
from tidegate.runtime.registry import Entry, Registry, with_facts
from tidegate.runtime.supervisor import Process
from tidegate.wire import messages
from tidegate.wire.messages import FaultKind

# These say that the model or the size is wrong, not that one way to run it is closed.
_HOPELESS: Final = (FaultKind.INVALID_MODEL, FaultKind.INVALID_REQUEST)


class Predictor:
    """Predictions of one server."""

    def __init__(
        self,
        *,
        device: str,
        device_class: str,
        engine_build: str,
        clock: Clock,
        known: dict[str, Footprint | None],
        post: Callable[[ev.Event, Sequence[Record]], None],
        has_card: bool,
        ledger_path: str,
        llms: LlmRegistry,
    ) -> None:
        self._device = device
        self._llm_device = device if has_card else ""
        self._ledger_path = ledger_path
        self._device_class = device_class
        self.engine_build = engine_build
        self._clock = clock
        self._known = known
        self._post = post
        # By conversation and not by process id, which a later process may have again.
        self._opened: WeakKeyDictionary[Conversation, set[str]] = WeakKeyDictionary()
        self.models = Registry(entries={})
        self.llms = llms

    async def surveyed(self, process: Process, models: Registry) -> Registry:
        """Open every model's headers; the registry with what they say. Raises `Gone`."""
        facts: dict[str, messages.Opened | str] = {}
        for name, entry in models.entries.items():
            try:
                facts[name] = await process.talk.ask(entry.command(self._device), messages.Opened)
                self._opened.setdefault(process.talk, set()).add(name)
            except Declined as declined:
                facts[name] = f"The engine refuses it: {declined.message}."
        self.models = with_facts(models, facts)
        return self.models

    async def answer(self, process: Process, effect: ef.Predict) -> None:
        """Carry out one Predict and report; the end of the process is reported by the supervisor."""
        key = effect.key
        try:
            footprints, records = await self.footprints(process, key)
        except Gone:
            return
        except Declined as declined:
            self._give_up(effect, key.model, declined)
            return
        self._post(
            ev.FootprintPredicted(
                at_ms=self._clock.now_ms(),
                worker=effect.worker,
                incarnation=effect.incarnation,
                key=key,
                footprints=footprints,
            ),
            records,
        )

    async def answer_llm(self, process: Process, effect: ef.PredictLlm) -> None:
        """Carry out one PredictLlm and report, as `answer` does."""
        entry = self.llms.entries.get(effect.model)
        try:
            if entry is None:
                raise Declined(FaultKind.INVALID_MODEL, "it is not in the registry any more")
            command = entry.question(self._llm_device, self._ledger_path)
            said = await process.talk.ask(command, messages.LlmForetold)
        except Gone:
            return
        except Declined as declined:
            self._give_up(effect, effect.model, declined)
            return
        self._post(
            ev.LlmPredicted(
                at_ms=self._clock.now_ms(),
                worker=effect.worker,
                incarnation=effect.incarnation,
                model=effect.model,
                footprint=_footprint(said),
            ),
            (),
        )

    def _give_up(self, effect: ef.Predict | ef.PredictLlm, model: str, declined: Declined) -> None:
        self._post(
            ev.PredictionFailed(
                at_ms=self._clock.now_ms(),
                worker=effect.worker,
                incarnation=effect.incarnation,
                model=model,
                reason=f"{model} cannot be used: {declined.message}.",
            ),
            (),
        )

    async def footprints(
        self, process: Process, key: FootprintKey
    ) -> tuple[tuple[Footprint | None, ...], list[Record]]:
        """The footprint of each execution, None where it is impossible, and what is new to remember.

        Raises `Gone`, and `Declined` when the model cannot be used at all.
        """
        entry = self.models.entries.get(key.model)
        if entry is None:
            raise Declined(FaultKind.INVALID_MODEL, "it is not in the registry any more")
        found: list[Footprint | None] = []
        records: list[Record] = []
        for execution in key.executions:
            name = self._name(entry, key, execution)
            if name not in self._known:
                self._known[name] = await self._ask(process, entry, key, execution)
                records.append(rec.footprint_kept(name, self._known[name]))
            found.append(self._known[name])
        return tuple(found), records

    async def _ask(
        self, process: Process, entry: Entry, key: FootprintKey, execution: Execution
    ) -> Footprint | None:
        opened = self._opened.setdefault(process.talk, set())
        if entry.name not in opened:
            await process.talk.ask(entry.command(self._device), messages.Opened)
            opened.add(entry.name)
        factor = entry.opened.latent_factor
        request = messages.ImageRequest(
            prompt="a", width=key.latent_width * factor, height=key.latent_height * factor, steps=1
        )
        command = messages.Predict(
            serial=0, stage=key.stage, request=request, execution=execution, model=entry.name
        )
        try:
            said = await process.talk.ask(command, messages.FootprintPredicted)
        except Declined as declined:
            if declined.fault in _HOPELESS:
                raise
            return None
        return Footprint(said.card_peak_bytes, said.ram_peak_bytes, said.weights_bytes)

    def _name(self, entry: Entry, key: FootprintKey, execution: Execution) -> str:
        told: Mapping[str, object] = {
            "shapes": dict(entry.shapes),
            "options": [entry.flash_attention, entry.direct_convolution, entry.threads],
            "engine": self.engine_build,
            "device": self._device_class,
            "stage": key.stage.value,
            "size": [key.latent_height, key.latent_width],
            "execution": msgspec.to_builtins(execution),
        }
        return hashlib.sha256(msgspec.json.encode(told, order="sorted")).hexdigest()[:40]


def _footprint(said: messages.LlmForetold) -> LlmFootprint:
    """What the engine foretells as the core counts it.

    A projector is charged with the context of a model that has one: it comes with the first picture, and
    what it takes then must be there.
    """
    projector_bytes = said.projector_weights_bytes + said.projector_compute_bytes
    most = said.splits[-1]
    return LlmFootprint(
        layers_count=said.layers_count,
        weights_bytes=most.card_weights_bytes + most.ram_weights_bytes,
        kv_bytes=most.card_kv_bytes + most.ram_kv_bytes,
        compute_bytes=most.card_compute_bytes + most.ram_compute_bytes,
        state_bytes=said.state_bytes,
        splits=tuple(
            Split(
                card_weights_bytes=split.card_weights_bytes,
                card_context_bytes=split.card_kv_bytes
                + split.card_compute_bytes
                + (projector_bytes if layers else 0),
                ram_bytes=split.ram_weights_bytes
                + split.ram_kv_bytes
                + split.ram_compute_bytes
                + (0 if layers else projector_bytes),
            )
            for layers, split in enumerate(said.splits)
        ),
    )
