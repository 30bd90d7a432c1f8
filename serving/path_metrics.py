"""What the request path counts and times: batches, queues, fallbacks, breakers, models. In Prometheus' terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from serving.breaker import State

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_SIZES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)
_STATES: dict[State, int] = {"closed": 0, "half_open": 1, "open": 2}


class PathMetrics:
    """Metrics of the way from a request to its list. Labels are names of stages and reasons, never ids."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._depth = Gauge("recsys_queue_depth", "Requests that wait for a stage.", ("stage",), registry=registry)
        self._wait_seconds = Histogram(
            "recsys_queue_wait_seconds",
            "Time a request waited until its batch began.",
            ("stage",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._batch_size = Histogram(
            "recsys_batch_size", "Requests of a batch.", ("stage",), buckets=_SIZES, registry=registry
        )
        self._batch_seconds = Histogram(
            "recsys_batch_seconds", "Time of a batch.", ("stage",), buckets=_SECONDS, registry=registry
        )
        self._dropped = Counter(
            "recsys_stage_drops",
            "Requests that got no time of a stage: overloaded, expired, stalled.",
            ("stage", "reason"),
            registry=registry,
        )
        self._shed = Counter(
            "recsys_requests_shed", "Requests refused with 503 before any work.", ("reason",), registry=registry
        )
        self._pending = Gauge(
            "recsys_requests_pending", "Admitted recommendations that are not answered yet.", registry=registry
        )
        self._breaker = Gauge("recsys_breaker_state", "0 closed, 1 half open, 2 open.", ("part",), registry=registry)
        self._opened = Counter("recsys_breaker_opens", "Times a breaker opened.", ("part",), registry=registry)
        self._agreement = Histogram(
            "recsys_shadow_agreement",
            "Share of a list that the shadow's list has too.",
            ("model_version",),
            buckets=tuple(tenth / 10 for tenth in range(11)),
            registry=registry,
        )
        self._explanations = Counter(
            "recsys_explanations", "Reasons by intent, by where their text is from.", ("origin",), registry=registry
        )
        self._explanation_faults = Counter(
            "recsys_explanation_faults",
            "Texts that were not shown, by the principle of the rubric that they broke.",
            ("principle",),
            registry=registry,
        )
        self._shadow_failures = Counter(
            "recsys_shadow_failures",
            "Requests that the shadow did not answer.",
            ("model_version",),
            registry=registry,
        )

    def queue_changed(self, stage: str, depth: int) -> None:
        """So many requests wait now."""
        self._depth.labels(stage).set(depth)

    def batch_ran(self, stage: str, size: int, seconds: float, waited_s: Sequence[float]) -> None:
        """A batch ended."""
        self._batch_size.labels(stage).observe(size)
        self._batch_seconds.labels(stage).observe(seconds)
        waits = self._wait_seconds.labels(stage)
        for wait in waited_s:
            waits.observe(wait)

    def dropped(self, stage: str, reason: str) -> None:
        """A request got no model time."""
        self._dropped.labels(stage, reason).inc()

    def shed(self, reason: Literal["overloaded", "draining"]) -> None:
        """A request was refused."""
        self._shed.labels(reason).inc()

    def pending(self, count: int) -> None:
        """So many requests are admitted and not answered."""
        self._pending.set(count)

    def breaker_changed(self, part: str, state: State) -> None:
        """The breaker around `part` is in `state` now."""
        self._breaker.labels(part).set(_STATES[state])
        if state == "open":
            self._opened.labels(part).inc()

    def shadow_agreed(self, model_version: str, overlap: float) -> None:
        """The shadow's list shares so much with the one that was given."""
        self._agreement.labels(model_version).observe(overlap)

    def explained(self, origins: Mapping[str, int]) -> None:
        """Reasons by intent, by where their text is from."""
        for origin, count in origins.items():
            self._explanations.labels(origin).inc(count)

    def explanation_broke(self, principle: str) -> None:
        """A text is not shown."""
        self._explanation_faults.labels(principle).inc()

    def shadow_failed(self, model_version: str) -> None:
        """The shadow had no list."""
        self._shadow_failures.labels(model_version).inc()
