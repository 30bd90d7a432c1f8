"""Candidates' log-probabilities against the ones that training uses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recsys.alignment.candidates import candidate_log_probs, policy_model
from recsys.errors import ConfigError
from recsys.generator import GeneratorConfig, build_model
from recsys.generator.config import ModelConfig

SIZES = (4, 3, 5)
NUM_ITEMS = 25
HISTORIES = [[1, 2, 3], [7], [], [20, 4, 4, 9, 11]]
CANDIDATES = [[5, 6, 5], [0, 24, 3], [8, 9, 10], [11, 12, 13]]


def random_codes() -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    places = np.random.default_rng(0).choice(int(np.prod(SIZES)), NUM_ITEMS, replace=False)
    return np.stack(np.unravel_index(places, SIZES), axis=1).astype(np.int64)


def fresh(shape: str) -> object:
    config = GeneratorConfig(
        model=ModelConfig.model_validate({"shape": shape, "hidden_size": 16, "max_history": 8, "dropout": 0.5})
    )
    torch.manual_seed(0)
    return build_model(config, random_codes(), SIZES, None).eval()


@pytest.mark.parametrize("shape", ["nested", "flat"])
def test_values_and_gradients_are_those_of_training(shape: str) -> None:
    model = policy_model(fresh(shape))  # type: ignore[arg-type]
    lengths = torch.tensor([len(history) for history in HISTORIES])
    items = torch.zeros(4, 5, dtype=torch.int64)
    for row, history in enumerate(HISTORIES):
        items[row, : len(history)] = torch.tensor(history, dtype=torch.int64)
    candidates = torch.tensor(CANDIDATES)
    found = candidate_log_probs(model, items, lengths, candidates)
    found.square().sum().backward()  # type: ignore[no-untyped-call]
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    model.zero_grad()
    expected = torch.stack(
        [
            torch.stack(
                [
                    model.target_log_probs(
                        torch.tensor([[*history, item]]), torch.tensor([len(history) + 1]), torch.tensor([len(history)])
                    )[0]
                    for item in row
                ]
            )
            for history, row in zip(HISTORIES, CANDIDATES, strict=True)
        ]
    )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    expected.square().sum().backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-3, rtol=1e-3, msg=name)


@pytest.mark.parametrize("shape", ["nested", "flat"])
def test_all_items_sum_to_one(shape: str) -> None:
    model = policy_model(fresh(shape))  # type: ignore[arg-type]
    with torch.no_grad():
        found = candidate_log_probs(model, torch.tensor([[3, 4]]), torch.tensor([2]), torch.arange(25).unsqueeze(0))
    assert found.exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_items_with_many_paths_are_refused() -> None:
    with pytest.raises(ConfigError, match="not any_order"):
        policy_model(fresh("any_order"))  # type: ignore[arg-type]
