"""Likelihoods, new items and stored weights of both shapes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from padding import padded

from recsys.data.sequences import Sequences
from recsys.errors import ArtifactError
from recsys.generator.likelihood import smoothed_gather
from recsys.generator.recommender import GenerativeRecommender

SHAPES = ["nested", "flat"]


@pytest.mark.parametrize("shape", SHAPES)
def test_padding_and_neighbours_do_not_change_a_likelihood(make_recommender, shape: str) -> None:
    model = make_recommender(shape).model
    rows = [np.array([1, 2, 3, 4]), np.array([9]), np.array([7, 8])]
    with torch.inference_mode():
        together = model.target_log_probs(*padded(rows))
        alone = torch.cat([model.target_log_probs(*padded([row])) for row in rows])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_likelihood_depends_on_earlier_items_only(make_recommender, shape: str) -> None:
    model = make_recommender(shape).model
    with torch.inference_mode():
        before = model.target_log_probs(*padded([np.array([1, 2, 3, 4])]))
        after = model.target_log_probs(*padded([np.array([1, 2, 3, 400])]))
    torch.testing.assert_close(before[:3], after[:3], atol=1e-5, rtol=0)
    assert abs(before[3] - after[3]) > 1e-3


@pytest.mark.parametrize("shape", SHAPES)
def test_context_items_are_no_targets(make_recommender, shape: str) -> None:
    model = make_recommender(shape).model
    items, lengths = padded([np.array([1, 2, 3, 4]), np.array([5, 6])])
    with torch.inference_mode():
        every = model.target_log_probs(items, lengths)
        some = model.target_log_probs(items, lengths, first_target=torch.tensor([2, 0]))
    torch.testing.assert_close(some, every[[2, 3, 4, 5]])


def test_smoothing_mixes_the_target_with_the_mean_over_legal_children() -> None:
    legal = torch.tensor([[True, True, False]])
    log_probs = torch.tensor([[-1.0, -3.0, -torch.inf]])
    assert smoothed_gather(log_probs, torch.tensor([0]), legal, 0.2).item() == pytest.approx(0.8 * -1 + 0.2 * -2)


@pytest.mark.parametrize("shape", SHAPES)
def test_saved_and_loaded_weights_give_the_same_list(make_recommender, shape: str, tmp_path: Path) -> None:
    recommender = make_recommender(shape)
    recommender.save(tmp_path)
    loaded = GenerativeRecommender.load(
        tmp_path, recommender.codes, recommender.codebook_sizes, recommender.item_vectors
    )
    histories = Sequences.from_lists([[1, 2], []])
    expected, found = recommender.recommend(histories, 10), loaded.recommend(histories, 10)
    np.testing.assert_array_equal(expected.items, found.items)
    np.testing.assert_array_equal(expected.scores, found.scores)
    assert loaded.config == recommender.config


def test_weights_of_another_catalogue_are_refused(make_recommender, tmp_path: Path) -> None:
    recommender = make_recommender()
    recommender.save(tmp_path)
    with pytest.raises(ArtifactError, match="trained on 500 items"):
        GenerativeRecommender.load(
            tmp_path, recommender.codes[:-1], recommender.codebook_sizes, recommender.item_vectors
        )
