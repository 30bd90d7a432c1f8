"""The interaction log over dense indices, in its final order. Knows nothing about item content or splits."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl

from recsys.data.sequences import IntArray, Sequences, blocks
from recsys.errors import ArtifactError, DataError
from recsys.files import atomic_directory

SCHEMA = {
    "user": pl.Int64(),
    "item": pl.Int64(),
    "event_type": pl.String(),
    "rating": pl.Float64(),
    "timestamp": pl.Int64(),
    "position": pl.Int64(),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Interactions:
    """Who did what with which item, and in which order.

    Raises:
        DataError: the frame breaks the schema described at `frame`.
    """

    frame: pl.DataFrame
    """`user` (Int64 dense index), `item` (Int64 dense index), `event_type` (String), `rating` (Float64, null
    where unknown), `timestamp` (Int64 seconds UTC; all null when the source has order only), `position`
    (Int64, order within the user after ties were ordered, 0 = oldest); sorted by user, then position."""
    user_ids: list[str]
    """The source's own user ids, by dense index."""
    num_items: int
    """Size of the catalogue that `item` points into; items without any interaction count too."""

    def __post_init__(self) -> None:
        if dict(self.frame.schema) != SCHEMA:
            raise DataError(
                f"interactions: the columns must be {_names(SCHEMA)}, found {_names(dict(self.frame.schema))}"
            )
        required = self.frame.select("user", "item", "event_type", "position").null_count().row(0)
        if any(required):
            raise DataError("interactions: user, item, event_type and position must have no nulls")
        if self.frame.is_empty():
            return
        user, item, position = (self.frame[name].to_numpy() for name in ("user", "item", "position"))
        if user.min() < 0 or user.max() >= self.num_users:
            raise DataError(f"interactions: user indices must lie in 0..{self.num_users - 1}")
        if item.min() < 0 or item.max() >= self.num_items:
            raise DataError(f"interactions: item indices must lie in 0..{self.num_items - 1}")
        in_order = position[0] == 0
        for block in blocks(len(user) - 1):
            later = slice(block.start + 1, block.stop + 1)
            same = user[later] == user[block]
            in_order &= (user[later] >= user[block]).all()
            in_order &= (position[later] == np.where(same, position[block] + 1, 0)).all()
        if not in_order:
            raise DataError("interactions: rows must be sorted by user, with positions 0, 1, 2, ... within each")

    def __len__(self) -> int:
        return self.frame.height

    @property
    def num_users(self) -> int:
        """How many users there are."""
        return len(self.user_ids)

    @cached_property
    def has_timestamps(self) -> bool:
        """Whether the source says when things happened, not only in which order."""
        return self.frame.height > 0 and self.frame["timestamp"].null_count() == 0

    @cached_property
    def user_index(self) -> dict[str, int]:
        """Dense index by the source's user id."""
        return {user_id: index for index, user_id in enumerate(self.user_ids)}

    def sequences(self) -> Sequences:
        """One sequence a user, oldest first; sequence i belongs to user i."""
        users = self.frame["user"].to_numpy()
        offsets = np.zeros(self.num_users + 1, dtype=np.int64)
        np.cumsum(np.bincount(users, minlength=self.num_users), out=offsets[1:])
        return Sequences(
            users=np.arange(self.num_users),
            offsets=offsets,
            items=self.frame["item"].to_numpy(),
        )

    def of_users(self, users: IntArray) -> Interactions:
        """The log of some users, int64 and ascending, who are numbered anew; the catalogue stays."""
        index = np.full(self.num_users, -1, dtype=np.int64)
        index[users] = np.arange(len(users))
        frame = self.frame.with_columns(pl.Series("user", index[self.frame["user"].to_numpy()]))
        return Interactions(
            frame=frame.filter(pl.col("user") >= 0),
            user_ids=[self.user_ids[user] for user in users.tolist()],
            num_items=self.num_items,
        )

    def save(self, directory: Path) -> None:
        """Write `interactions.parquet`, `users.parquet` and `interactions.json`, whole or not at all."""
        with atomic_directory(directory) as temporary:
            self.frame.write_parquet(temporary / "interactions.parquet")
            users = pl.Series("user_id", self.user_ids, dtype=pl.String)
            users.to_frame().write_parquet(temporary / "users.parquet")
            (temporary / "interactions.json").write_text(json.dumps({"num_items": self.num_items}) + "\n")

    @classmethod
    def load(cls, directory: Path) -> Interactions:
        """Read what `save` wrote. Raises ArtifactError when a file is missing or damaged."""
        try:
            read = pl.read_parquet(directory / "interactions.parquet")
            # In one piece, so that arrays of them are no copies; one column after another.
            frame = pl.DataFrame([read.drop_in_place(name).rechunk() for name in read.columns])
            users = pl.read_parquet(directory / "users.parquet")["user_id"].to_list()
            num_items = int(json.loads((directory / "interactions.json").read_text())["num_items"])
        except (OSError, ValueError, KeyError, pl.exceptions.PolarsError) as error:
            raise ArtifactError(f"cannot read the interactions in {directory}: {error}") from error
        return cls(frame=frame, user_ids=users, num_items=num_items)


def _names(schema: dict[str, pl.DataType]) -> str:
    return ", ".join(f"{name} {dtype}" for name, dtype in schema.items())
