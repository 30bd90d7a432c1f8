"""Splits of hand-made logs, and the global-time split against a row-by-row reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from recsys.data import DataConfig, Examples, Interactions, Split, SplitConfig, make_split
from recsys.data.interactions import SCHEMA
from recsys.data.sequences import Sequences
from recsys.data.split import SplitProtocol
from recsys.errors import ArtifactError, DataError

Log = list[tuple[list[int], list[int] | None]]


def log(users: Log, num_items: int = 50) -> Interactions:
    """One (items, times) pair a user."""
    rows = [
        (user, item, "view", None, None if times is None else times[position], position)
        for user, (items, times) in enumerate(users)
        for position, item in enumerate(items)
    ]
    return Interactions(
        frame=pl.DataFrame(rows, schema=SCHEMA, orient="row"),
        user_ids=[f"u{user}" for user in range(len(users))],
        num_items=num_items,
    )


def cases(examples: Examples) -> list[tuple[int, list[int], int]]:
    histories = [items.tolist() for items in examples.histories]
    return list(zip(examples.histories.users.tolist(), histories, examples.targets.tolist(), strict=True))


LEAVE_LAST_OUT = DataConfig()
GLOBAL_TIME = DataConfig(split=SplitConfig(kind="global_time", valid_from=100, test_from=200))  # type: ignore[arg-type]


def test_leave_last_out_takes_the_last_two_items() -> None:
    split = make_split(log([([1, 2, 3, 4], None), ([5, 6], None), ([7, 8, 9], None), ([10], None)]), LEAVE_LAST_OUT)
    # Whoever has no case is training as a whole.
    assert [items.tolist() for items in split.train] == [[1, 2], [5, 6], [7], [10]]
    assert split.train.users.tolist() == [0, 1, 2, 3]
    assert cases(split.valid) == [(0, [1, 2], 3), (2, [7], 8)]
    assert cases(split.test) == [(0, [1, 2, 3], 4), (2, [7, 8], 9)]
    assert split.num_items == 50
    assert split.protocol.num_left_out_users == 2
    assert split.protocol.num_train_interactions == 6
    assert split.protocol.tie_order == "given positions"
    assert not split.protocol.has_repeats


def test_protocol_counts_ties_and_notices_repeats() -> None:
    split = make_split(log([([1, 2, 1, 4], [10, 10, 11, 12]), ([5, 6, 7, 8], [12, 13, 14, 14])]), LEAVE_LAST_OUT)
    assert split.protocol.tie_share == 0.5
    assert split.protocol.has_repeats
    assert split.protocol.tie_order == "source"


def test_protocol_prints_the_seed_of_shuffled_ties() -> None:
    config = DataConfig(tie_order="shuffle", tie_seed=7)
    assert make_split(log([([1, 2, 3], [1, 1, 1])]), config).protocol.tie_order == "shuffle (seed 7)"


def test_global_time_trains_before_the_first_moment_only() -> None:
    users: Log = [
        ([1, 2, 3, 4, 5], [10, 99, 100, 199, 200]),  # a case in both windows
        ([6, 7], [50, 250]),  # a test case only
        ([8], [150]),  # no history before its only item
        ([9, 10], [150, 160]),  # not in training, but its first valid item is history of the second
        ([11], [50]),  # training only
    ]
    split = make_split(log(users), GLOBAL_TIME)
    assert [items.tolist() for items in split.train] == [[1, 2], [6], [11]]
    assert cases(split.valid) == [(0, [1, 2, 3], 4), (3, [9], 10)]
    assert cases(split.test) == [(0, [1, 2, 3, 4], 5), (1, [6], 7)]
    assert (split.protocol.valid_from, split.protocol.test_from) == (100, 200)
    assert split.protocol.num_left_out_users == 2


@pytest.mark.parametrize("seed", range(5))
def test_global_time_equals_a_reference_that_goes_row_by_row(seed: int) -> None:
    rng = np.random.default_rng(seed)
    users: Log = [
        (rng.integers(50, size=n).tolist(), np.sort(rng.integers(300, size=n)).tolist())
        for n in rng.integers(1, 12, size=40)
    ]
    train: list[list[int]] = []
    valid: list[tuple[int, list[int], int]] = []
    test: list[tuple[int, list[int], int]] = []
    for user, (items, times) in enumerate(users):
        assert times is not None
        if known := [item for item, time in zip(items, times, strict=True) if time < 100]:
            train.append(known)
        for window, start, end in ((valid, 100, 200), (test, 200, 300)):
            inside = [place for place, time in enumerate(times) if start <= time < end]
            if inside and inside[-1] > 0:
                window.append((user, items[: inside[-1]], items[inside[-1]]))
    split = make_split(log(users), GLOBAL_TIME)
    assert [items.tolist() for items in split.train] == train
    assert cases(split.valid) == valid
    assert cases(split.test) == test


def test_fractions_place_the_moments_by_interaction_count() -> None:
    users: Log = [([1, 2, 3, 4, 5], [0, 2, 4, 6, 8]), ([6, 7, 8, 9, 10], [1, 3, 5, 7, 9])]
    config = DataConfig(split=SplitConfig(kind="global_time", valid_fraction=0.2, test_fraction=0.2))
    split = make_split(log(users), config)
    assert (split.protocol.valid_from, split.protocol.test_from) == (6, 8)
    assert split.protocol.num_train_interactions == 6


def test_moments_without_zone_are_utc() -> None:
    split = SplitConfig.model_validate(
        {"kind": "global_time", "valid_from": "2020-01-01", "test_from": "2020-01-02T00:00:00+01:00"}
    )
    assert split.valid_from is not None
    assert split.test_from is not None
    assert split.valid_from.timestamp() == 1577836800
    assert split.test_from.timestamp() == 1577836800 + 23 * 3600


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"kind": "global_time", "valid_from": "2020-01-01"}, "together"),
        ({"kind": "global_time", "valid_from": "2020-01-02", "test_from": "2020-01-01"}, "must lie before"),
        ({"kind": "leave_last_out", "valid_from": 1, "test_from": 2}, "valid_from and test_from would be ignored"),
        ({"valid_fraction": 0.2}, "valid_fraction would be ignored by kind: leave_last_out; remove, or set kind"),
        ({"test_fraction": 0.2}, "test_fraction would be ignored by kind: leave_last_out"),
        ({"kind": "global_time", "valid_fraction": 0.5, "test_fraction": 0.5}, "below 1"),
        ({"kind": "random"}, "leave_last_out"),
    ],
)
def test_impossible_split_settings_are_refused(split: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SplitConfig.model_validate(split)


def test_empty_parts_are_named_with_counts() -> None:
    with pytest.raises(DataError, match=r"none of 2 users has them .the longest history has 2"):
        make_split(log([([1, 2], None), ([3], None)]), LEAVE_LAST_OUT)
    with pytest.raises(DataError, match="none of the 3 interactions has one; use leave_last_out"):
        make_split(log([([1, 2, 3], None)]), GLOBAL_TIME)
    with pytest.raises(DataError, match=r"no test cases .* the log runs from 10 to 120 with 3 interactions of 1 users"):
        make_split(log([([1, 2, 3], [10, 20, 120])]), GLOBAL_TIME)


def test_saved_split_loads_unchanged(tmp_path: Path) -> None:
    split = make_split(log([([1, 2, 3, 4], [1, 2, 3, 4]), ([7, 8, 9], [1, 2, 3])]), LEAVE_LAST_OUT)
    split.save(tmp_path / "split")
    loaded = Split.load(tmp_path / "split")
    assert loaded.protocol == split.protocol
    assert loaded.num_items == split.num_items
    for mine, theirs in ((split.valid, loaded.valid), (split.test, loaded.test)):
        assert cases(mine) == cases(theirs)
    np.testing.assert_array_equal(loaded.train.items, split.train.items)
    np.testing.assert_array_equal(loaded.train.offsets, split.train.offsets)
    np.testing.assert_array_equal(loaded.train.users, split.train.users)


def test_saved_split_of_equally_long_histories_loads_unchanged(tmp_path: Path) -> None:
    split = Split(
        train=Sequences.from_lists([[0], [1]]),
        valid=Examples(histories=Sequences.from_lists([[0], [1]]), targets=np.array([1, 2])),
        test=Examples(histories=Sequences.from_lists([[0, 1], [1, 2]]), targets=np.array([2, 0])),
        num_items=3,
        protocol=SplitProtocol(
            kind="leave_last_out", tie_order="source", has_repeats=False, tie_share=0.0, num_train_interactions=2
        ),
    )
    split.save(tmp_path / "split")
    loaded = Split.load(tmp_path / "split")
    assert [values.tolist() for values in loaded.train] == [[0], [1]]
    assert [values.tolist() for values in loaded.test.histories] == [[0, 1], [1, 2]]


def test_damaged_split_is_named(tmp_path: Path) -> None:
    make_split(log([([1, 2, 3], None)]), LEAVE_LAST_OUT).save(tmp_path / "split")
    (tmp_path / "split" / "train.parquet").write_bytes(b"")
    with pytest.raises(ArtifactError, match="cannot read the split"):
        Split.load(tmp_path / "split")


def test_held_out_items_leave_training_and_stay_in_the_cases(tmp_path: Path) -> None:
    interactions = log([([5, 6, 7, 8, 9], None), ([6, 5, 9, 8, 7], None), ([5, 5, 5, 5, 6], None)], num_items=10)
    plain = make_split(interactions, LEAVE_LAST_OUT)
    split = make_split(interactions, DataConfig(split=SplitConfig(held_out_items=0.3, held_out_seed=1)))
    assert len(split.held_out) == 3
    assert split.protocol.num_held_out_items == 3
    assert not np.isin(split.train.items, split.held_out).any()
    kept = plain.train.items[~np.isin(plain.train.items, split.held_out)]
    assert split.train.items.tolist() == kept.tolist()
    assert split.protocol.num_train_interactions == len(kept)
    assert cases(split.test) == cases(plain.test)
    assert sorted([*split.held_out, *split.fitted_items]) == list(range(10))
    split.save(tmp_path / "split")
    assert Split.load(tmp_path / "split").held_out.tolist() == split.held_out.tolist()


def test_holding_out_nearly_everything_is_an_error() -> None:
    interactions = log([([0, 1, 2], None)], num_items=3)
    with pytest.raises(DataError, match=r"held_out_items=0\.99 leaves no training interaction"):
        make_split(interactions, DataConfig(split=SplitConfig(held_out_items=0.99)))


def test_renumbering_drops_items_without_an_index_and_keeps_every_sequence() -> None:
    sequences = Sequences.from_lists([[0, 1, 2], [1], [2, 0]], users=[7, 8, 9])
    renumbered = sequences.renumber(np.array([1, -1, 0]))
    assert [items.tolist() for items in renumbered] == [[1, 0], [], [0, 1]]
    assert renumbered.users.tolist() == [7, 8, 9]


def test_what_models_are_fitted_on_is_shared_until_items_are_held_out() -> None:
    whole = make_split(log([([1, 2, 3, 4], None)]), LEAVE_LAST_OUT)
    rows = np.arange(whole.num_items)
    assert whole.of_fitted(rows) is rows
    assert whole.fitted_train is whole.train
    assert whole.fitted_valid is whole.valid
