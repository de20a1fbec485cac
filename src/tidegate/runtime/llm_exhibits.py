"""Exhibits of language models: how each stands, what its child says that it holds, and counters.

Owns the translation from the core's state and the parlour into views. It keeps nothing; everything else that
is shown is the neighbour `exhibits`' part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tidegate.core.llm.level import Level, Tide
from tidegate.core.llm.request import WAITING
from tidegate.core.llm.tide import KV, WEIGHTS, running, worker_of
from tidegate.core.state import State
from tidegate.core.worker import WorkerKind
from tidegate.runtime.asks import LanguageView
from tidegate.runtime.llm_registry import LlmEntry
from tidegate.runtime.parlour import Parlour
from tidegate.runtime.views import ModelView

Sample = tuple[str, Mapping[str, str], float]
# What a model on its way is called: where it still is.
_LEVEL_OF: Mapping[Tide, Level] = {
    Tide.RISING: Level.COLD,
    Tide.RETURNING: Level.WARM,
    Tide.EBBING: Level.HOT,
    Tide.SINKING: Level.WARM,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmExhibits:
    """What can be shown of the language models of one server."""

    state: State
    parlour: Parlour

    def models(self) -> Iterator[ModelView]:
        """The registry, the refused files last."""
        registry = self.parlour.models
        yield from (self.model(entry) for entry in registry.entries.values())
        for name, reason in registry.refused:
            yield ModelView(
                name=name, kind="llm", family="", is_default=False, files={}, weights_bytes={}, refused=reason
            )

    def model(self, entry: LlmEntry) -> ModelView:
        """One model."""
        front = self.parlour.front
        return ModelView(
            name=entry.name,
            kind="llm",
            family=entry.architecture,
            is_default=entry.name == self.parlour.models.default,
            files={role: path.name for role, path in entry.files.items()},
            weights_bytes={},
            fingerprints=dict(entry.fingerprints),
            aliases=entry.aliases,
            language=self._language(entry),
            refused=front.refused.get(entry.name, "") if front else "",
        )

    def _language(self, entry: LlmEntry) -> LanguageView:
        known = self.state.models.get(entry.name)
        tide = known.tide if known else Tide.COLD
        front, kept = self.parlour.front, self.parlour.kept.get(entry.name)
        opened = front.opened.get(entry.name) if front else None
        waiting = (
            [request for request in known.requests.values() if request.phase in WAITING] if known else []
        )
        return LanguageView(
            level=_LEVEL_OF.get(tide) or Level(tide.value),
            tide=tide.value,
            wish=str(known.wish) if known and known.wish else "",
            layers_count=entry.layers_count,
            layers_on_card_count=known.layers_count if known else 0,
            context_count=entry.context_count,
            slots_count=entry.options.slots,
            running_count=running(known) if known else 0,
            waiting_count=len(waiting),
            kept_bytes=kept.active_bytes + kept.idle_bytes if kept else 0,
            has_vision=entry.mmproj is not None,
            has_embeddings=entry.has_embeddings,
            has_template=opened.has_template if opened else entry.has_template,
            tools_family=opened.tools_family if opened else "",
            evaluation=entry.options.evaluation.value,
        )

    def level(self, holder: str) -> str:
        """At which level, or on which way, the model of a worker is; "" for other workers."""
        worker = self.state.workers.get(holder)
        if worker is None or worker.kind is not WorkerKind.LLM:
            return ""
        return self.state.models[worker.model].tide.value

    def observed_bytes(self, holder: str, part: str, *, is_card: bool) -> int:
        """What a child says that a part of it takes; -1 where none says so."""
        keeper = self.parlour.keeper(holder)
        if keeper is None or part not in (WEIGHTS, KV):
            return -1
        here = [holding for holding in keeper.holdings if bool(holding.device) is is_card]
        context_bytes = sum(holding.kv_bytes + holding.compute_bytes for holding in here)
        if part == KV:
            return context_bytes
        # What lies in RAM is one lease, whatever it is for.
        return sum(holding.weights_bytes for holding in here) + (0 if is_card else context_bytes)

    def metrics(self) -> Iterator[Sample]:
        """Counters and gauges, named as Prometheus has it."""
        chats = self.parlour.chats
        for model in self.state.models.values():
            labels = {"model": model.name}
            yield "tidegate_chats_running", labels, running(model)
            yield "tidegate_chats_waiting", labels, len(model.requests) - running(model)
            yield "tidegate_llm_level", {**labels, "level": model.tide.value}, 1
            yield "tidegate_chat_tokens_total", labels, chats.token_counts[model.name]
            yield (
                "tidegate_chat_first_token_seconds_sum",
                labels,
                chats.first_token_ms[model.name] / 1000,
            )
            yield "tidegate_chat_first_token_seconds_count", labels, chats.first_token_counts[model.name]
            for keeper in filter(None, [self.parlour.keeper(worker_of(self.state, model).name)]):
                for holding in keeper.holdings:
                    place = {**labels, "device": holding.device or "ram"}
                    yield "tidegate_llm_weights_bytes", place, holding.weights_bytes
                    yield "tidegate_llm_kv_bytes", place, holding.kv_bytes
                    yield "tidegate_llm_compute_bytes", place, holding.compute_bytes
        for (name, finish), count in chats.ended_counts.items():
            yield "tidegate_chats_ended_total", {"model": name, "finish": finish}, count
