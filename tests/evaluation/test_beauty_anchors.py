"""The baselines on Amazon 2014 Beauty, leave-last-out, seen items masked, against independently measured numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recsys.data.sequences import Examples, Sequences
from recsys.evaluation import BaselineName, EvaluationConfig, Ranker, build_baseline
from recsys.evaluation.metrics import accuracy_metrics
from recsys.evaluation.ranker import rank_cases

pytestmark = [pytest.mark.shared, pytest.mark.slow]


@pytest.fixture(scope="module")
def beauty(shared_data: Path) -> tuple[Sequences, Examples, Examples, int]:
    log = pl.read_parquet(shared_data / "amazon14_beauty" / "interactions.parquet")
    log = log.with_columns(item=pl.col("item_id").rank("dense").cast(pl.Int64) - 1).sort("user_id", "position")
    users = log.group_by("user_id", maintain_order=True).agg("item")["item"].to_list()
    train = Sequences.from_lists([items[:-2] for items in users])
    return (
        train,
        Examples(histories=train, targets=np.array([items[-2] for items in users])),
        Examples(
            histories=Sequences.from_lists([items[:-1] for items in users]),
            targets=np.array([items[-1] for items in users]),
        ),
        log["item"].n_unique(),
    )


def recall_and_ndcg(ranker: Ranker, cases: Examples, num_items: int) -> tuple[float, float]:
    lists = rank_cases("model", ranker, cases, 10, num_items=num_items, mask_seen=True, batch_size=256)
    metrics = accuracy_metrics(lists, cases.targets, (10,))
    return float(metrics["recall@10"].numerator.mean()), float(metrics["ndcg@10"].numerator.mean())


@pytest.mark.parametrize(("name", "recall", "ndcg"), [("popularity", 0.0120, 0.0056), ("item_knn", 0.0645, 0.0386)])
def test_simple_baselines_agree_with_measurements_made_elsewhere(
    beauty: tuple[Sequences, Examples, Examples, int], name: BaselineName, recall: float, ndcg: float
) -> None:
    train, _, test, num_items = beauty
    ranker = build_baseline(name, EvaluationConfig()).fit(train, num_items)
    assert recall_and_ndcg(ranker, test, num_items) == pytest.approx((recall, ndcg), abs=0.0008)


def test_the_counter_is_no_weaker_than_the_one_measured_elsewhere(
    beauty: tuple[Sequences, Examples, Examples, int],
) -> None:
    train, _, test, num_items = beauty
    ranker = build_baseline("skip_gram", EvaluationConfig()).fit(train, num_items)
    recall, ndcg = recall_and_ndcg(ranker, test, num_items)
    assert recall >= 0.0767
    assert ndcg >= 0.0485


@pytest.mark.timeout(3600)
def test_sasrec_is_a_tuned_opponent(beauty: tuple[Sequences, Examples, Examples, int]) -> None:
    train, valid, test, num_items = beauty
    ranker = build_baseline("sasrec", EvaluationConfig()).fit(train, num_items, valid)
    recall, _ = recall_and_ndcg(ranker, test, num_items)
    assert recall >= 0.083
