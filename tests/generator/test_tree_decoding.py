"""Beams that nobody reads cost no row, and the others are what they would be with them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recsys.data.sequences import Sequences
from recsys.generator.body import Body
from recsys.generator.config import GeneratorConfig, ModelConfig
from recsys.generator.recommender import GenerativeRecommender, build_model
from recsys.generator.tree_decoding import grow, plant, read


def rows_read(body: Body) -> list[int]:
    """Filled with the rows of every forward pass from now on."""
    rows: list[int] = []
    body.transformer.register_forward_pre_hook(
        lambda module, args, inputs: rows.append(inputs["inputs_embeds"].shape[:2].numel()), with_kwargs=True
    )
    return rows


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@torch.inference_mode()
def test_wanted_beams_do_not_depend_on_the_unwanted(architecture: str) -> None:
    torch.manual_seed(0)
    config = ModelConfig.model_validate({"body": architecture, "hidden_size": 16, "num_heads": 2, "dropout": 0.0})
    body = Body(config, max_positions=12).eval()
    rows = rows_read(body)
    prompt, first, second, third = (torch.randn(2, width, 16) for width in (5, 4, 4, 3))
    prefix = read(body, prompt, torch.tensor([5, 3]))
    roots = torch.zeros(2, 4, dtype=torch.int64)
    wanted = torch.tensor([[False, True, True, False], [True, False, False, False]])
    # Beams of the second step: those that go on from wanted ones, and others.
    parents = torch.tensor([[1, 2, 2, 0], [0, 0, 1, 3]])
    still_wanted = torch.tensor([[True, False, True, False], [False, True, False, False]])
    grandparents = torch.tensor([[0, 2, 0], [1, 1, 1]])

    rows.clear()
    # A search appends to a cache of its own, so that both go on from the same prefix.
    everything = grow(body, plant(prefix), roots, first)
    everything_on = grow(body, everything, parents, second)
    last = grow(body, everything_on, grandparents, third).hidden
    assert rows == [8, 8, 6]

    rows.clear()
    sparing = grow(body, plant(prefix), roots, first, wanted)
    sparing_on = grow(body, sparing, parents, second, still_wanted)
    spared = grow(body, sparing_on, grandparents, third, torch.ones(2, 3, dtype=torch.bool)).hidden
    assert rows == [4, 4, 6]

    torch.testing.assert_close(sparing.hidden[wanted], everything.hidden[wanted])
    torch.testing.assert_close(sparing_on.hidden[still_wanted], everything_on.hidden[still_wanted])
    torch.testing.assert_close(spared, last)

    rows.clear()
    none = grow(body, sparing_on, grandparents, third, torch.zeros(2, 3, dtype=torch.bool))
    assert rows == []
    assert none.hidden.shape == (2, 3, 16)
    assert none.next_position.tolist() == [8, 6]


def test_beams_at_a_node_with_one_item_are_not_read() -> None:
    config = GeneratorConfig(
        model=ModelConfig.model_validate(
            {"shape": "flat", "body": "llama", "hidden_size": 16, "num_heads": 2, "dropout": 0.0}
        )
    )
    # Items 0 and 1 share two codes; items 2, 3 and 4 are alone below their first.
    codes = np.array([[0, 1, 0], [0, 1, 2], [1, 0, 3], [2, 2, 1], [3, 3, 3]])
    torch.manual_seed(0)
    model = build_model(config, codes, (4, 4, 4), None)
    recommender = GenerativeRecommender(config, codes, (4, 4, 4), None, model)
    rows = rows_read(model.body)
    found = recommender.recommend(Sequences.from_lists([[2, 3], [4, 0]]), k=5)
    assert rows == [2 * 7, 2, 2]
    np.testing.assert_allclose(np.exp(found.scores).sum(axis=1), 1.0, atol=1e-5)
