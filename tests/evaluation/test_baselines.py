"""One contract for all baselines, on a log whose right answers are known; then what each counts."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from recsys.data.sequences import Examples, IntArray, Sequences
from recsys.errors import ArtifactError, DataError
from recsys.evaluation import BaselineName, EvaluationConfig, SasRec, SasRecConfig, build_baseline
from recsys.evaluation.baselines import Baseline, ItemKnn, Popularity, SkipGram
from recsys.evaluation.baselines.ranking import rank_by_score

NAMES = get_args(BaselineName)
NUM_ITEMS = 12
SMALL = SasRecConfig(
    hidden_size=16, num_layers=1, dropout=0.0, max_history=8, epochs=15, batch_size=16, learning_rate=1e-2
)


def walks() -> Sequences:
    """60 walks around two rings, 0 -> 1 -> ... -> 5 -> 0 and 6 -> 7 -> ... -> 10 -> 6; item 11 is never seen."""
    lists = [[(start + step) % 6 for step in range(5)] for start in range(6)] * 6
    lists += [[6 + (start + step) % 5 for step in range(4)] for start in range(5)] * 4
    return Sequences.from_lists(lists)


@pytest.fixture(scope="module", params=NAMES)
def baseline(request: pytest.FixtureRequest) -> Baseline:
    config = EvaluationConfig(sasrec=SMALL)
    return build_baseline(request.param, config).fit(walks(), NUM_ITEMS)


def test_lists_are_unique_and_end_in_minus_one_when_k_exceeds_the_catalogue(baseline: Baseline) -> None:
    lists = baseline(Sequences.from_lists([[0, 1], [], [6]]), 20)
    assert lists.shape == (3, 20)
    assert lists.dtype == np.int64
    for row, num_seen in zip(lists, (2, 0, 1), strict=True):
        num_ranked = NUM_ITEMS - num_seen
        assert len(set(row[:num_ranked].tolist())) == num_ranked
        assert (row[:num_ranked] >= 0).all()
        assert (row[num_ranked:] == -1).all()


def test_seen_items_are_masked_by_the_switch_only(baseline: Baseline) -> None:
    history = Sequences.from_lists([[2, 3, 4, 3]])
    assert not set(baseline(history, NUM_ITEMS)[0].tolist()) & {2, 3, 4}
    baseline.mask_seen = False
    try:
        assert set(baseline(history, NUM_ITEMS)[0].tolist()) == set(range(NUM_ITEMS))
    finally:
        baseline.mask_seen = True


def test_a_batch_gives_what_its_histories_give_alone(baseline: Baseline) -> None:
    histories = Sequences.from_lists([[0, 1, 2], [], [9], [5, 0, 1, 2, 3, 4, 5, 0, 1, 2], [7, 8]])
    together = baseline(histories, 3)
    alone = [baseline(histories.select(np.array([row])), 3)[0] for row in range(len(histories))]
    np.testing.assert_array_equal(together, np.stack(alone))


def test_scores_are_not_masked_and_rank_like_the_lists(baseline: Baseline) -> None:
    histories = Sequences.from_lists([[0, 1], [8]])
    scores = baseline.scores(histories)
    assert scores.shape == (2, NUM_ITEMS)
    assert np.isfinite(scores).all()
    best = baseline(histories, 1)[:, 0]
    for row, seen in enumerate(([0, 1], [8])):
        allowed = np.setdiff1d(np.arange(NUM_ITEMS), seen)
        assert scores[row, best[row]] == scores[row, allowed].max()


def test_no_history_at_all_is_an_empty_answer(baseline: Baseline) -> None:
    assert baseline(Sequences.from_lists([]), 4).shape == (0, 4)


def test_a_second_fit_forgets_the_first(baseline: Baseline) -> None:
    name = NAMES[[Popularity, ItemKnn, SkipGram, SasRec].index(type(baseline))]
    config = EvaluationConfig(sasrec=SMALL.model_copy(update={"epochs": 2}))
    other = Sequences.from_lists([[3, 2, 1]] * 8)
    histories = Sequences.from_lists([[3], [0, 1]])
    twice = build_baseline(name, config).fit(other, 5).fit(walks(), NUM_ITEMS)
    once = build_baseline(name, config).fit(walks(), NUM_ITEMS)
    np.testing.assert_array_equal(twice(histories, 5), once(histories, 5))


@pytest.mark.parametrize("name", ["skip_gram", "sasrec"])
def test_sequence_models_know_the_direction(name: BaselineName) -> None:
    baseline = build_baseline(name, EvaluationConfig(sasrec=SMALL)).fit(walks(), NUM_ITEMS)
    histories = Sequences.from_lists([[0, 1, 2], [4], [7, 8]])
    assert baseline(histories, 1)[:, 0].tolist() == [3, 5, 9]


@pytest.mark.parametrize("mask_seen", [True, False])
@pytest.mark.parametrize("k", [3, 12, 20])
def test_popularity_ranks_as_its_scores_do(mask_seen: bool, k: int) -> None:
    random = np.random.default_rng(0)
    train, histories = (
        Sequences.from_lists([random.integers(12, size=length) for length in random.integers(0, 9, size=30)])
        for _ in range(2)
    )
    baseline = Popularity(mask_seen=mask_seen).fit(train, 12)
    expected = rank_by_score(baseline.scores(histories), k, seen=histories if mask_seen else None)
    np.testing.assert_array_equal(baseline(histories, k), expected)


def test_popularity_counts_interactions() -> None:
    train = Sequences.from_lists([[2, 2, 2], [1, 1], [0, 3]])
    ranked = Popularity().fit(train, 5)(Sequences.from_lists([[], [2]]), 5)
    assert ranked.tolist() == [[2, 1, 0, 3, 4], [1, 0, 3, 4, -1]]


def test_item_knn_is_the_decayed_sum_of_cosines() -> None:
    # Users of 0: a b; of 1: a b c; of 2: b c. Repeats within a user change nothing.
    train = Sequences.from_lists([[0, 1, 0], [0, 1, 2], [2, 1]])
    knn = ItemKnn(decay=0.5).fit(train, 4)
    cosine_01, cosine_02, cosine_12 = 2 / 6**0.5, 1 / 2, 2 / 6**0.5
    scores = knn.scores(Sequences.from_lists([[0, 1]]))[0]
    assert scores[:3] == pytest.approx([cosine_01, 0.5 * cosine_01, 0.5 * cosine_02 + cosine_12])
    assert scores[3] < 0


def test_skip_gram_is_the_decayed_count_over_the_root_of_its_row() -> None:
    train = Sequences.from_lists([[0, 1, 2], [0, 2]])
    counter = SkipGram(max_distance=2, distance_decay=0.5, history_decay=0.1).fit(train, 4)
    # After 0: item 1 at distance 1, item 2 at distances 2 and 1. After 1: item 2.
    scores = counter.scores(Sequences.from_lists([[0, 1]]))[0]
    assert scores[1] == pytest.approx(0.1 * 1 / 2.5**0.5)
    assert scores[2] == pytest.approx(0.1 * 1.5 / 2.5**0.5 + 1)
    assert scores[0] < 0
    assert scores[3] < scores[0]


def test_pairs_do_not_cross_from_one_user_to_the_next() -> None:
    counter = SkipGram().fit(Sequences.from_lists([[0, 1], [2, 3]]), 4)
    assert (counter.scores(Sequences.from_lists([[1]])) < 0).all()


def test_items_without_evidence_follow_by_popularity() -> None:
    train = Sequences.from_lists([[0, 1], [2], [2], [3], [3], [3]])
    for baseline in (ItemKnn(), SkipGram()):
        assert baseline.fit(train, 5)(Sequences.from_lists([[0]]), 4)[0].tolist() == [1, 3, 2, 4]


def cases(lists: list[list[int]]) -> Examples:
    return Examples(
        histories=Sequences.from_lists([values[:-1] for values in lists]),
        targets=np.array([values[-1] for values in lists]),
    )


def test_sasrec_repeats_itself_under_a_seed_and_leaves_the_global_stream_alone() -> None:
    import torch

    config = SMALL.model_copy(update={"epochs": 2, "dropout": 0.3})
    histories = Sequences.from_lists([[0, 1], [9]])
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = SasRec(config).fit(walks(), NUM_ITEMS)
    assert torch.equal(torch.rand(1), expected)
    second = SasRec(config).fit(walks(), NUM_ITEMS)
    np.testing.assert_array_equal(first.scores(histories), second.scores(histories))
    third = SasRec(config.model_copy(update={"seed": 1})).fit(walks(), NUM_ITEMS)
    assert not np.array_equal(first.scores(histories), third.scores(histories))


def test_sasrec_keeps_the_best_epoch_and_stops_when_validation_does_not_improve() -> None:
    # Validation contradicts the log: it can only get worse, so training ends after `patience` epochs without gain.
    config = SMALL.model_copy(update={"epochs": 40, "patience": 3})
    contrary = cases([[0, 1, 2, 11], [6, 7, 11]])
    model = SasRec(config).fit(walks(), NUM_ITEMS, contrary)
    metric = [point.valid_ndcg for point in model.curve]
    assert None not in metric
    best = int(np.argmax(np.array(metric, dtype=float)))
    assert len(metric) == best + 1 + 3 < 40
    assert model._ndcg(contrary) == pytest.approx(metric[best])


def test_sasrec_validation_metric_is_that_of_its_lists() -> None:
    valid = cases([[0, 1, 2, 3], [1, 2, 0], [6, 7, 8], [8, 9, 9], [3]])
    for mask_seen in (True, False):
        model = SasRec(SMALL.model_copy(update={"epochs": 2}), mask_seen=mask_seen).fit(walks(), NUM_ITEMS)
        model.curve = []
        lists = model(valid.histories, 10)
        # The case without history is left out of the choice of an epoch.
        hits: IntArray = (lists == valid.targets[:, None])[:4]
        expected = (hits / np.log2(np.arange(10) + 2)).sum() / len(valid)
        assert model._ndcg(valid) == pytest.approx(expected)


def test_sasrec_comes_back_from_disk_the_same(tmp_path: Path) -> None:
    model = SasRec(SMALL.model_copy(update={"epochs": 2}), mask_seen=False).fit(
        walks(), NUM_ITEMS, cases([[0, 1, 2], [6, 7, 8]])
    )
    model.save(tmp_path / "sasrec")
    loaded = SasRec.load(tmp_path / "sasrec")
    histories = Sequences.from_lists([[0, 1], [], [9]])
    np.testing.assert_array_equal(loaded.scores(histories), model.scores(histories))
    assert (loaded.config, loaded.curve, loaded.mask_seen) == (model.config, model.curve, False)
    assert loaded.training_curve().series["validation NDCG@10"] == [point.valid_ndcg for point in model.curve]


@pytest.mark.parametrize("name", ["sasrec.json", "model.safetensors"])
def test_a_damaged_sasrec_is_refused(tmp_path: Path, name: str) -> None:
    SasRec(SMALL.model_copy(update={"epochs": 1})).fit(walks(), NUM_ITEMS).save(tmp_path / "sasrec")
    (tmp_path / "sasrec" / name).write_bytes(b"\x00{")
    with pytest.raises(ArtifactError, match="cannot read the SASRec model"):
        SasRec.load(tmp_path / "sasrec")


def test_sasrec_needs_pairs_of_items() -> None:
    with pytest.raises(DataError, match="at least 2 items"):
        SasRec(SMALL).fit(Sequences.from_lists([[1], []]), 3)


def test_sasrec_with_a_sampled_softmax_learns_the_same_rings() -> None:
    config = SMALL.model_copy(update={"full_softmax_up_to": 1, "num_negatives": 6})
    model = SasRec(config).fit(walks(), NUM_ITEMS)
    assert model(Sequences.from_lists([[0, 1, 2], [4], [7, 8]]), 1)[:, 0].tolist() == [3, 5, 9]
