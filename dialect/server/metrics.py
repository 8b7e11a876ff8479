"""What /metrics tells: the figures of the engine, and how long clients wait."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from dialect.engine.answers import Answer
from dialect.engine.engine import Engine

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
_GAUGES = {"waiting", "running", "pages", "pages_in_use", "executables"}


class Metrics:
    """Counters and histograms of one server, and what its engine counts itself."""

    def __init__(self, engine: Engine) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_Figures(engine))
        about = {"registry": self.registry}
        self.requests = Counter("shardwright_requests", "by status", ["status"], **about)
        name, what = "shardwright_first_token_seconds", "from arrival to the first token"
        self.first = Histogram(name, what, buckets=_SECONDS, **about)
        name, what = "shardwright_token_seconds", "between the tokens of an answer, on average"
        self.between = Histogram(name, what, buckets=(0.001, 0.003, *_SECONDS[:6]), **about)

    def ended(self, answer: Answer) -> None:
        """Notes how long an answer took."""
        request, count = answer.request, len(answer.tokens)
        if count:
            self.first.observe(request.first_token_at - request.arrived)
        if count > 1 and request.ended_at == request.ended_at:
            self.between.observe((request.ended_at - request.first_token_at) / (count - 1))

    def text(self) -> bytes:
        """All of it, in the text format of Prometheus."""
        return generate_latest(self.registry)


class _Figures(Collector):
    """The engine's own figures, as they are when they are asked for."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def collect(self) -> Iterator[Any]:
        for name, value in self.engine.figures().items():
            kind = GaugeMetricFamily if name in _GAUGES else CounterMetricFamily
            yield kind(f"shardwright_{name}", name.replace("_", " "), value=value)
