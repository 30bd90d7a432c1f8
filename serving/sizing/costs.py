"""What an answer, an event, a user and an item cost, as `recsys bench sizing` has measured it on one core."""

from __future__ import annotations

import math
from functools import cache
from importlib.resources import files

from pydantic import Field

from recsys.config import StrictConfig

SMALLEST = 10_000
"""Items of the smallest catalogue that was measured; smaller ones are taken to cost as much."""


class Costs(StrictConfig):
    """The coefficients of the cost model. CPU times are of one core of `cpu`."""

    cpu: str
    """Where they were measured."""
    answer_ms: float = Field(gt=0)
    """CPU of the service for a list of the generator, read from the store, in a catalogue of `SMALLEST` items."""
    answer_ms_per_doubling: float = Field(ge=0)
    """What each doubling of the catalogue adds."""
    fusion_ms: float = Field(ge=0)
    """What the sources beside the generator and the ranker add."""
    event_ms: float = Field(gt=0)
    """CPU of the service for an event, of requests with one."""
    store_read_ms: float = Field(gt=0)
    """CPU of the store for the state of a user."""
    store_event_ms: float = Field(gt=0)
    """CPU of the store for an event."""
    offline_event_ms: float = Field(gt=0)
    """CPU of the writer of the offline store for an event."""
    p99_ms_by_load: tuple[tuple[float, float], ...]
    """Shares of the throughput at which a service is saturated, rising, and the 99th percentile of the answers' time
    there."""
    service_mib: float = Field(gt=0)
    """Memory of a machine's processes with one worker, its items aside."""
    worker_mib: float = Field(gt=0)
    """Of each further worker."""
    item_bytes: float = Field(gt=0)
    """Of an item, shared by the workers of a machine, its vector aside."""
    item_bytes_per_dim: float = Field(ge=0)
    """Of each component of its vector."""
    worker_item_bytes: float = Field(ge=0)
    """What of that each further worker has once more: its ids, its title and what the model computes of it."""
    user_bytes: float = Field(gt=0)
    """Of the store, for a user; for its events see below."""
    event_bytes: float = Field(gt=0)
    """Of the store, for an event that it remembers: of a user's history, or not older than ids of events are kept."""
    offline_event_bytes: float = Field(gt=0)
    """Of Parquet, for an event."""
    answer_bytes: float = Field(gt=0)
    """Of an answer with ten items on the wire."""

    def answer_cpu_ms(self, items: int, *, fusion: bool) -> float:
        """CPU of the service for one answer."""
        doublings = math.log2(max(items, SMALLEST) / SMALLEST)
        return self.answer_ms + self.answer_ms_per_doubling * doublings + (self.fusion_ms if fusion else 0.0)

    def catalogue_mib(self, items: int, dim: int, workers: int) -> float:
        """Memory of the items, with vectors of `dim` components, on a machine with so many workers."""
        own = (workers - 1) * self.worker_item_bytes
        return items * (self.item_bytes + self.item_bytes_per_dim * dim + own) / 2**20

    def load_for(self, p99_ms: float) -> float | None:
        """The largest share of saturation at which the 99th percentile is at most `p99_ms`; None: at none.

        Between the loads that were measured it is taken to rise evenly.
        """
        (load, least), *further = self.p99_ms_by_load
        if p99_ms < least:
            return None
        below = (load, least)
        for load, milliseconds in further:
            if p99_ms < milliseconds:
                return below[0] + (load - below[0]) * (p99_ms - below[1]) / (milliseconds - below[1])
            below = (load, milliseconds)
        return below[0]


@cache
def measured() -> Costs:
    """The coefficients that come with the package."""
    return Costs.model_validate_json(files("serving").joinpath("sizing", "measured.json").read_bytes())
