from __future__ import annotations

import numpy as np

from recsys.data.sequences import Examples, Sequences
from recsys.evaluation.metrics import ItemPopularity
from recsys.evaluation.segments import segments


def test_every_case_is_in_one_segment_of_each_dimension() -> None:
    # 10 items: item 0 is the head (a tenth), 1-4 the mid, 5-8 the tail, 9 was never seen.
    popularity = ItemPopularity(counts=np.array([50, 9, 8, 7, 6, 5, 4, 3, 2, 0]))
    histories = Sequences.from_lists([[], [1], [1] * 5, [1] * 6, [1] * 20, [1] * 60])
    cases = Examples(histories=histories, targets=np.array([0, 1, 4, 5, 8, 9]))
    groups = {
        dimension: {label: np.flatnonzero(mask).tolist() for label, mask in masks.items()}
        for dimension, masks in segments(cases, popularity).items()
    }
    assert groups == {
        "history_length": {"0": [0], "1-5": [1, 2], "6-10": [3], "11-20": [4], "51+": [5]},
        "target_popularity": {"head": [0], "mid": [1, 2], "tail": [3, 4], "cold": [5]},
    }


def test_segments_without_a_case_are_left_out() -> None:
    cases = Examples(histories=Sequences.from_lists([[0]]), targets=np.array([1]))
    found = segments(cases, ItemPopularity(counts=np.array([3, 0])))
    assert list(found["target_popularity"]) == ["cold"]
    assert list(found["history_length"]) == ["1-5"]


def test_an_unseen_item_is_cold_even_in_a_catalogue_where_it_would_be_among_the_first() -> None:
    cases = Examples(histories=Sequences.from_lists([[1]]), targets=np.array([0]))
    assert list(segments(cases, ItemPopularity(counts=np.zeros(3, dtype=np.int64)))["target_popularity"]) == ["cold"]
