"""The metrics of this process as one JSON object: counters since its start, of which the reader makes rates.

They are those of `/metrics`, read from the same registry; who watches many processes reads them there. Knows no HTTP.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Protocol

from prometheus_client.metrics_core import Metric
from pydantic import BaseModel, ConfigDict

STATES = ("closed", "half_open", "open")


class Registry(Protocol):
    """Where metrics come from."""

    def collect(self) -> Iterable[Metric]:
        """The present values."""


class _Out(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)


class Distribution(_Out):
    """A histogram."""

    count: int
    sum: float
    bounds: list[float]
    """Upper bounds; what is above the last one is in `count` alone."""
    counts: list[int]
    """Observations up to each bound, all smaller ones included."""


class RouteTraffic(_Out):
    """Requests of one operation. Only those of the API: no pages, probes and metrics."""

    method: str
    route: str
    statuses: dict[str, int]
    seconds: Distribution


class SourceTraffic(_Out):
    """Lists by who made them."""

    source: str
    fallback_reason: str | None
    """Why it was not the best source; null when it was."""
    lists: int


class StageTraffic(_Out):
    """A stage of the model, whose calls requests share."""

    stage: str
    batch_size: Distribution
    wait_seconds: Distribution
    waiting: int
    """Requests that wait now."""


class StoreTraffic(_Out):
    """The store as this process sees it."""

    errors: int
    """Requests that it did not answer."""
    offline_running: bool | None
    """Whether the offline store is written here; null where another process does."""
    lag_entries: int | None
    """Entries of the event log that the offline store lacks; null where this process does not know."""
    lag_seconds: float | None


class Traffic(_Out):
    """What this process has done since its start. Rates are differences of two answers by the time between them."""

    at: float
    """Seconds since 1970 UTC."""
    started: float | None
    """When the process started; counters begin again at 0 then. Null where the system does not say."""
    in_flight: int
    """Requests in progress, this one included."""
    routes: list[RouteTraffic]
    sources: list[SourceTraffic]
    certified: dict[str, int]
    """Lists whose search tells whether they are proven to be exact: `yes` and `no`."""
    stages: list[StageTraffic]
    shed: dict[str, int]
    """Requests refused before any work, by reason."""
    refused: dict[str, int]
    """Requests refused by the guards, by reason."""
    events: dict[str, int]
    """By outcome."""
    store: StoreTraffic
    breakers: dict[str, str]
    """`closed`, `half_open` or `open`, by the part that each is around."""
    drift: dict[str, float | None]
    """Jensen-Shannon distance, 0 to 1, of the items that are recommended from those of the first hour, over popularity
    deciles and first codes; null until there are enough items."""


def traffic_of(registry: Registry, now: float | None = None) -> Traffic:
    """The summary of a registry with the metrics of `serving.metrics` and `serving.path_metrics`.

    Args:
        registry: of the service.
        now: seconds since 1970 UTC; the present when None.
    """
    found = _Values(registry.collect())
    running = found.one("recsys_offline_running")
    entries = found.one("recsys_offline_lag_entries")
    return Traffic(
        at=time.time() if now is None else now,
        started=found.one("process_start_time_seconds"),
        in_flight=int(found.one("recsys_requests_in_flight") or 0),
        routes=_routes(found),
        sources=[
            SourceTraffic(source=labels["source"], fallback_reason=labels["fallback_reason"] or None, lists=int(value))
            for labels, value in found.of("recsys_recommendations_total")
        ],
        certified=found.by("recsys_lists_certified_total", "certified"),
        stages=_stages(found),
        shed=found.by("recsys_requests_shed_total", "reason"),
        refused=found.by("recsys_refused_total", "reason"),
        events=found.by("recsys_events_total", "outcome"),
        store=StoreTraffic(
            errors=int(found.one("recsys_store_errors_total") or 0),
            offline_running=None if running is None else bool(running),
            lag_entries=None if entries is None else int(entries),
            lag_seconds=found.one("recsys_offline_lag_seconds"),
        ),
        breakers={labels["part"]: STATES[int(value)] for labels, value in found.of("recsys_breaker_state")},
        drift={labels["over"]: _finite(value) for labels, value in found.of("recsys_recommendation_drift")},
    )


class _Values:
    """Samples by name."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._samples: defaultdict[str, list[tuple[dict[str, str], float]]] = defaultdict(list)
        for metric in metrics:
            for sample in metric.samples:
                self._samples[sample.name].append((sample.labels, sample.value))

    def of(self, name: str) -> list[tuple[dict[str, str], float]]:
        """Labels and values of a metric."""
        return self._samples[name]

    def one(self, name: str) -> float | None:
        """The value of a metric without labels; None where it is not there or not a number."""
        return next((_finite(value) for _, value in self._samples[name]), None)

    def by(self, name: str, label: str) -> dict[str, int]:
        """The counts of a metric by its one label."""
        return {labels[label]: int(value) for labels, value in self._samples[name]}

    def distributions(self, name: str) -> Iterator[tuple[dict[str, str], Distribution]]:
        """Each histogram of a metric by its labels."""
        buckets: defaultdict[tuple[tuple[str, str], ...], list[tuple[float, int]]] = defaultdict(list)
        for labels, value in self._samples[f"{name}_bucket"]:
            rest = tuple(sorted(each for each in labels.items() if each[0] != "le"))
            buckets[rest].append((float(labels["le"]), int(value)))
        sums = {tuple(sorted(labels.items())): value for labels, value in self._samples[f"{name}_sum"]}
        for key, found in buckets.items():
            ordered = sorted(found)
            yield (
                dict(key),
                Distribution(
                    count=ordered[-1][1],
                    sum=sums[key],
                    bounds=[bound for bound, _ in ordered[:-1]],
                    counts=[count for _, count in ordered[:-1]],
                ),
            )


def _routes(found: _Values) -> list[RouteTraffic]:
    statuses: defaultdict[tuple[str, str], dict[str, int]] = defaultdict(dict)
    for labels, value in found.of("recsys_requests_total"):
        statuses[labels["method"], labels["route"]][labels["status"]] = int(value)
    return [
        RouteTraffic(
            method=labels["method"],
            route=labels["route"],
            statuses=statuses[labels["method"], labels["route"]],
            seconds=seconds,
        )
        for labels, seconds in found.distributions("recsys_request_seconds")
        if labels["route"].startswith("/v1/")
    ]


def _stages(found: _Values) -> list[StageTraffic]:
    waits = {labels["stage"]: waited for labels, waited in found.distributions("recsys_queue_wait_seconds")}
    depths = {labels["stage"]: int(value) for labels, value in found.of("recsys_queue_depth")}
    return [
        StageTraffic(
            stage=labels["stage"],
            batch_size=sizes,
            wait_seconds=waits[labels["stage"]],
            waiting=depths.get(labels["stage"], 0),
        )
        for labels, sizes in found.distributions("recsys_batch_size")
        if labels["stage"] in waits
    ]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
