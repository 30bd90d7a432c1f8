"""What the service counts and times, in Prometheus' terms. One registry an app: no global state."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from feature_store.log import Lag
from recsys.data.sequences import IntArray
from recsys.generator.graphs import GraphCounts
from serving.drift import NUM_DECILES, ServedDrift, popularity_deciles
from serving.runtime import ModelInfo, RecommenderRuntime
from serving.tracing import record_stages

CONTENT_TYPE = CONTENT_TYPE_LATEST

MODEL_REQUESTS = "recsys_model_requests_in_flight"

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """The service's metrics. Labels take few values: routes are templates, never paths or ids.

    Args:
        info: the model that answers; None in a process that answers nobody.
    """

    def __init__(self, info: ModelInfo | None) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "recsys_requests", "Requests by route and status.", ("method", "route", "status"), registry=self.registry
        )
        self._request_seconds = Histogram(
            "recsys_request_seconds",
            "Time to answer a request.",
            ("method", "route"),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._stage_seconds = Histogram(
            "recsys_stage_seconds",
            "Time of a step of a recommendation.",
            ("stage",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._recommendations = Counter(
            "recsys_recommendations",
            "Lists by their source, and why it was not the best one.",
            ("source", "fallback_reason"),
            registry=self.registry,
        )
        self._certified = Counter(
            "recsys_lists_certified",
            "Lists of a search that tells whether they are proven to be exact: yes, no.",
            ("certified",),
            registry=self.registry,
        )
        self._events = Counter("recsys_events", "Events by outcome.", ("outcome",), registry=self.registry)
        self._items = Counter(
            "recsys_recommended_items",
            "Items in lists, by the tenth of the catalogue they belong to: 0 holds the most popular.",
            ("popularity_decile",),
            registry=self.registry,
        )
        self._drift = Gauge(
            "recsys_recommendation_drift",
            "Jensen-Shannon distance (0 to 1) of the items in lists of the last hours from those of the first hour, "
            "over popularity deciles and over first codes of semantic IDs; NaN until both have 1000 items.",
            ("over",),
            registry=self.registry,
        )
        self._deciles: npt.NDArray[np.uint8] | None = None
        self._drifts: tuple[ServedDrift, ...] = ()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._refused = Counter(
            "recsys_refused",
            "Requests refused by the guards: no_key, unknown_key, role, rate.",
            ("reason",),
            registry=self.registry,
        )
        self._in_flight = Gauge("recsys_requests_in_flight", "Requests in progress.", registry=self.registry)
        self._store_errors = Counter(
            "recsys_store_errors", "Requests that the store did not answer.", registry=self.registry
        )
        self._slates = Counter(
            "recsys_slates",
            "Lists shown to known users: logged; left_out, where the user is erased or nobody reads the log; dropped, "
            "where too many wait; failed.",
            ("outcome",),
            registry=self.registry,
        )
        self._offline_running = Gauge(
            "recsys_offline_running",
            "1 while this process writes the offline store, 0 once it cannot, NaN where it is not meant to.",
            registry=self.registry,
        )
        self._offline_entries = Gauge(
            "recsys_offline_lag_entries",
            "Entries of the event log that are not in the offline store; NaN where nobody knows.",
            registry=self.registry,
        )
        self._offline_seconds = Gauge(
            "recsys_offline_lag_seconds", "Age of the oldest of them; NaN where nobody knows.", registry=self.registry
        )
        self._offline_running.set(math.nan)
        self.set_offline_lag(None)
        self._catalog_version = Gauge(
            "recsys_catalog_version",
            "Version of the catalogue; each change of items counts one.",
            registry=self.registry,
        )
        self._catalog_items = Gauge(
            "recsys_catalog_items",
            "Items by what becomes of them: generatable; retrievable, which wait for a semantic ID; removed.",
            ("status",),
            registry=self.registry,
        )
        self._histories = Gauge(
            "recsys_histories_share",
            "Share of the data set's users whose histories are in the store; NaN where no data set is served.",
            registry=self.registry,
        )
        self._histories.set(math.nan)
        self._model = Gauge(
            "recsys_model_info", "Always 1; says what is served.", ("name", "model_version"), registry=self.registry
        )
        if info is not None:
            self.set_model(info)

    def set_model(self, info: ModelInfo) -> None:
        """Another model answers from now on."""
        self._model.clear()
        self._model.labels(info.name, info.model_version).set(1)

    def set_catalogue(self, runtime: RecommenderRuntime) -> None:
        """The active model answers over this version of its catalogue from now on."""
        counts = runtime.count_items()
        self._catalog_version.set(runtime.catalog_version)
        for status, count in counts.items():
            self._catalog_items.labels(status).set(count)
        if self._deciles is not None and len(self._deciles) < runtime.catalog.num_items:
            new = np.arange(len(self._deciles), runtime.catalog.num_items)
            # New items are the least popular ones, and move no other to another tenth.
            deciles = np.full(len(new), NUM_DECILES - 1, dtype=self._deciles.dtype)
            self._deciles = np.append(self._deciles, deciles)
            popularity, topic = self._drifts
            popularity.grow(deciles)
            topic.grow(runtime.codes.take(new)[:, 0])

    def observe_request(self, *, method: str, route: str, status: int, seconds: float) -> None:
        """Count an answered request, whatever its status."""
        self._requests.labels(method, route, str(status)).inc()
        self._request_seconds.labels(method, route).observe(seconds)

    def observe_recommendation(
        self,
        *,
        source: str,
        fallback_reason: str | None,
        timings_ms: Mapping[str, float],
        certified: bool | None = None,
        items: Sequence[int] = (),
    ) -> None:
        """Count a list, whether it is certified (None: nobody looked), its items (dense indices) and the time of its
        steps, which become spans of the trace too."""
        record_stages(timings_ms)
        if self._deciles is not None:
            for item in items:
                self._items.labels(str(self._deciles[item])).inc()
            for drift in self._drifts:
                drift.observe(items)
        self._recommendations.labels(source, fallback_reason or "").inc()
        if certified is not None:
            self._certified.labels("yes" if certified else "no").inc()
        for stage, milliseconds in timings_ms.items():
            self._stage_seconds.labels(stage).observe(milliseconds / 1000)

    def watch_items(self, item_counts: IntArray, codes: IntArray) -> None:
        """Compare the items that are served from now on with those of the hour that begins now.

        Args:
            item_counts: int64 [num_items], interactions of each item of the catalogue.
            codes: int64 [num_items, levels], its semantic ID.
        """
        self._deciles = popularity_deciles(item_counts).astype(np.uint8)
        popularity, topic = ServedDrift(self._deciles), ServedDrift(codes[:, 0])
        self._drift.labels("popularity").set_function(popularity.distance)
        self._drift.labels("first_code").set_function(topic.distance)
        self._drifts = (popularity, topic)

    def watch_models(self, in_flight: Callable[[], Mapping[str, int]]) -> None:
        """Say from now on how many requests each model in memory is answering, by its version."""
        self.registry.register(_ModelRequests(in_flight))

    def watch_graphs(self, counts: Callable[[], GraphCounts | None]) -> None:
        """Say from now on how much the generator does by CUDA graphs; None: it has none."""
        self.registry.register(_Graphs(counts))

    def count_events(self, outcome: str, count: int) -> None:
        """Count events with one outcome."""
        self._events.labels(outcome).inc(count)

    def count_refused(self, reason: str) -> None:
        """Count a request that a guard refused."""
        self._refused.labels(reason).inc()

    def count_store_error(self) -> None:
        """Count a request, or a look at the store's health, that the store did not answer."""
        self._store_errors.inc()

    def count_slates(self, outcome: Literal["logged", "left_out", "dropped", "failed"], count: int) -> None:
        """Count lists that were shown, by what became of their record."""
        self._slates.labels(outcome).inc(count)

    def watch_histories(self, share: Callable[[], float]) -> None:
        """Say from now on which share of the data set's users is in the store."""
        self._histories.set_function(share)

    def watch_offline(self, is_running: Callable[[], bool]) -> None:
        """Say from now on whether this process writes the offline store."""
        self._offline_running.set_function(is_running)

    def set_offline_lag(self, lag: Lag | None) -> None:
        """How far the offline store is behind; None where nobody knows."""
        self._offline_entries.set(math.nan if lag is None else lag.entries)
        self._offline_seconds.set(math.nan if lag is None else lag.seconds)

    @contextmanager
    def in_flight(self) -> Iterator[None]:
        """Count a request as in progress for as long as this lasts, however it ends."""
        self._in_flight.inc()
        try:
            yield
        finally:
            self._in_flight.dec()

    def render(self, worker: str | None = None) -> bytes:
        """The text that Prometheus scrapes.

        Args:
            worker: names this process in a label of every series; None where there is no other.
        """
        return generate_latest(self.registry if worker is None else _Labelled(self.registry, worker))


class _ModelRequests(Collector):
    """Requests by the model that answers them; one that leaves the memory leaves the metric."""

    def __init__(self, in_flight: Callable[[], Mapping[str, int]]) -> None:
        self._in_flight = in_flight

    def collect(self) -> Iterator[Metric]:
        """See `Collector`."""
        found = GaugeMetricFamily(
            MODEL_REQUESTS, "Requests that each model in memory is answering.", labels=["model_version"]
        )
        for version, count in self._in_flight().items():
            found.add_metric([version], count)
        yield found


class _Graphs(Collector):
    """Passes over the generator that answers, where it has CUDA graphs; another model begins anew."""

    def __init__(self, counts: Callable[[], GraphCounts | None]) -> None:
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        """See `Collector`."""
        counts = self._counts()
        if counts is None:
            return
        passes = CounterMetricFamily(
            "recsys_cuda_passes",
            "Passes over the generator: by a CUDA graph (graph), or without one and why.",
            labels=["how"],
        )
        for how, count in {"graph": counts.replayed, **counts.eager}.items():
            passes.add_metric([how], count)
        yield passes
        yield GaugeMetricFamily("recsys_cuda_graphs", "CUDA graphs that were recorded.", value=counts.recorded)


class _Labelled(Collector):
    """The metrics of a registry with one more label."""

    def __init__(self, registry: CollectorRegistry, worker: str) -> None:
        self._registry = registry
        self._worker = worker

    def collect(self) -> Iterator[Metric]:
        """See `Collector`."""
        for metric in self._registry.collect():
            metric.samples = [
                sample._replace(labels={**sample.labels, "worker": self._worker}) for sample in metric.samples
            ]
            yield metric


def merge(texts: Sequence[str]) -> str:
    """One text of several that `Metrics.render` gave, with each metric described once."""
    described: dict[str, list[str]] = {}
    for text in texts:
        samples: list[str] = []
        head: list[str] = []
        for line in text.splitlines():
            if line.startswith("# HELP"):
                head = [line]
            elif line.startswith("# TYPE"):
                samples = described.setdefault("\n".join([*head, line]), [])
            else:
                samples.append(line)
    return "".join("\n".join([head, *samples]) + "\n" for head, samples in described.items())
