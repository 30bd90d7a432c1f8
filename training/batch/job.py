"""One shard of the lists for all users: from a number to a file.

A shard is Parquet, a row a user in the input's order: `user_id`; `item_ids` and `scores`, best first; `source`, what
made the list (`fusion`, `generator`, or `popularity` for a history without an item of the catalogue; scores of
different sources are not comparable); `model_version`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from recsys.bundle import Bundle, read_manifest
from recsys.data.sequences import IntArray, Sequences
from recsys.data.tables import as_ids, raise_bad_rows
from recsys.errors import DataError
from recsys.generator.constraints import Constraints
from recsys.generator.gpu import Device
from recsys.generator.recommendations import Recommender
from recsys.retrieval.single import SourceRecommender
from recsys.retrieval.sources import FloatArray, PopularitySource
from training.batch.shards import Job, Shard, load_bundle
from training.batch.tables import open_table

_COLUMNS = ("user_id", "item_ids")


@dataclass(frozen=True, kw_only=True)
class BatchJob(Job):
    """Lists for users, whose histories the table has."""

    unit = "users"
    reads = "histories"
    counts = ("num_users", "num_popular", "num_unknown")
    """`num_popular`: users without an item that the catalogue has, whose list is of the most popular ones.
    `num_unknown`: entries of histories that the catalogue does not have; they were left out."""

    k: int
    include_seen: bool
    """Whether items of the history may be listed."""
    device: Device
    """Where the generator computes; it changes the last digits of scores, and not which job this is."""

    @property
    def facts(self) -> dict[str, Any]:
        """See `Job`."""
        return {**super().facts, "k": self.k, "include_seen": self.include_seen}

    @property
    def not_on_ray(self) -> str | None:
        """See `Job`."""
        if self.device == "cpu":
            return None
        return "device: Ray's workers make lists on the CPU; leave out --device cuda or --engine ray"

    def make(self, number: int) -> Shard:
        """See `Job` and `make_shard`."""
        return make_shard(self, number)


def plan_job(
    bundle: Path,
    out: Path,
    *,
    histories: str | None = None,
    k: int,
    shard_size: int,
    include_seen: bool,
    device: Device = "cpu",
) -> BatchJob:
    """The job, after one pass over the histories.

    Args:
        bundle: the directory of a bundle.
        out: where the shards will be.
        histories: Parquet with `user_id` and `item_ids` (oldest first): a place as in `open_table`; None: the
            histories of the bundle.
        k: length of the lists.
        shard_size: users of a shard.
        include_seen: whether items of the history may be listed.
        device: where the generator computes.

    Raises:
        ArtifactError: there is no bundle.
        DataError: see `open_table`.
    """
    bundle = bundle.absolute()
    return BatchJob(
        bundle=bundle,
        model_version=read_manifest(bundle).model_version,
        table=open_table(str(bundle / "histories.parquet") if histories is None else histories, _COLUMNS, "a user"),
        out=out.absolute(),
        k=k,
        shard_size=shard_size,
        include_seen=include_seen,
        device=device,
    )


def make_shard(job: BatchJob, number: int) -> Shard:
    """Write shard `number` (from 0), whole or not at all; an earlier file of that number is replaced.

    Raises:
        ArtifactError: the bundle is another one by now.
        ConfigError: there is no such device.
        DataError: a column has another type, or a user has no list of items.
    """
    lists = _loaded(job.bundle, job.model_version, job.device)
    rows, source = job.rows(number), job.table.source
    users = as_ids(rows["user_id"], source)
    histories, num_unknown = lists.numbered(rows["item_ids"], source)
    items, scores = lists.of(histories, job.k, include_seen=job.include_seen)
    is_popular = histories.lengths == 0
    frame = pl.DataFrame(
        {
            "user_id": users,
            "item_ids": _ragged(lists.item_ids.gather(np.maximum(items, 0).ravel()), items),
            "scores": _ragged(pl.Series(scores.ravel()), items),
            "source": np.where(is_popular, "popularity", lists.source),
        }
    )
    return job.write(number, frame, {"num_popular": int(is_popular.sum()), "num_unknown": num_unknown})


class _Lists:
    """What a bundle lists: its fusion, or its generator, and where it knows no item of a history, popularity."""

    def __init__(self, bundle: Bundle, device: Device) -> None:
        if device == "cuda":
            bundle = bundle.on_gpu()
        self.source = "generator" if bundle.fused is None else "fusion"
        self.item_ids = bundle.catalog.frame["item_id"]
        self._catalog = bundle.catalog
        self._best: Recommender = bundle.recommender if bundle.fused is None else bundle.fused
        self._popular = SourceRecommender(PopularitySource(bundle.item_counts), bundle.catalog.num_items)

    def numbered(self, item_ids: pl.Series, table: str) -> tuple[Sequences, int]:
        """Histories by the catalogue's numbers, without items that it does not have, and how many those were."""
        if not isinstance(item_ids.dtype, pl.List):
            raise DataError(f"{table}: column 'item_ids' must hold lists of item ids, found {item_ids.dtype}")
        raise_bad_rows(table, item_ids, item_ids.is_null(), "has no value")
        lengths = item_ids.list.len()
        named = (
            as_ids(item_ids.filter(lengths > 0).explode(), table) if lengths.sum() else pl.Series([], dtype=pl.String)
        )
        numbers = self._catalog.find(named)
        places = Sequences(
            users=np.arange(len(item_ids)),
            offsets=np.concatenate([[0], lengths.cast(pl.Int64).cum_sum().to_numpy()]),
            items=np.arange(len(numbers)),
        )
        return places.renumber(numbers), int((numbers < 0).sum())

    def of(self, histories: Sequences, k: int, *, include_seen: bool) -> tuple[IntArray, FloatArray]:
        """int64 and float32 [B, k], -1 and -inf where there are no more."""
        items = np.full((len(histories), k), -1, dtype=np.int64)
        scores = np.full((len(histories), k), -np.inf, dtype=np.float32)
        for recommender, asked in ((self._best, histories.lengths > 0), (self._popular, histories.lengths == 0)):
            rows = np.flatnonzero(asked)
            if len(rows):
                some = histories.select(rows)
                constraints = Constraints() if include_seen else Constraints(deny=list(some))
                found = recommender.recommend(some, k, constraints=constraints)
                items[rows], scores[rows] = found.items, found.scores
        return items, scores


@lru_cache(maxsize=1)
def _loaded(path: Path, model_version: str, device: Device) -> _Lists:
    """Once a process."""
    return _Lists(load_bundle(path, model_version), device)


def _ragged(values: pl.Series, items: IntArray) -> pl.Series:
    """`values` (one for each of `items`, int64 [B, k]) as B lists without those whose item is -1."""
    frame = pl.DataFrame({"list": values.reshape(items.shape).arr.to_list(), "length": (items >= 0).sum(axis=1)})
    return frame.select(pl.col("list").list.head(pl.col("length"))).to_series()
