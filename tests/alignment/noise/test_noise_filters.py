"""Filters of noisy pairs: each finds the noise that was put in."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from recsys.alignment.noise import (
    ConfidenceFilter,
    ConsistencyFilter,
    FlipRateFilter,
    PeerReviewFilter,
    RoutingFilter,
    composed,
)
from recsys.alignment.noise.consistency import consistency
from recsys.alignment.noise.flip_rate import estimate_flip_rate
from recsys.alignment.noise.peer_review import PeerReviewConfig, keep_share, peer_review
from recsys.alignment.noise.routing import PerformanceModel, choose_routing
from recsys.alignment.pairs import PreferencePair, PreferencePairs
from recsys.errors import DataError


def pair(number: int, **changes: Any) -> PreferencePair:
    fields: dict[str, Any] = {
        "pair_id": str(number),
        "user_id": "u",
        "source": "simulator",
        "created_by": "test",
        "chosen_item": 1,
        "rejected_items": [2],
    }
    return PreferencePair(**{**fields, **changes})


def table(*rows: PreferencePair) -> PreferencePairs:
    return PreferencePairs.from_rows(rows)


# --- confidence -------------------------------------------------------------------------------------------------------


def test_doubtful_pairs_are_dropped_or_get_soft_labels() -> None:
    pairs = table(
        pair(0, confidence=0.9), pair(1, confidence=0.55), pair(2, confidence=0.5, label_noise_prob=0.6), pair(3)
    )
    assert ConfidenceFilter()(pairs).frame["pair_id"].to_list() == ["0", "3"]
    smoothed = ConfidenceFilter(action="smooth")(pairs).frame["label_noise_prob"].to_list()
    assert smoothed == pytest.approx([0.0, 0.45, 0.6, 0.0])


def test_filters_compose_in_order() -> None:
    pairs = table(pair(0, confidence=0.9), pair(1, confidence=0.55), pair(2, confidence=0.3))
    both = composed(ConfidenceFilter(threshold=0.4), ConfidenceFilter(threshold=0.6, action="smooth"))(pairs)
    assert both.frame["label_noise_prob"].to_list() == pytest.approx([0.0, 0.45])
    assert composed()(pairs) is pairs


# --- peer review ------------------------------------------------------------------------------------------------------


def noisy_utility() -> np.ndarray[Any, Any]:
    return np.random.default_rng(7).normal(size=8)


def noisy_differences(flips: float, count: int = 1500) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Pairs labelled by a hidden utility, of which a share was swapped."""
    random = np.random.default_rng(0)
    differences = random.normal(size=(count, 8))
    differences *= np.where(differences @ noisy_utility() > 0, 1, -1)[:, None]
    flipped = random.random(count) < flips
    differences[flipped] *= -1
    return differences, flipped


def test_two_reviewers_find_most_of_the_flipped_pairs() -> None:
    differences, flipped = noisy_differences(0.3)
    utility = noisy_utility()
    review = peer_review(differences, PeerReviewConfig(noise=0.3))
    recall = (~review.kept & flipped).sum() / flipped.sum()
    assert recall >= 0.7
    assert (~review.kept).sum() == round(0.3 * len(differences))

    def accuracy(pairs: np.ndarray[Any, Any]) -> float:
        """Of a Bradley-Terry model fitted on pairs, on fresh ones."""
        both = np.concatenate([pairs, -pairs])
        fitted = LogisticRegression(fit_intercept=False).fit(both, np.repeat([1, 0], len(pairs))).coef_[0]
        fresh = np.random.default_rng(1).normal(size=(2000, 8))
        return float(((fresh @ fitted > 0) == (fresh @ utility > 0)).mean())

    clean = differences * np.where(flipped, -1, 1)[:, None]
    # At least half of what the flips cost comes back.
    assert accuracy(differences[review.kept]) >= (accuracy(clean) + accuracy(differences)) / 2


def test_the_kept_share_falls_after_the_warm_up_and_stops_at_the_noise() -> None:
    config = PeerReviewConfig(noise=0.3, warmup_share=0.25, shrink_share=0.5)
    shares = [keep_share(step, 80, config) for step in range(80)]
    assert shares[:21] == [1.0] * 21
    assert shares[35] == pytest.approx(0.85)
    assert shares[50:] == pytest.approx([0.7] * 30)
    assert all(later <= earlier for earlier, later in pairwise(shares))


def test_clean_pairs_survive_a_review_better_than_chance() -> None:
    differences, flipped = noisy_differences(0.3)
    pairs = table(*(pair(number) for number in range(len(differences))))
    kept = PeerReviewFilter(features=lambda _: differences, config=PeerReviewConfig(noise=0.3))(pairs)
    left = flipped[kept.frame["pair_id"].cast(int).to_numpy()].mean()
    assert left < 0.13
    with pytest.raises(ValueError, match="differences must be finite"):
        peer_review(np.full((4, 2), np.nan), PeerReviewConfig())


# --- consistency ------------------------------------------------------------------------------------------------------


def test_consistency_of_rankings() -> None:
    assert consistency([3, 2, 1], [30, 20, 10]) == 1
    assert consistency([3, 2, 1], [1, 2, 3]) == 0
    assert consistency([3, 2, 1], [3, 1, 2]) == pytest.approx(2 / 3)
    assert consistency([1, 1], [1, 2]) == 0.5
    with pytest.raises(ValueError, match="two rankings"):
        consistency([1, 2], [1])


def test_inconsistent_pairs_get_soft_labels() -> None:
    pairs = table(pair(0, rejected_items=[2, 3]), pair(1, rejected_items=[2, 3]))
    now, before = [[3, 2, 1], [3, 2, 1]], [[3, 2, 1], [3, 1, 2]]
    together = ConsistencyFilter(current=lambda _: now, previous=lambda _: before)
    assert together(pairs).frame["label_noise_prob"].to_list() == pytest.approx([1 / 6, 1 / 6])
    each = ConsistencyFilter(current=lambda _: now, previous=lambda _: before, average="pair")
    assert each(pairs).frame["label_noise_prob"].to_list() == pytest.approx([0, 1 / 3])


# --- flip rate --------------------------------------------------------------------------------------------------------


def repeated(flips: float, exposures: int, count: int) -> PreferencePairs:
    random = np.random.default_rng(0)
    rows: list[PreferencePair] = []
    for number in range(count):
        for _ in range(exposures):
            better, worse = (2 * number, 2 * number + 1) if random.random() >= flips else (2 * number + 1, 2 * number)
            rows.append(pair(len(rows), chosen_item=better, rejected_items=[worse]))
    return table(*rows)


@pytest.mark.parametrize(("flips", "exposures"), [(0.1, 2), (0.25, 3)])
def test_the_flip_rate_is_read_off_repeated_exposures(flips: float, exposures: int) -> None:
    pairs = repeated(flips, exposures, count=1200)
    found = estimate_flip_rate(pairs)
    assert found.rate == pytest.approx(flips, abs=0.03)
    assert found.disagreement == pytest.approx(2 * flips * (1 - flips), abs=0.03)
    assert FlipRateFilter()(pairs).frame["label_noise_prob"].unique().to_list() == [found.rate]


def test_pairs_of_several_users_and_single_decisions_say_nothing() -> None:
    pairs = table(
        pair(0), pair(1, user_id="v", chosen_item=2, rejected_items=[1]), pair(2, chosen_item=5, rejected_items=[1])
    )
    with pytest.raises(DataError, match="only 0 decisions were made twice"):
        estimate_flip_rate(pairs)


# --- routing ----------------------------------------------------------------------------------------------------------


def outcome(features: np.ndarray[Any, Any], rows: np.ndarray[Any, Any]) -> float:
    """Truth: labels of the first kind help with falling returns, those of the second do harm, the third nothing."""
    counts = features[rows].sum(0)
    return float(np.sqrt(counts[0]) - 0.02 * counts[1])


def test_a_routed_budget_beats_random_routing() -> None:
    random = np.random.default_rng(0)
    features = (random.random((600, 3)) < np.array([0.2, 0.4, 0.5])).astype(np.float64)
    tried = [random.choice(600, int(random.integers(20, 400)), replace=False) for _ in range(80)]
    counts = np.stack([features[rows].sum(0) for rows in tried])
    scores = np.array([outcome(features, rows) for rows in tried]) + random.normal(0, 0.1, len(tried))
    model = PerformanceModel.fit(counts, scores)

    fresh = (random.random((600, 3)) < np.array([0.2, 0.4, 0.5])).astype(np.float64)
    rows = choose_routing(model, fresh, 100, seed=1)
    assert len(set(rows.tolist())) == 100
    chance = [outcome(fresh, random.choice(600, 100, replace=False)) for _ in range(200)]
    assert outcome(fresh, rows) > np.max(chance)


def test_only_what_is_routed_is_labelled_anew() -> None:
    random = np.random.default_rng(0)
    counts = random.integers(0, 10, (40, 1)).astype(np.float64)
    model = PerformanceModel.fit(counts, counts[:, 0])
    pairs = table(*(pair(number, confidence=0.5) for number in range(6)))

    def label(chosen: PreferencePairs) -> PreferencePairs:
        return table(*(PreferencePair(**{**vars(row), "created_by": "expert"}) for row in chosen))

    kinds = np.array([[0.0], [1], [0], [1], [0], [1]])
    routed = RoutingFilter(model=model, features=lambda _: kinds, budget=3, label=label)(pairs)
    assert routed.frame["pair_id"].to_list() == ["0", "1", "2", "3", "4", "5"]
    assert routed.frame["created_by"].to_list() == ["test", "expert"] * 3
    lost = RoutingFilter(
        model=model, features=lambda _: kinds, budget=3, label=lambda chosen: chosen.select(np.array([0]))
    )
    with pytest.raises(ValueError, match="give the pairs back"):
        lost(pairs)


def test_budgets_and_histories_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 10"):
        PerformanceModel.fit(np.zeros((3, 2)), np.zeros(3))
    model = PerformanceModel.fit(np.arange(10.0)[:, None], np.arange(10.0))
    with pytest.raises(ValueError, match=r"budget must lie in 0\.\.2"):
        choose_routing(model, np.ones((2, 1)), 3)
    assert len(choose_routing(model, np.ones((2, 1)), 0)) == 0
