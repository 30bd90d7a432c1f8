"""Our search against transformers' `generate` under a prefix function: another implementation, the same lists."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from random_codes import random_codes

from recsys.data.sequences import Sequences
from recsys.generator.config import GeneratorConfig, ModelConfig
from recsys.generator.recommender import GenerativeRecommender, build_model
from training.transformers_twin import PrefixTable, causal_lm, generate, item_tokens, load_causal_lm

SIZES = (32, 8, 16)


def build(num_items: int, seed: int, body: str = "llama", biases: bool = False) -> GenerativeRecommender:
    config = GeneratorConfig(
        model=ModelConfig.model_validate(
            {"shape": "flat", "body": body, "hidden_size": 16, "num_heads": 2, "max_history": 6}
        )
    )
    codes = random_codes(num_items, SIZES, seed)
    torch.manual_seed(seed)
    model = build_model(config, codes, SIZES, None)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        for head in model.heads:
            if not biases:
                head.bias.zero_()
    return GenerativeRecommender(config, codes, SIZES, None, model)


def prompts(recommender: GenerativeRecommender, histories: np.ndarray) -> torch.Tensor:
    return torch.nn.functional.pad(item_tokens(recommender.model)[histories].flatten(1), (1, 0))


# 300 items: most prefixes of two codes have one item, and their beams cost no row. 3000: hardly any has.
@pytest.mark.parametrize(("num_items", "seed"), [(300, 0), (300, 1), (3000, 2)])
def test_lists_and_scores_are_those_of_generate(num_items: int, seed: int) -> None:
    recommender = build(num_items, seed)
    lm = causal_lm(recommender.model)
    table = PrefixTable(item_tokens(recommender.model).numpy())
    histories = np.random.default_rng(seed).integers(0, num_items, size=(5, 6))
    # As many beams as first codes: `generate` fills wider ones up with illegal tokens.
    items, scores = generate(lm, table, prompts(recommender, histories), levels=3, k=10, beams=30)
    ours = recommender.recommend(Sequences.from_lists(histories), 10, beams=30)
    np.testing.assert_array_equal(ours.items, items)
    np.testing.assert_allclose(ours.scores, scores, atol=1e-4)


def test_a_larger_vocabulary_changes_nothing() -> None:
    recommender = build(300, seed=0)
    table = PrefixTable(item_tokens(recommender.model).numpy())
    begun = prompts(recommender, np.array([[1, 2, 3, 4, 5, 6]]))
    narrow, wide = (
        generate(causal_lm(recommender.model, size), table, begun, levels=3, k=10, beams=20) for size in (None, 500)
    )
    assert narrow[0].tolist() == wide[0].tolist()
    np.testing.assert_allclose(narrow[1], wide[1], atol=1e-4)


def test_weights_come_back_from_the_twin() -> None:
    one, other = build(300, seed=0), build(300, seed=1)
    histories = Sequences.from_lists([[1, 2, 3], [], [4] * 6])
    expected = one.recommend(histories, 10)
    load_causal_lm(other.model, causal_lm(one.model))
    moved = GenerativeRecommender(one.config, one.codes, SIZES, None, build(300, seed=0).model)
    load_causal_lm(moved.model, causal_lm(one.model))
    found = moved.recommend(histories, 10)
    assert found.items.tolist() == expected.items.tolist()
    np.testing.assert_array_equal(found.scores, expected.scores)


@pytest.mark.parametrize(
    ("settings", "vocab_size", "message"),
    [
        ({"body": "gpt2"}, None, "body must be llama, got gpt2"),
        ({"biases": True}, None, "heads have biases"),
        ({}, 20, "vocab_size must be at least 57, got 20"),
    ],
)
def test_what_a_causal_lm_cannot_hold_is_refused(settings: dict, vocab_size: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        causal_lm(build(50, seed=0, **settings).model, vocab_size)
