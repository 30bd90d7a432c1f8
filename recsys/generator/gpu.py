"""A generator on the first GPU of this machine, where programs that only search take it to."""

from __future__ import annotations

from typing import Literal

import torch

from recsys.errors import ConfigError
from recsys.generator.any_order import AnyOrderModel
from recsys.generator.placement import place
from recsys.generator.recommender import GenerativeRecommender

Device = Literal["cpu", "cuda"]


def on_gpu(generator: GenerativeRecommender) -> GenerativeRecommender:
    """The generator with its model, which others share, moved in place; with graphs where its shape has some.

    Weights keep their precision, so that lists are those of the CPU up to the rounding of scores.

    Raises:
        ConfigError: PyTorch has no CUDA device here.
    """
    if not torch.cuda.is_available():
        raise ConfigError("device: PyTorch finds no CUDA device here; choose cpu")
    place(generator.model, torch.device("cuda"))
    return generator if isinstance(generator.model, AnyOrderModel) else generator.with_graphs()
