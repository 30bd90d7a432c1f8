"""Rollouts and catalogues of a few items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from recsys.alignment.rewards import RewardContext
from recsys.alignment.rollouts import Rollouts
from recsys.data import Sequences


def rollouts(
    items: Sequence[Sequence[int]],
    futures: Sequence[Sequence[int]],
    histories: Sequence[Sequence[int]] | None = None,
    texts: Sequence[Sequence[str]] | None = None,
) -> Rollouts:
    proposed = torch.tensor(items)
    scores = torch.where(proposed >= 0, -torch.arange(proposed.shape[1]).float(), -torch.inf)
    return Rollouts(
        histories=Sequences.from_lists(histories if histories is not None else [[0]] * len(items)),
        futures=torch.tensor(futures, dtype=torch.int64).reshape(len(items), -1),
        items=proposed,
        scores=scores,
        texts=texts,
    )


def context(codes: Sequence[Sequence[int]], **parts: Any) -> RewardContext:
    table = torch.tensor(codes)
    sizes = tuple((table.amax(0) + 1).tolist())
    return RewardContext(codes=table, codebook_sizes=sizes, **parts)
