"""Vectors and semantic IDs of items: those of the bundle, and of any others by their text.

A shard is Parquet, a row an item in the input's order: `item_id`; `vector` (float32 [dim], of the space of the bundle's
embeddings); `codes` (int32 [levels]); `is_known`, whether the bundle has the item; `model_version`. Of an item that it
has, both are the bundle's own. Another's vector follows from its text (`ItemEmbeddings.match`; further modalities count
as unknown), and its codes are the nearest ones to that: they MAY COLLIDE, with those of the bundle's items and of each
other. Unique ones need all that are taken: `recsys tokenizer retokenize` gives them to a whole catalogue, and a service
to each item that comes (`serving.placing`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import polars as pl

from recsys.bundle import Bundle, read_manifest
from recsys.data import Catalog
from recsys.data.tables import as_ids, as_text, as_text_list
from recsys.encoder import ItemEmbeddings
from recsys.encoder.config import split_segment
from recsys.encoder.text import item_texts
from recsys.errors import DataError
from training.batch.shards import Job, Shard, load_bundle
from training.batch.tables import column_names, open_table

_CATALOG = "catalog.parquet"
_EMBEDDINGS = "embeddings"


@dataclass(frozen=True, kw_only=True)
class VectorJob(Job):
    """See the module."""

    unit = "items"
    reads = "items"
    counts = ("num_items", "num_known", "num_without_text")
    """`num_known`: items of the bundle. `num_without_text`: others whose text is empty, so that their vectors say
    nothing."""

    def make(self, number: int) -> Shard:
        """See `Job`.

        Raises:
            ArtifactError: the bundle is another one by now.
            AssetError: an item is new, and the text encoder can neither be fetched nor found.
            DataError: a column has another type.
        """
        bundle = _loaded(self.bundle, self.model_version)
        rows = self.rows(number)
        item_ids = as_ids(rows["item_id"], self.table.source)
        items = bundle.catalog.find(item_ids)
        is_known = items >= 0
        vectors = np.empty((len(items), bundle.embeddings.dim), dtype=np.float32)
        codes = np.empty((len(items), bundle.semantic_ids.codes.shape[1]), dtype=np.int64)
        vectors[is_known] = bundle.embeddings.vectors[items[is_known]]
        codes[is_known] = bundle.semantic_ids.codes[items[is_known]]
        texts: list[str] = []
        if not is_known.all():
            new = rows.with_columns(item_ids).filter(~is_known)
            texts = item_texts(self._catalog(new, bundle.catalog.frame.schema), bundle.embeddings.encoder)
            vectors[~is_known] = bundle.embeddings.match(bundle.text_encoder.encode_few(texts))
            codes[~is_known] = bundle.tokenizer.encode_raw(vectors[~is_known])
        frame = pl.DataFrame(
            {
                "item_id": item_ids,
                "vector": vectors,
                "codes": codes.astype(np.int32),
                "is_known": is_known,
            }
        )
        return self.write(
            number, frame, {"num_known": int(is_known.sum()), "num_without_text": sum(not text for text in texts)}
        )

    def _catalog(self, rows: pl.DataFrame, schema: pl.Schema) -> Catalog:
        """The rows as a catalogue of this schema, null in what is not read."""
        columns = [
            self._as(dtype, rows[name]) if name in self.table.columns else pl.Series(name, [None] * len(rows), dtype)
            for name, dtype in schema.items()
        ]
        return Catalog(frame=pl.DataFrame(columns))

    def _as(self, dtype: pl.DataType, column: pl.Series) -> pl.Series:
        if column.name == "item_id":
            return column
        if dtype == pl.String:
            return as_text(column, self.table.source)
        if not isinstance(column.dtype, pl.List):
            raise DataError(
                f"{self.table.source}: column {column.name!r} must hold lists of text, found {column.dtype}"
            )
        return as_text_list(column, self.table.source, "")


def plan_vectors(bundle: Path, out: Path, *, items: str | None = None, shard_size: int) -> VectorJob:
    """The job, after one pass over the items.

    Args:
        bundle: the directory of a bundle.
        out: where the shards will be.
        items: Parquet with `item_id` and the columns of the bundle's catalogue that its encoder reads, null where
            unknown: a place as in `open_table`; None: the catalogue itself.
        shard_size: items of a shard.

    Raises:
        ArtifactError: there is no bundle.
        DataError: see `open_table`.
    """
    bundle = bundle.absolute()
    model_version = read_manifest(bundle).model_version
    catalog = str(bundle / _CATALOG)
    template = ItemEmbeddings.load(bundle / _EMBEDDINGS).encoder.template
    there = column_names(catalog)
    read = [name for name in (split_segment(segment)[1] for segment in template) if name in there]
    columns = list(dict.fromkeys(["item_id", *read]))
    return VectorJob(
        bundle=bundle,
        model_version=model_version,
        table=open_table(catalog if items is None else items, columns, "an item"),
        out=out.absolute(),
        shard_size=shard_size,
    )


@lru_cache(maxsize=1)
def _loaded(path: Path, model_version: str) -> Bundle:
    """Once a process."""
    return load_bundle(path, model_version)
