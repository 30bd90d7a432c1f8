from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from random_codes import random_codes

from recsys.generator.config import GeneratorConfig, ModelConfig
from recsys.generator.recommender import GenerativeRecommender, build_model

RecommenderFactory = Callable[..., GenerativeRecommender]


@pytest.fixture
def make_recommender() -> RecommenderFactory:
    """A model with large random weights: its scores spread widely, so that an order is not an accident of rounding."""

    def build(
        shape: str = "nested",
        num_items: int = 500,
        sizes: tuple[int, ...] = (8, 16, 16),
        max_history: int = 10,
        body: str = "gpt2",
    ) -> GenerativeRecommender:
        config = GeneratorConfig(
            model=ModelConfig.model_validate(
                {"shape": shape, "body": body, "hidden_size": 16, "max_history": max_history, "num_heads": 2}
            )
        )
        codes = random_codes(num_items, sizes)
        vectors = np.random.default_rng(1).normal(size=(num_items, 6)).astype(np.float32)
        torch.manual_seed(0)
        model = build_model(config, codes, sizes, vectors)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.15 * torch.randn_like(parameter))
        return GenerativeRecommender(config, codes, sizes, vectors, model)

    return build
