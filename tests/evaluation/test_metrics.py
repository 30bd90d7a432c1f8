from __future__ import annotations

import math

import numpy as np
import pytest

from recsys.data.sequences import Sequences
from recsys.evaluation.metrics import (
    CaseMetric,
    ItemPopularity,
    accuracy_metrics,
    exposure_metrics,
    hit_ranks,
    list_metrics,
)

LISTS = np.array([[3, 1, 2, -1], [0, 1, 2, 3], [2, 0, -1, -1]])


def value(metric: CaseMetric) -> float:
    return float(metric.numerator.sum() / metric.denominator.sum())


def test_rank_counts_from_one_and_zero_is_a_miss() -> None:
    assert hit_ranks(LISTS, np.array([3, 3, 1])).tolist() == [1, 4, 0]


def test_accuracy_follows_the_formulas() -> None:
    metrics = accuracy_metrics(LISTS, np.array([1, 3, 3]), (1, 2, 4))
    assert value(metrics["recall@1"]) == 0
    assert value(metrics["recall@2"]) == pytest.approx(1 / 3)
    assert value(metrics["recall@4"]) == pytest.approx(2 / 3)
    assert value(metrics["ndcg@2"]) == pytest.approx(1 / math.log2(3) / 3)
    assert value(metrics["ndcg@4"]) == pytest.approx((1 / math.log2(3) + 1 / math.log2(5)) / 3)
    assert value(metrics["mrr@10"]) == pytest.approx((1 / 2 + 1 / 4) / 3)


def test_an_empty_place_is_never_a_hit() -> None:
    metrics = accuracy_metrics(np.full((2, 10), -1), np.array([0, 1]), (10,))
    assert value(metrics["recall@10"]) == 0


def test_metrics_at_ten_ignore_what_stands_below() -> None:
    lists = np.arange(20)[None]
    metrics = accuracy_metrics(lists, np.array([10]), (10, 20))
    assert value(metrics["mrr@10"]) == 0
    assert value(metrics["recall@10"]) == 0
    assert value(metrics["recall@20"]) == 1
    novelty = list_metrics(lists, ItemPopularity(counts=np.array([5] * 10 + [0] * 10)))["novelty@10"]
    assert novelty.denominator.tolist() == [10]


def test_novelty_is_self_information_with_one_added_to_every_count() -> None:
    popularity = ItemPopularity.of(Sequences.from_lists([[0, 0], [0, 1]]), num_items=4)
    # 4 interactions + 4 items: p = 4/8, 2/8, 1/8, 1/8.
    assert popularity.information.tolist() == [1, 2, 3, 3]
    metric = list_metrics(np.array([[0, 1], [3, -1]]), popularity)["novelty@10"]
    assert value(metric) == pytest.approx((1 + 2 + 3) / 3)


def test_popularity_percentile_is_half_for_equal_items_and_ordered_otherwise() -> None:
    assert ItemPopularity(counts=np.array([7, 7, 7, 7])).percentile.tolist() == [0.5] * 4
    assert ItemPopularity(counts=np.array([9, 0, 3, 1])).percentile.tolist() == [0.875, 0.125, 0.625, 0.375]


def test_the_head_is_exactly_a_tenth_even_among_equals() -> None:
    head = ItemPopularity(counts=np.array([1] * 15 + [2] + [1] * 4)).head
    assert np.flatnonzero(head).tolist() == [0, 15]
    metric = list_metrics(np.array([[15, 3], [0, 15]]), ItemPopularity(counts=np.array([1] * 15 + [2] + [1] * 4)))
    assert value(metric["head_share@10"]) == 0.75


def test_exposure_of_one_item_alone_and_of_all_alike() -> None:
    exposure = np.array([[4.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    metrics = exposure_metrics(exposure, 4)
    assert metrics["coverage@10"].tolist() == [0.25, 1.0, 0.0]
    assert metrics["gini@10"].tolist() == [0.75, 0.0, 0.0]


def test_items_that_no_list_has_count_whether_or_not_they_are_passed() -> None:
    shown = np.random.default_rng(0).integers(1, 9, size=(5, 3)).astype(np.float64)
    whole = exposure_metrics(np.concatenate([np.zeros((7, 3)), shown]), 12)
    for name, values in exposure_metrics(shown, 12).items():
        np.testing.assert_allclose(values, whole[name])
