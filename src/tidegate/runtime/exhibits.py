"""Exhibits: the server's state as views for clients.

Owns the translation from the core's state, the registry and the live processes. It reads between two events
of the shell, on the event loop, and keeps nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tidegate import __version__
from tidegate.core.house import RAM, Sight
from tidegate.core.image.job import ENDED, JobPhase
from tidegate.core.lease import Lease, LeasePhase
from tidegate.core.pool import Pool
from tidegate.core.stage import Component
from tidegate.core.state import State
from tidegate.runtime.clock import Clock
from tidegate.runtime.jobbook import JobBook
from tidegate.runtime.llm_exhibits import LlmExhibits
from tidegate.runtime.llm_registry import LlmEntry
from tidegate.runtime.newsroom import Newsroom
from tidegate.runtime.parlour import Parlour
from tidegate.runtime.premises import Premises
from tidegate.runtime.registry import Entry, Registry
from tidegate.runtime.shell import Shell
from tidegate.runtime.supervisor import Supervisor
from tidegate.runtime.telemetry import Telemetry
from tidegate.runtime.views import (
    HealthView,
    LoadedView,
    MetricsView,
    ModelView,
    PartView,
    PoolView,
    ResidencyView,
    TenantView,
    VramView,
    WorkerView,
)


@dataclass(slots=True, kw_only=True)
class Showroom:
    """What can be shown of one server."""

    clock: Clock
    shell: Shell
    premises: Premises
    supervisor: Supervisor
    telemetry: Telemetry
    models_known: Registry
    book: JobBook
    news: Newsroom
    parlour: Parlour
    engine_build: str
    started_at_ms: int
    trouble: dict[str, str]

    @property
    def _state(self) -> State:
        return self.shell.arbiter.state

    @property
    def _llms(self) -> LlmExhibits:
        return LlmExhibits(state=self._state, parlour=self.parlour)

    # --- memory

    def vram(self) -> VramView:
        """Every pool with its tenants."""
        return VramView(pools=tuple(self._pool(pool) for pool in self._state.ledger.pools.values()))

    def _pool(self, pool: Pool) -> PoolView:
        descriptor = pool.descriptor
        name = self.premises.description if pool.name != RAM else "host memory"
        return PoolView(
            name=pool.name,
            description=name,
            total_bytes=descriptor.total_bytes,
            used_bytes=_used_bytes(pool),
            free_bytes=max(0, descriptor.total_bytes - _used_bytes(pool)),
            reserved_bytes=pool.reserved_bytes,
            headroom_bytes=pool.headroom_bytes,
            foreign_bytes=pool.foreign_bytes,
            sight=pool.sight.value,
            sampled_at_ms=max(0, pool.taken_ms),
            tenants=self._tenants(pool),
        )

    def _tenants(self, pool: Pool) -> tuple[TenantView, ...]:
        state = self._state
        found: dict[str, list[Lease]] = {}
        for lease in state.ledger.leases():
            if _bytes(pool, lease):
                found.setdefault(lease.holder, []).append(lease)
        for holder in pool.seen:
            found.setdefault(holder, [])
        named, llms = self.supervisor.named(), self._llms
        tenants = [
            TenantView(
                name=holder,
                predicted_bytes=sum(_bytes(pool, lease) for lease in leases if lease.is_charged),
                observed_bytes=pool.seen.get(holder, 0) if pool.sight is Sight.PER_PROCESS else -1,
                pid=named[holder][1].pid if holder in named else 0,
                incarnation=state.workers[holder].incarnation if holder in state.workers else 0,
                level=llms.level(holder),
                parts=tuple(
                    PartView(
                        part=lease.part,
                        phase=lease.phase.value,
                        predicted_bytes=_bytes(pool, lease),
                        observed_bytes=llms.observed_bytes(holder, lease.part, is_card=pool.name != RAM),
                        execution=lease.execution,
                    )
                    for lease in leases
                ),
            )
            for holder, leases in found.items()
        ]
        return (*tenants, *self._others(pool))

    def _others(self, pool: Pool) -> Iterator[TenantView]:
        """Who holds no lease: processes of our own that do not compute, and strangers."""
        household = self.telemetry.household_bytes if pool.name == RAM else {}
        for name, amount_bytes in household.items():
            yield TenantView(name=name, predicted_bytes=0, observed_bytes=amount_bytes)
        foreign_bytes = max(0, pool.foreign_bytes - sum(household.values()))
        if foreign_bytes:
            yield TenantView(name="foreign", predicted_bytes=0, observed_bytes=foreign_bytes)

    # --- models

    def models(self) -> tuple[ModelView, ...]:
        """The registry, the refused files last."""
        shown = [self._model(entry) for entry in self.models_known.entries.values()]
        shown += [
            ModelView(
                name=name,
                kind="image",
                family="",
                is_default=False,
                files={},
                weights_bytes={},
                refused=reason,
            )
            for name, reason in self.models_known.refused
        ]
        return (*shown, *self._llms.models())

    def language_model(self, entry: LlmEntry) -> ModelView:
        """One language model."""
        return self._llms.model(entry)

    def model(self, name: str) -> ModelView:
        """One model."""
        return self._model(self.models_known.find(name))

    def _model(self, entry: Entry) -> ModelView:
        facts = entry.opened
        return ModelView(
            name=entry.name,
            kind="image",
            family=facts.family,
            is_default=entry.name == self.models_known.default,
            files={role: path.name for role, path in entry.files.items()},
            weights_bytes={
                Component(name): found.file_bytes
                for name, found in facts.components.items()
                if name in set(Component)
            },
            size_multiple=facts.size_multiple,
            samplers=facts.samplers,
            schedulers=facts.schedulers,
            default_sampler=facts.default_sampler,
            loaded=self._loaded(entry),
            fingerprints=dict(entry.fingerprints),
            aliases=entry.aliases,
        )

    def _loaded(self, entry: Entry) -> tuple[LoadedView, ...]:
        parts = {entry.part(component) for component in Component}
        found = []
        for lease in self._state.ledger.leases():
            component = lease.part.rpartition("/")[2]
            if lease.part in parts and lease.phase is LeasePhase.HELD:
                found.append(
                    LoadedView(
                        worker=lease.holder,
                        component=Component(component),
                        execution=lease.execution,
                        card_bytes=lease.card_bytes,
                        ram_bytes=lease.ram_bytes,
                    )
                )
        return tuple(found)

    def residency(self) -> ResidencyView:
        """What is warm here and how long the queue is."""
        queued, running = self._counts()
        return ResidencyView(
            models={
                name: tuple(dict.fromkeys(loaded.component for loaded in self._loaded(entry)))
                for name, entry in self.models_known.entries.items()
            },
            queued_count=queued,
            running_count=running,
            free_bytes={name: max(0, pool.free_bytes) for name, pool in self._state.ledger.pools.items()},
        )

    def _counts(self) -> tuple[int, int]:
        phases = [job.phase for job in self._state.jobs.values() if job.phase not in ENDED]
        queued = sum(phase in (JobPhase.QUEUED, JobPhase.PLANNING) for phase in phases)
        return queued, len(phases) - queued

    # --- health

    def health(self) -> HealthView:
        """The server's own state; standing problems make it `degraded`."""
        problems = tuple(text for text in self.trouble.values() if text)
        queued, _ = self._counts()
        return HealthView(
            status="degraded" if problems else "ok",
            version=__version__,
            pid=os.getpid(),
            uptime_ms=self.clock.now_ms() - self.started_at_ms,
            engine_build=self.engine_build,
            device=self.premises.engine_name,
            queued_count=queued,
            workers=self._workers(),
            problems=problems,
        )

    def _workers(self) -> tuple[WorkerView, ...]:
        named = self.supervisor.named()
        return tuple(
            WorkerView(
                name=worker.name,
                kind=worker.kind.value,
                pid=named[worker.name][1].pid if worker.name in named else 0,
                incarnation=worker.incarnation,
                state=worker.phase.value,
                card=worker.card,
                job=worker.job,
                memory_bytes=self._memory(worker.name),
                last_error=self.supervisor.last_errors.get(worker.name, ""),
            )
            for worker in self._state.workers.values()
        )

    def _memory(self, holder: str) -> Mapping[str, Mapping[str, int]]:
        held: dict[str, dict[str, int]] = {}
        for lease in self._state.ledger.of(holder):
            for name, amount_bytes in ((lease.card, lease.card_bytes), (RAM, lease.ram_bytes)):
                if name and amount_bytes and lease.is_charged:
                    parts = held.setdefault(name, {})
                    parts[lease.part] = parts.get(lease.part, 0) + amount_bytes
        return held

    def metrics(self) -> MetricsView:
        """Counters and gauges, named as Prometheus has it."""
        queued, running = self._counts()
        samples: list[tuple[str, Mapping[str, str], float]] = [
            ("tidegate_jobs_queued", {}, queued),
            ("tidegate_jobs_running", {}, running),
            ("tidegate_events_handled_total", {}, self.shell.handled_count),
            ("tidegate_uptime_seconds", {}, (self.clock.now_ms() - self.started_at_ms) / 1000),
        ]
        outcomes = [frame.outcome for entry in self.book.entries() for frame in entry.frames]
        samples += [
            ("tidegate_images_ended", {"outcome": phase.value}, outcomes.count(phase)) for phase in ENDED
        ]
        for pool in self._state.ledger.pools.values():
            for what, amount_bytes in (
                ("total", pool.descriptor.total_bytes),
                ("used", _used_bytes(pool)),
                ("charged", pool.charged_bytes),
                ("reserved", pool.reserved_bytes),
                ("foreign", pool.foreign_bytes),
                ("headroom", pool.headroom_bytes),
            ):
                samples.append((f"tidegate_memory_{what}_bytes", {"pool": pool.name}, amount_bytes))
        for worker in self._state.workers.values():
            labels = {"worker": worker.name, "kind": worker.kind.value}
            samples.append(("tidegate_worker_incarnation", labels, worker.incarnation))
        return MetricsView(samples=(*samples, *self._llms.metrics()))


def _bytes(pool: Pool, lease: Lease) -> int:
    if pool.name == RAM:
        return lease.ram_bytes
    return lease.card_bytes if lease.card == pool.name else 0


def _used_bytes(pool: Pool) -> int:
    """What the last sample showed; what was seen of ours and what is foreign."""
    seen_bytes = sum(pool.seen.values()) if pool.sight is Sight.PER_PROCESS else pool.charged_bytes
    return seen_bytes + pool.foreign_bytes
