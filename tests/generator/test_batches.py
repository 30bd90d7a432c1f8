"""Windows and padding: every item is a target once, and nothing is lost or doubled."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.data.sequences import Sequences
from recsys.data.windows import Windows, cut_windows, pad_right, similar_lengths
from recsys.generator.batches import epoch_batches, history_batches, padded_windows

LENGTHS = st.lists(st.integers(0, 40), min_size=1, max_size=12)


@given(LENGTHS, st.integers(2, 15))
def test_every_item_is_a_target_exactly_once(lengths: list[int], max_items: int) -> None:
    total = sum(lengths)
    flat = np.split(np.arange(total), np.cumsum(lengths)[:-1])
    windows = cut_windows(Sequences.from_lists(flat), max_items)
    targets = [np.arange(first, end) for first, end in zip(windows.first_target, windows.end, strict=True)]
    assert (windows.end - windows.start <= max_items).all()
    assert sorted(np.concatenate(targets).tolist() if targets else []) == list(range(total))


def test_a_later_window_gives_its_targets_half_a_window_of_context() -> None:
    windows = cut_windows(Sequences.from_lists([np.arange(25)]), 10)
    context = windows.first_target - windows.start
    assert context.tolist() == [0, 5, 5, 5]


@pytest.mark.parametrize("positions", [1, 64, 100, 10_000])
def test_an_epoch_holds_every_window_once_in_an_order_that_its_seed_fixes(positions: int) -> None:
    windows = cut_windows(Sequences.from_lists([np.arange(1 + size % 60) for size in range(300)]), 100)
    lengths = windows.end - windows.start
    batches = epoch_batches(windows, positions, np.random.default_rng(3))
    assert sorted(np.concatenate(batches).tolist()) == list(range(300))
    assert all(len(batch) == 1 or len(batch) * lengths[batch].max() <= positions for batch in batches)
    again = epoch_batches(windows, positions, np.random.default_rng(3))
    assert all((left == right).all() for left, right in zip(batches, again, strict=True))


def test_padding_is_on_the_right() -> None:
    padded = pad_right(np.arange(10, 20), start=np.array([4, 0, 6]), lengths=np.array([2, 0, 1]))
    assert padded.tolist() == [[14, 15], [0, 0], [16, 0]]


def test_windows_are_padded_with_their_context_counted() -> None:
    sequences = Sequences.from_lists([np.arange(10, 16)])
    windows = cut_windows(sequences, 4)
    items, lengths, first = padded_windows(sequences, windows, np.array([1]))
    assert items.tolist() == [[12, 13, 14, 15]]
    assert lengths.tolist() == [4]
    assert first.tolist() == [2]


def test_a_batch_costs_the_same_however_many_windows_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    sequences = Sequences.from_lists([np.arange(3), np.arange(5)])
    windows = cut_windows(sequences, 4)

    def of_all(_: object) -> None:
        raise AssertionError("reads the lengths of all")

    monkeypatch.setattr(Windows, "lengths", property(of_all))
    monkeypatch.setattr(Sequences, "lengths", property(of_all))
    assert padded_windows(sequences, windows, np.array([0]))[1].tolist() == [3]
    assert sequences.select(np.array([1, 0])).offsets.tolist() == [0, 5, 8]


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_history_batches_cover_all_rows_and_keep_the_most_recent_items(batch_size: int) -> None:
    histories = Sequences.from_lists([np.arange(size) for size in (7, 0, 3, 12, 1)])
    seen = {}
    for rows, items, lengths in history_batches(histories, 5, batch_size):
        for row, values, length in zip(rows, items, lengths, strict=True):
            seen[int(row)] = values[: int(length)].tolist()
    assert seen == {0: [2, 3, 4, 5, 6], 1: [], 2: [0, 1, 2], 3: [7, 8, 9, 10, 11], 4: [0]}


@given(st.lists(st.integers(0, 100), max_size=40))
def test_rows_of_similar_lengths_are_every_row_once_and_padded_to_less_than_double(lengths: list[int]) -> None:
    groups = similar_lengths(np.array(lengths, dtype=np.int64))
    assert sorted(row for group in groups for row in group.tolist()) == list(range(len(lengths)))
    for group in groups:
        inside = [lengths[row] for row in group]
        assert max(inside) <= 8 or max(inside) < 2 * min(inside)
