"""Shards made by Ray Data, which places the processes, watches them and starts them again. Knows no job."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from recsys.errors import RecsysError
from training.batch.shards import Shard
from training.ray_cluster import ray_cluster


def made(make: Callable[[int], Shard], numbers: Sequence[int], workers: int) -> Iterator[Shard]:
    """Shards as they are finished, by at most so many actors of the cluster of RAY_ADDRESS, or of this machine.

    Raises:
        ConfigError: Ray is not installed.
        RecsysError: what `make` raises.
    """
    with ray_cluster("--engine ray"):
        import ray

        ray.data.DataContext.get_current().enable_progress_bars = False
        # A block a shard: each is handed on, and lost with its actor, alone.
        shards = ray.data.from_items([{"number": number} for number in numbers], override_num_blocks=len(numbers)).map(
            _Maker,
            fn_constructor_args=(make,),
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(workers, len(numbers))),
        )
        # Without prefetching: a shard that waits for the next one would be made again after a kill.
        for table in shards.iter_batches(batch_size=None, prefetch_batches=0, batch_format="pyarrow"):
            for row in table.to_pylist():
                if row["error"] is not None:
                    raise row["error"]
                yield Shard(**row["shard"])


class _Maker:
    """An actor."""

    def __init__(self, make: Callable[[int], Shard]) -> None:
        self._make = make

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        # An error of the input comes back as it is, and is not tried again.
        try:
            return {"shard": asdict(self._make(row["number"])), "error": None}
        except RecsysError as error:
            return {"shard": None, "error": error}
