"""From what a service has to do to the machines that do it.

With C(N) the CPU of an answer in a catalogue of N items, u the share of saturation at which answers are in time, and
rates a second:

    workers        = ceil((answers * C(N) + events * C_event) / u)
    machines       = ceil(workers / cores) + spare
    memory         = service + (workers a machine - 1) * (worker + N * own item) + N * item
    store memory   = users * user + remembered events * event
    store shards   = ceil(16 / floor(16 / max((answers * C_read + events * C_append) / u_store,
                                              store memory / shard memory)))
    network        = answers * answer
    offline store  = events * event, a day

Users are divided over 16 parts (`feature_store.keys`), of which a shard has whole ones, at most one more than another:
more than 16 shards no cluster can use, and 9 to 15 carry no more than 8.

An event is remembered as long as it is in its user's history, and as long as its id is, 30 days; the larger number
counts. Nothing is said of GPUs, of training, or of models that were not measured.
"""

from __future__ import annotations

import math

from pydantic import Field

from feature_store.keys import SHARDS
from feature_store.online import EVENT_ID_LIFETIME_S
from recsys.config import StrictConfig
from recsys.errors import ConfigError
from serving.sizing.costs import Costs

_STORE_LOAD = 0.5
"""Share of a core that a shard of the store is given to do: it has one thread, and forks to save."""
_DAY_S = 86_400


class Needs(StrictConfig):
    """What the service has to do."""

    items: int = Field(ge=1)
    users: int = Field(ge=1)
    requests_per_second: float = Field(gt=0)
    """Lists, at the peak."""
    events_per_second: float = Field(default=0.0, ge=0)
    """At the peak; for what is kept, the mean is taken to be the peak."""
    p99_ms: float = Field(default=200.0, gt=0)
    """Within which 99 % of the answers must come, network aside."""
    history: int = Field(default=50, ge=1)
    """Events of a user that the store keeps, on the average."""
    dim: int = Field(default=384, ge=1)
    """Components of an item's vector."""
    fusion: bool = True
    """Whether lists are fused; else the generator makes them alone."""
    cores: int = Field(default=16, ge=1)
    """Of a machine."""
    memory_gib: float = Field(default=64.0, gt=0)
    """Of a machine."""
    shard_gib: float = Field(default=32.0, gt=0)
    """Of a shard of the store, at most; half of the memory of its machine, since it forks to save."""
    spare: int = Field(default=1, ge=0)
    """Machines that may fail without harm."""


class Plan(StrictConfig):
    """What that takes."""

    answer_cpu_ms: float
    load: float
    """Share of saturation at which the workers run at the peak."""
    workers: int
    machines: int
    """Of the API, spare ones included."""
    workers_per_machine: int
    machine_gib: float
    """Memory that each of them uses."""
    store_shards: int
    store_gib: float
    """Memory of all shards together."""
    offline_writer_cores: float
    offline_gib_per_day: float
    network_mbit_per_second: float
    """Out of the API."""


def plan(needs: Needs, costs: Costs) -> Plan:
    """The machines for `needs`.

    Raises:
        ConfigError: no number of such machines does it: answers cannot be so fast, or the catalogue or the users do
            not fit.
    """
    load = costs.load_for(needs.p99_ms)
    if load is None:
        raise ConfigError(
            f"plan: p99_ms: {needs.p99_ms:g} is less than the {costs.p99_ms_by_load[0][1]:g} ms of a service with "
            f"little to do on {costs.cpu}; allow more time, or measure on faster cores (recsys bench sizing)"
        )
    answer_ms = costs.answer_cpu_ms(needs.items, fusion=needs.fusion)
    busy = (needs.requests_per_second * answer_ms + needs.events_per_second * costs.event_ms) / 1000
    workers = math.ceil(busy / load)
    machines = math.ceil(workers / needs.cores)
    each = math.ceil(workers / machines)
    memory_mib = costs.service_mib + (each - 1) * costs.worker_mib + costs.catalogue_mib(needs.items, needs.dim, each)
    if memory_mib / 1024 > needs.memory_gib:
        raise ConfigError(
            f"plan: memory_gib: {each} workers with {needs.items} items take {memory_mib / 1024:.1f} GiB, more than "
            f"the {needs.memory_gib:g} of a machine; take larger ones, or fewer cores a machine"
        )
    remembered = max(needs.users * needs.history, needs.events_per_second * EVENT_ID_LIFETIME_S)
    store_gib = (needs.users * costs.user_bytes + remembered * costs.event_bytes) / 2**30
    store_busy = (
        needs.requests_per_second * costs.store_read_ms + needs.events_per_second * costs.store_event_ms
    ) / 1000
    if store_busy > SHARDS * _STORE_LOAD:
        raise ConfigError(
            f"plan: the store has {store_busy:.1f} seconds of work a second, and the {SHARDS} shards that users are "
            f"divided over do {SHARDS * _STORE_LOAD:g}; divide the users over several services with a store each"
        )
    if store_gib > SHARDS * needs.shard_gib:
        raise ConfigError(
            f"plan: shard_gib: the store takes {store_gib:.0f} GiB, and users are divided over {SHARDS} shards; allow "
            f"{math.ceil(store_gib / SHARDS)} GiB a shard, or divide the users over several services with a store each"
        )
    parts_a_shard = math.floor(SHARDS / max(store_busy / _STORE_LOAD, store_gib / needs.shard_gib))
    return Plan(
        answer_cpu_ms=answer_ms,
        load=load,
        workers=workers,
        machines=machines + needs.spare,
        workers_per_machine=each,
        machine_gib=memory_mib / 1024,
        store_shards=math.ceil(SHARDS / parts_a_shard),
        store_gib=store_gib,
        offline_writer_cores=needs.events_per_second * costs.offline_event_ms / 1000,
        offline_gib_per_day=needs.events_per_second * _DAY_S * costs.offline_event_bytes / 2**30,
        network_mbit_per_second=needs.requests_per_second * costs.answer_bytes * 8 / 1e6,
    )
