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


@pytest.mark.parametrize("shape", ["nested", "flat"])
def test_weights_that_were_saved_without_a_trie_give_the_same_list(
    make_recommender, shape: str, tmp_path: Path
) -> None:
    recommender = make_recommender(shape)
    recommender.save(tmp_path)
    (tmp_path / "trie.safetensors").unlink()
    loaded = GenerativeRecommender.load(
        tmp_path, recommender.codes, recommender.codebook_sizes, recommender.item_vectors
    )
    histories = Sequences.from_lists([[1, 2], []])
    np.testing.assert_array_equal(loaded.recommend(histories, 10).items, recommender.recommend(histories, 10).items)


def test_weights_of_another_catalogue_are_refused(make_recommender, tmp_path: Path) -> None:
    recommender = make_recommender()
    recommender.save(tmp_path)
    for other in (recommender.codes[:-1], recommender.codes[::-1].copy()):
        with pytest.raises(ArtifactError, match="other semantic IDs"):
            GenerativeRecommender.load(tmp_path, other, recommender.codebook_sizes, recommender.item_vectors)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model.safetensors", "damaged"),
        ("trie.safetensors", "damaged"),
        ("generator.json", "{"),
        ("generator.json", "{}"),
        ("generator.json", '{"format": 99}'),
    ],
)
def test_damaged_or_foreign_files_are_refused(make_recommender, tmp_path: Path, file: str, content: str) -> None:
    recommender = make_recommender()
    recommender.save(tmp_path)
    (tmp_path / file).write_text(content)
    with pytest.raises(ArtifactError, match=r"(generator|trie): "):
        GenerativeRecommender.load(tmp_path, recommender.codes, recommender.codebook_sizes, recommender.item_vectors)


def test_scoring_after_recommending_still_has_gradients(make_recommender) -> None:
    recommender = make_recommender()
    recommender.recommend(Sequences.from_lists([[1]]), 5)
    recommender.model.target_log_probs(*padded([[1, 2, 3]])).sum().backward()
    assert recommender.model.item_residuals.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("fused", [True, False])
def test_recommendations_follow_the_weights_through_training(make_recommender, fused: bool) -> None:
    recommender = make_recommender()
    model = recommender.model
    histories = Sequences.from_lists([[1], [2, 3]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=fused)
    for _ in range(2):
        recommender.recommend(histories, 5)
        model.train()
        model.target_log_probs(*padded([[1, 2, 3]])).sum().backward()
        optimizer.step()
        model.eval()
    fresh = make_recommender()
    fresh.model.load_state_dict(model.state_dict())
    np.testing.assert_array_equal(recommender.recommend(histories, 5).scores, fresh.recommend(histories, 5).scores)


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_the_same_every_time_with_several_threads(make_recommender, shape: str) -> None:
    model = make_recommender(shape, num_items=1500, sizes=(8, 16, 16)).model
    rows = np.random.default_rng(0).integers(0, 1500, size=(128, 11))
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        gradients = []
        for _ in range(4):
            model.zero_grad()
            model.target_log_probs(*padded(list(rows))).mean().backward()
            gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    finally:
        torch.set_num_threads(threads)
    for name, value in gradients[0].items():
        assert all(torch.equal(value, other[name]) for other in gradients[1:]), name
