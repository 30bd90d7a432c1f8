"""The four path rewards of REG4Rec, by its examples and on a small tree."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recsys.alignment.rewards.path import PathConfig, PathReward, category_hits, consistent_steps
from recsys.alignment.rewards.prefix import shared_levels
from recsys.errors import ConfigError
from recsys.generator.groups import Groups
from tests.alignment.rewards.worlds import context, rollouts

# Two films and two books, whose first code says which; item 4 is a book filed among the films.
CODES = [[0, 0], [0, 1], [1, 0], [1, 1], [0, 2]]
CATEGORIES = Groups.from_labels([["film"], ["film"], ["book"], ["book"], ["book"]])
FILM, BOOK = 0, 1


def test_step_hits_of_the_papers_examples():
    target = torch.tensor([3, 7, 9])
    paths = torch.tensor([[3, 7, 1], [3, 2, 1]])
    assert shared_levels(paths, target, ordered=False).tolist() == [2, 1]
    assert shared_levels(paths, target, ordered=True).tolist() == [2, 1]
    assert (shared_levels(torch.tensor([[3, 7, 9], [3, 7, 1]]), target, ordered=False) == 3).long().tolist() == [1, 0]


def test_category_hits_of_the_papers_examples():
    steps = torch.tensor([[30, 27, 12], [30, 30, 12]])
    assert category_hits(steps, torch.tensor([30])).tolist() == [1, 2]


def test_consistency_of_the_papers_examples():
    assert consistent_steps(torch.tensor([[30, 30, 30], [27, 30, 30]])).tolist() == [2, 1]


def test_a_step_without_a_category_neither_hits_nor_agrees():
    steps = torch.tensor([-1, -1, 30])
    assert category_hits(steps, torch.tensor([30, -1])).item() == 1
    assert consistent_steps(steps).item() == 0


def test_a_step_takes_the_category_most_common_below_its_prefix():
    steps = PathReward(context(CODES, categories=CATEGORIES)).steps
    assert steps.ids.tolist() == [[FILM, FILM], [FILM, FILM], [BOOK, BOOK], [BOOK, BOOK], [FILM, BOOK]]
    np.testing.assert_allclose(steps.purity[:, 0], [2 / 3, 2 / 3, 1, 1, 2 / 3], rtol=1e-6)


def test_steps_below_the_least_purity_have_no_category():
    steps = PathReward(context(CODES, categories=CATEGORIES), least_purity=0.9).steps
    assert steps.ids.tolist() == [[-1, FILM], [-1, FILM], [BOOK, BOOK], [BOOK, BOOK], [-1, BOOK]]


def test_parts_and_their_weighted_mean():
    reward = PathReward(context(CODES, categories=CATEGORIES))
    batch = rollouts([[0, 1, 2, 4, -1]], [[0]])
    parts = reward.parts(batch)[:, 0].T
    assert parts.tolist() == [[2, 1, 2, 1], [1, 0, 2, 1], [0, 0, 0, 1], [1, 0, 1, 0], [0, 0, 0, 0]]
    expected = [(1 + 2 + 0.5 + 0.5) / 4, (0.5 + 0.5 + 0.5) / 4, 0.5 / 4, (0.5 + 0.25) / 4, 0]
    torch.testing.assert_close(reward(batch), torch.tensor([expected]))
    assert reward(rollouts([[0, 1]], [[-1]])).tolist() == [[0, 0]]


def test_codes_that_are_a_set_have_the_category_of_each_token():
    steps = PathReward(context(CODES, categories=CATEGORIES, ordered=False)).steps
    assert steps.ids[4].tolist() == [FILM, BOOK]
    assert steps.ids[0].tolist() == [FILM, FILM]


def test_shuffled_categories_destroy_what_category_hits_say():
    rng = np.random.default_rng(0)
    kinds = rng.integers(0, 5, 200)
    codes = np.stack([kinds, np.arange(200) // 10, np.arange(200) % 10], axis=1).tolist()
    items = rng.integers(0, 200, (50, 8)).tolist()
    batch = rollouts(items, rng.integers(0, 200, (50, 1)).tolist())
    alike = torch.from_numpy(kinds)[batch.items] == torch.from_numpy(kinds)[batch.futures]

    def gain(labels: np.ndarray) -> float:
        groups = Groups.from_labels([[int(label)] for label in labels])
        hits = PathReward(context(codes, categories=groups)).parts(batch)[2]
        return float(hits[alike].mean() - hits[~alike].mean())

    assert gain(kinds) == pytest.approx(3)
    assert abs(gain(rng.permutation(kinds))) < 0.5


def test_without_categories_it_refuses_to_be_built():
    with pytest.raises(ConfigError, match=r"rewards\.path needs categories"):
        PathConfig().build(context(CODES))
