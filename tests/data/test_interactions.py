from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from recsys.data import Interactions
from recsys.data.interactions import SCHEMA
from recsys.errors import ArtifactError, DataError


def interactions(users: list[int], items: list[int], positions: list[int], num_items: int = 9) -> Interactions:
    columns = {
        "user": users,
        "item": items,
        "event_type": ["view"] * len(users),
        "rating": [None] * len(users),
        "timestamp": [None] * len(users),
        "position": positions,
    }
    return Interactions(frame=pl.DataFrame(columns, schema=SCHEMA), user_ids=["ann", "bob", "cy"], num_items=num_items)


def test_sequences_are_one_per_user_oldest_first() -> None:
    sequences = interactions([0, 0, 0, 2], [5, 3, 5, 8], [0, 1, 2, 0]).sequences()
    assert [items.tolist() for items in sequences] == [[5, 3, 5], [], [8]]
    assert sequences.users.tolist() == [0, 1, 2]


def test_saved_interactions_load_unchanged(tmp_path: Path) -> None:
    saved = interactions([0, 1, 1], [1, 2, 3], [0, 0, 1])
    saved.save(tmp_path / "log")
    loaded = Interactions.load(tmp_path / "log")
    assert loaded.frame.equals(saved.frame)
    assert (loaded.user_ids, loaded.num_items) == (saved.user_ids, saved.num_items)
    assert not loaded.has_timestamps
    assert loaded.user_index == {"ann": 0, "bob": 1, "cy": 2}


@pytest.mark.parametrize(
    ("users", "items", "positions", "message"),
    [
        ([0, 3], [1, 1], [0, 0], "user indices must lie in 0..2"),
        ([0, 1], [1, 9], [0, 0], "item indices must lie in 0..8"),
        ([1, 0], [1, 1], [0, 0], "sorted by user"),
        ([0, 0], [1, 1], [0, 2], "positions 0, 1, 2"),
        ([0, 1], [1, 1], [0, 1], "positions 0, 1, 2"),
    ],
)
def test_broken_order_or_indices_are_refused(
    users: list[int], items: list[int], positions: list[int], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        interactions(users, items, positions)


def test_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="nowhere"):
        Interactions.load(tmp_path / "nowhere")
