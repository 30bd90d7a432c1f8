"""The catalogue: which items exist and what is known about them. Knows nothing about users or events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl

from recsys.data.sequences import IntArray
from recsys.errors import ArtifactError, DataError
from recsys.files import atomic_path

_REQUIRED = {"item_id": pl.String(), "title": pl.String(), "categories": pl.List(pl.String())}
_TEXT_DTYPES = (pl.String(), pl.List(pl.String()))


@dataclass(frozen=True, kw_only=True, eq=False)
class Catalog:
    """All items. An item's row number is its dense index, 0 to `num_items - 1`.

    Raises:
        DataError: the frame breaks the schema described at `frame`.
    """

    frame: pl.DataFrame
    """`item_id` (String, unique, no nulls), `title` (String, null where unknown), `categories` (List[String],
    empty where unknown), then any further text columns of the source (String or List[String])."""

    def __post_init__(self) -> None:
        schema = self.frame.schema
        for column, required in _REQUIRED.items():
            if schema.get(column) != required:
                raise DataError(f"catalogue: column {column!r} must be {required}, found {schema.get(column)}")
        for column, dtype in schema.items():
            if dtype not in _TEXT_DTYPES:
                raise DataError(f"catalogue: column {column!r} must be text or a list of text, found {dtype}")
        ids = self.frame["item_id"]
        if ids.null_count():
            raise DataError(f"catalogue: {ids.null_count()} of {len(ids)} items have no item_id")
        if ids.n_unique() != len(ids):
            repeated = ids.filter(ids.is_duplicated())
            examples = ", ".join(map(repr, repeated.unique(maintain_order=True).head(3)))
            raise DataError(
                f"catalogue: {len(repeated)} of {len(ids)} rows share an item_id with another row, e.g. "
                f"{examples}; keep one row an item"
            )

    def __len__(self) -> int:
        return self.frame.height

    @property
    def num_items(self) -> int:
        """How many items there are."""
        return self.frame.height

    @cached_property
    def item_ids(self) -> list[str]:
        """The source's own ids, by dense index."""
        return self.frame["item_id"].to_list()

    @cached_property
    def titles(self) -> list[str | None]:
        """Titles by dense index; None where the source has none."""
        return self.frame["title"].to_list()

    @cached_property
    def _index(self) -> dict[str, int]:
        return {item_id: index for index, item_id in enumerate(self.item_ids)}

    def index_of(self, ids: Sequence[str]) -> IntArray:
        """int64 [len(ids)]: dense indices of the source's ids, -1 for an id that is not in the catalogue."""
        index = self._index
        return np.fromiter((index.get(item_id, -1) for item_id in ids), dtype=np.int64, count=len(ids))

    def save(self, path: Path) -> None:
        """Write one Parquet file, whole or not at all."""
        with atomic_path(path) as temporary:
            self.frame.write_parquet(temporary)

    @classmethod
    def load(cls, path: Path) -> Catalog:
        """Read what `save` wrote. Raises ArtifactError when the file is missing or damaged."""
        try:
            frame = pl.read_parquet(path)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise ArtifactError(f"cannot read the catalogue {path}: {error}") from error
        return cls(frame=frame)
