"""Metrics: the gate's counters and gauges, and those of HTTP, in the text format of Prometheus.

Owns `/metrics`. What is counted behind the gate is the runtime's business.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tidegate.api.native.envelope import documented
from tidegate.runtime.gate import Gate

router = APIRouter(tags=["house"])


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}, "description": "Metrics."}, **documented()},
)
async def get_metrics(request: Request) -> Response:
    """Counters and gauges for Prometheus."""
    return Response(generate_latest(request.app.state.metrics), media_type=CONTENT_TYPE_LATEST)


class GateCollector(Collector):
    """Asks the gate whenever it is asked itself, so that nothing is kept twice."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def collect(self) -> Iterable[Metric]:
        """One family for each name; a name that ends in `_total` is a counter."""
        families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
        for name, labels, value in self._gate.metrics().samples:
            if name not in families:
                made = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
                families[name] = made(name, name.replace("_", " "), labels=sorted(labels))
            families[name].add_metric([labels[key] for key in sorted(labels)], value)
        return families.values()


class Counting:
    """A layer of the application that counts and times what goes through it."""

    def __init__(self, app: ASGIApp, registry: CollectorRegistry) -> None:
        self._app = app
        self._requests = Counter(
            "tidegate_http_requests", "Requests by route and status.", ["route", "status"], registry=registry
        )
        self._seconds = Histogram(
            "tidegate_http_first_byte_seconds",
            "Time to the first byte.",
            ["route"],
            registry=registry,
            buckets=(0.001, 0.002, 0.005, 0.01, 0.05, 0.25, 1, 5, 30, 120),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on and count its answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                # The pattern of the route, not the path: paths are without number.
                route = getattr(scope.get("route"), "path", "none")
                self._requests.labels(route, str(message["status"])).inc()
                self._seconds.labels(route).observe(time.perf_counter() - began)
            await send(message)

        await self._app(scope, receive, counted)


def registry_of(gate: Gate) -> CollectorRegistry:
    """A registry of its own for one application."""
    registry = CollectorRegistry()
    registry.register(GateCollector(gate))
    return registry
