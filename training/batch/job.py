"""One shard of the lists for all users: from a number to a file. Any process can make any shard, and knows no other.

A shard is Parquet, a row a user in the input's order: `user_id`; `item_ids` and `scores`, best first; `source`, what
made the list (`fusion`, `generator`, or `popularity` for a history without an item of the catalogue; scores of
different sources are not comparable); `model_version`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
import torch

from recsys.bundle import Bundle, read_manifest
from recsys.data.sequences import IntArray, Sequences
from recsys.data.tables import as_ids, raise_bad_rows
from recsys.errors import ArtifactError, ConfigError, DataError
from recsys.files import atomic_path, sha256_file
from recsys.generator.any_order import AnyOrderModel
from recsys.generator.constraints import Constraints
from recsys.generator.placement import place
from recsys.generator.recommendations import Recommender
from recsys.generator.recommender import GenerativeRecommender
from recsys.retrieval.single import SourceRecommender
from recsys.retrieval.sources import FloatArray, PopularitySource

Device = Literal["cpu", "cuda"]

_COLUMNS = ("user_id", "item_ids")


@dataclass(frozen=True, kw_only=True)
class BatchJob:
    """All that a shard depends on; it can be pickled."""

    bundle: Path
    model_version: str
    """That the bundle must have."""
    histories: str
    """What polars scans: a path, a pattern or a URL of Parquet files."""
    num_users: int
    """Rows of `histories`."""
    content: str
    """Names the content of `histories`: a hash over its rows in their order, by polars."""
    out: Path
    """An absolute path."""
    k: int
    shard_size: int
    """Users of a shard, at most."""
    include_seen: bool
    """Whether items of the history may be listed."""
    device: Device
    """Where the generator computes; it changes the last digits of scores, and not which job this is."""

    @property
    def num_shards(self) -> int:
        """How many files there will be."""
        return -(-self.num_users // self.shard_size)


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A finished file."""

    number: int
    file: str
    """Its name in the folder."""
    num_users: int
    num_popular: int
    """Users without an item that the catalogue has, whose list is of the most popular ones."""
    num_unknown: int
    """Entries of histories that the catalogue does not have; they were left out."""
    sha256: str


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
        histories: Parquet with `user_id` and `item_ids` (oldest first): a file, a folder, a pattern, or a URL such as
            `s3://bucket/users/` (a folder ends with `/`); None: the histories of the bundle.
        k: length of the lists.
        shard_size: users of a shard.
        include_seen: whether items of the history may be listed.
        device: where the generator computes.

    Raises:
        ArtifactError: there is no bundle.
        DataError: the histories cannot be read, lack a column, have no rows, or name a user twice or not at all.
    """
    bundle = bundle.absolute()
    model_version = read_manifest(bundle).model_version
    source = str(bundle / "histories.parquet") if histories is None else _pattern(histories)
    with _reading(source):
        frame = pl.scan_parquet(source)
        names = frame.collect_schema().names()
        if missing := [name for name in _COLUMNS if name not in names]:
            raise DataError(f"{source}: no column {missing[0]!r}; there are {', '.join(names)}")
        row = (
            frame.select(_COLUMNS)
            .with_row_index()
            .select(
                num_users=pl.len(),
                distinct=pl.col("user_id").n_unique(),
                nameless=pl.col("user_id").null_count(),
                content=pl.struct(pl.all()).hash().sum(),
            )
            .collect(engine="streaming")
            .row(0, named=True)
        )
    if not row["num_users"]:
        raise DataError(f"{source}: the table has no rows")
    if row["nameless"]:
        raise DataError(f"{source}: column 'user_id' has no value in {row['nameless']} of {row['num_users']} rows")
    if twice := row["num_users"] - row["distinct"]:
        raise DataError(f"{source}: {twice} of {row['num_users']} rows name a user again; give each user one row")
    return BatchJob(
        bundle=bundle,
        model_version=model_version,
        histories=source,
        num_users=row["num_users"],
        content=f"{row['content']:016x}",
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
    with _reading(job.histories):
        rows = pl.scan_parquet(job.histories).select(_COLUMNS).slice(number * job.shard_size, job.shard_size).collect()
    users = as_ids(rows["user_id"], job.histories)
    histories, num_unknown = lists.numbered(rows["item_ids"], job.histories)
    items, scores = lists.of(histories, job.k, include_seen=job.include_seen)
    is_popular = histories.lengths == 0
    frame = pl.DataFrame(
        {
            "user_id": users,
            "item_ids": _ragged(lists.item_ids.gather(np.maximum(items, 0).ravel()), items),
            "scores": _ragged(pl.Series(scores.ravel()), items),
            "source": np.where(is_popular, "popularity", lists.source),
        }
    ).with_columns(model_version=pl.lit(job.model_version))
    path = job.out / f"part-{number:05d}.parquet"
    with atomic_path(path) as temporary:
        frame.write_parquet(temporary)
        digest = sha256_file(temporary)
    return Shard(
        number=number,
        file=path.name,
        num_users=len(frame),
        num_popular=int(is_popular.sum()),
        num_unknown=num_unknown,
        sha256=digest,
    )


class _Lists:
    """What a bundle lists: its fusion, or its generator, and where it knows no item of a history, popularity."""

    def __init__(self, bundle: Bundle, device: Device) -> None:
        self.source = "generator" if bundle.fused is None else "fusion"
        self.item_ids = bundle.catalog.frame["item_id"]
        self._catalog = bundle.catalog
        self._best: Recommender = bundle.recommender if bundle.fused is None else bundle.fused
        if device == "cuda":
            generator = _on_gpu(bundle.recommender)
            self._best = generator if bundle.fused is None else bundle.fused.with_generator(generator)
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
    bundle = Bundle.load(path)
    if bundle.manifest.model_version != model_version:
        raise ArtifactError(
            f"bundle: {path} is {bundle.manifest.model_version} by now, the job began with {model_version}; "
            "start anew in another folder"
        )
    return _Lists(bundle, device)


def _on_gpu(generator: GenerativeRecommender) -> GenerativeRecommender:
    """The generator on the first GPU, with graphs where its shape has some."""
    if not torch.cuda.is_available():
        raise ConfigError("device: PyTorch finds no CUDA device here; leave out --device cuda")
    place(generator.model, torch.device("cuda"))
    return generator if isinstance(generator.model, AnyOrderModel) else generator.with_graphs()


@contextmanager
def _reading(source: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{source}: cannot be read as Parquet: {str(error).splitlines()[0]}") from error


def _pattern(histories: str) -> str:
    """What polars scans, from anywhere; a folder's other files, such as a marker of success, are no part of it."""
    is_url = "://" in histories
    is_folder = histories.endswith("/") or (not is_url and Path(histories).is_dir())
    place = histories.rstrip("/") if is_url else str(Path(histories).absolute())
    return f"{place}/**/*.parquet" if is_folder else place


def _ragged(values: pl.Series, items: IntArray) -> pl.Series:
    """`values` (one for each of `items`, int64 [B, k]) as B lists without those whose item is -1."""
    frame = pl.DataFrame({"list": values.reshape(items.shape).arr.to_list(), "length": (items >= 0).sum(axis=1)})
    return frame.select(pl.col("list").list.head(pl.col("length"))).to_series()
