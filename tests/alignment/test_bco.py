"""The parts of BCO beside its loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recsys.alignment.bco import PromptClassifier, RewardShift
from recsys.alignment.losses import PairLogProbs


def batch(chosen: list[float], rejected: list[list[float]], mask: list[list[bool]] | None = None) -> PairLogProbs:
    return PairLogProbs(
        chosen=torch.tensor(chosen),
        rejected=torch.tensor(rejected),
        reference_chosen=torch.zeros(len(chosen)),
        reference_rejected=torch.zeros(len(rejected), len(rejected[0])),
        mask=None if mask is None else torch.tensor(mask),
    )


def test_the_shift_is_the_mean_of_all_rewards_so_far() -> None:
    shift = RewardShift()
    assert shift.value == 0
    assert shift.update(batch([1.0], [[3.0, 9.0]], [[True, False]]), beta=0.5) == pytest.approx(1.0)
    assert shift.update(batch([0.0, 0.0], [[1.0], [1.0]]), beta=0.5) == pytest.approx((0.5 + 1.5 + 0.5 + 0.5) / 6)


def test_bad_prompts_like_good_ones_weigh_more() -> None:
    random = np.random.default_rng(0)
    good, bad = random.normal(1, 1, (200, 3)), random.normal(-1, 1, (200, 3))
    classifier = PromptClassifier(good, bad)
    assert classifier.auc > 0.9
    assert classifier.weights(np.array([[1.0, 1.0, 1.0], [-1.0, -1.0, -1.0]])).tolist() == [2.0, 0.5]


def test_prompts_of_one_kind_need_no_weights() -> None:
    random = np.random.default_rng(0)
    good, bad = random.normal(0, 1, (300, 3)), random.normal(0, 1, (300, 3))
    classifier = PromptClassifier(good, bad)
    assert classifier.auc < 0.6
    assert np.abs(classifier.weights(bad) - 1).mean() < 0.2


def test_too_few_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 5 rows"):
        PromptClassifier(np.zeros((3, 2)), np.zeros((9, 2)))
