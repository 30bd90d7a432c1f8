"""The metrics of the service as one JSON object: counters since its start, of which the reader makes rates.

They are those of `/metrics`. Where several processes of one service have counted, each series has a label `worker`, and
they are taken together here. Knows no HTTP.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator

from prometheus_client.metrics_core import Metric
from pydantic import BaseModel, ConfigDict

from serving.metrics import MODEL_REQUESTS

_STATES = ("closed", "half_open", "open")
_WORKER = "worker"


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
    """The store as the service sees it."""

    errors: int
    """Requests that it did not answer."""
    offline_running: bool | None
    """Whether this service writes the offline store; null where another program does."""
    lag_entries: int | None
    """Entries of the event log that the offline store lacks; null where this service does not know."""
    lag_seconds: float | None


class Traffic(_Out):
    """What the service has done since its start. Rates are differences of two answers by the time between them."""

    at: float
    """Seconds since 1970 UTC."""
    started: float | None
    """When the process started, the first one of several. Null where the system does not say."""
    processes: list[float]
    """When each process started whose counters are in here, ascending. Where that differs from an earlier answer, one
    was replaced, and began at 0, or did not tell in time: differences to that answer say nothing."""
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


def traffic_of(metrics: Iterable[Metric], now: float | None = None) -> Traffic:
    """The summary of the metrics of `serving.metrics` and `serving.path_metrics`.

    Args:
        metrics: as a registry collects them.
        now: seconds since 1970 UTC; the present when None.
    """
    metrics = list(metrics)
    found = _Values(metrics)
    starts = sorted(
        sample.value for metric in metrics for sample in metric.samples if sample.name == "process_start_time_seconds"
    )
    running = found.one("recsys_offline_running", max)
    entries = found.one("recsys_offline_lag_entries", max)
    return Traffic(
        at=time.time() if now is None else now,
        started=min(starts, default=None),
        processes=starts,
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
            lag_seconds=found.one("recsys_offline_lag_seconds", max),
        ),
        breakers={labels["part"]: _STATES[int(value)] for labels, value in found.of("recsys_breaker_state", max)},
        drift={labels["over"]: _finite(value) for labels, value in found.of("recsys_recommendation_drift", max)},
    )


def model_requests(metrics: Iterable[Metric]) -> dict[str, int]:
    """Requests in progress by the version of the model that answers them, in all processes together."""
    return _Values(metrics).by(MODEL_REQUESTS, "model_version")


_Labels = tuple[tuple[str, str], ...]
_Together = Callable[[list[float]], float]


class _Values:
    """Samples by name, those of all processes together."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._samples: defaultdict[str, defaultdict[_Labels, list[float]]] = defaultdict(lambda: defaultdict(list))
        for metric in metrics:
            for sample in metric.samples:
                labels = tuple(sorted(each for each in sample.labels.items() if each[0] != _WORKER))
                self._samples[sample.name][labels].append(sample.value)

    def of(self, name: str, together: _Together = sum) -> list[tuple[dict[str, str], float]]:
        """Labels and values of a metric; NaN where no process knows it."""
        known = {
            labels: [value for value in values if math.isfinite(value)]
            for labels, values in self._samples[name].items()
        }
        return [(dict(labels), together(values) if values else math.nan) for labels, values in known.items()]

    def one(self, name: str, together: _Together = sum) -> float | None:
        """The value of a metric without labels; None where it is not there or not a number."""
        return next((_finite(value) for _, value in self.of(name, together)), None)

    def by(self, name: str, label: str) -> dict[str, int]:
        """The counts of a metric by its one label."""
        return {labels[label]: int(value) for labels, value in self.of(name)}

    def distributions(self, name: str) -> Iterator[tuple[dict[str, str], Distribution]]:
        """Each histogram of a metric by its labels."""
        buckets: defaultdict[_Labels, list[tuple[float, int]]] = defaultdict(list)
        for labels, value in self.of(f"{name}_bucket"):
            bound = float(labels.pop("le"))
            buckets[tuple(labels.items())].append((bound, int(value)))
        sums = {tuple(labels.items()): value for labels, value in self.of(f"{name}_sum")}
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
