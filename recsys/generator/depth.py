"""The depth decoder of the nested shape: what emits an item's codes from the state that a history came to.

One, or several beside each other whose logits are mixed: a head an objective on one backbone (MAH-DPO), of which only
the rows for codes are duplicated.

Shapes: D width, K codes of a level, H heads. The state of level 0 is the body's, [..., D]; after that it is the
decoder's own business, [..., S].
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from recsys.errors import ConfigError


class DepthDecoder(nn.Module):
    """Emits one code after another from a hidden state: a gated residual MLP a level, weights not shared."""

    def __init__(self, hidden_size: int, codebook_sizes: tuple[int, ...], dropout: float) -> None:
        super().__init__()
        self.code_embeddings = nn.ModuleList(nn.Embedding(size, hidden_size) for size in codebook_sizes[:-1])
        self.steps = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(2 * hidden_size),
                nn.Linear(2 * hidden_size, 2 * hidden_size),
                nn.GELU(),
                nn.Dropout(dropout),
                nn.Linear(2 * hidden_size, hidden_size),
            )
            for _ in codebook_sizes[:-1]
        )
        self.norms = nn.ModuleList(nn.LayerNorm(hidden_size) for _ in codebook_sizes)
        self.heads = nn.ModuleList(nn.Linear(hidden_size, size) for size in codebook_sizes)

    def read(self, state: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """The query [..., D] of `level` and the logits [..., K] from a state [..., D]."""
        query = self.norms[level](state)
        return query, self.heads[level](query)

    def step(self, state: Tensor, level: int, codes: Tensor) -> Tensor:
        """The state [..., D] after `codes` (int64 [...]) were emitted on `level`."""
        taken = self.code_embeddings[level](codes)
        return state + cast(Tensor, self.steps[level](torch.cat([state, taken], dim=-1)))


class DepthHeads(nn.Module):
    """A depth decoder an objective, decoded as one: the logits are sum_h a_h logits_h, and so are the queries.

    What is added to the logits of a `DepthDecoder` is linear in its query, so that mixing both is mixing the heads'
    logits of every child.

    Args:
        heads: the decoders, by objective; all of one size.
        weights: see `mixture`.
    """

    def __init__(self, heads: Mapping[str, DepthDecoder], weights: Mapping[str, float] | None = None) -> None:
        super().__init__()
        self.names = tuple(heads)
        self.objectives = nn.ModuleList(heads.values())
        self.weights = mixture(self.names, weights)

    def head(self, number: int) -> DepthDecoder:
        """The decoder of an objective by its place."""
        return cast(DepthDecoder, self.objectives[number])

    def weighted(self, weights: Mapping[str, float]) -> DepthHeads:
        """The same heads, mixed otherwise."""
        twin = copy.copy(self)
        twin.weights = mixture(self.names, weights)
        return twin

    def read(self, state: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """The mixed query [..., D] and logits [..., K] of `level` from a state [..., D], [..., H D] below level 0."""
        query = logits = torch.zeros((), device=state.device)
        for number, part in enumerate(self._parts(state, level)):
            own_query, own_logits = self.head(number).read(part, level)
            query, logits = query + self.weights[number] * own_query, logits + self.weights[number] * own_logits
        return query, logits

    def step(self, state: Tensor, level: int, codes: Tensor) -> Tensor:
        """The heads' states [..., H D], one after another, after `codes` (int64 [...]) were emitted on `level`."""
        parts = self._parts(state, level)
        return torch.cat([self.head(number).step(part, level, codes) for number, part in enumerate(parts)], dim=-1)

    def _parts(self, state: Tensor, level: int) -> Sequence[Tensor]:
        """The state [..., D] of each head."""
        return state.chunk(len(self.names), dim=-1) if level else [state] * len(self.names)


def mixture(names: Sequence[str], weights: Mapping[str, float] | None) -> tuple[float, ...]:
    """How much each head counts, summing to 1; the same for all when `weights` is None, 0 for what it leaves out.

    Raises:
        ConfigError: a name that is none of `names`, a negative weight, or none above 0.
    """
    if weights is None:
        return (1 / len(names),) * len(names)
    if unknown := sorted(set(weights) - set(names)):
        raise ConfigError(f"weights: {unknown[0]!r} is no objective of this model; it has {', '.join(names)}")
    total = sum(weights.values())
    if not all(0 <= weight < math.inf for weight in weights.values()) or total <= 0:
        raise ConfigError(f"weights: must be 0 or more, and one above 0, got {dict(weights)}")
    return tuple(weights.get(name, 0.0) / total for name in names)


def split_heads(
    decoder: DepthDecoder, names: Sequence[str], weights: Mapping[str, float] | None, *, noise: float, seed: int
) -> DepthHeads:
    """A copy of `decoder` an objective, each with Gaussian noise of its own on all weights.

    MAH-DPO begins so, with a standard deviation of 1e-3. One head alone gets none: nothing has to tell it from others.

    Args:
        decoder: as supervised training left it; it stays as it is.
        names: the objectives, each once.
        weights: see `mixture`.
        noise: standard deviation.
        seed: with the head's place, of the noise.
    """
    if not names or len(set(names)) < len(names):
        raise ValueError(f"names must be one or more, each once, got {list(names)}")
    heads = {}
    for number, name in enumerate(names):
        heads[name] = head = copy.deepcopy(decoder)
        random = np.random.default_rng([seed, number])
        if len(names) > 1:
            with torch.no_grad():
                for parameter in head.parameters():
                    added = random.normal(0, noise, tuple(parameter.shape)).astype(np.float32)
                    parameter.add_(torch.from_numpy(added).to(parameter.device))
    return DepthHeads(heads, weights)
