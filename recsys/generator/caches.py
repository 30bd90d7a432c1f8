"""Key/value caches as values: a copy that may grow by itself, rows of several put together and taken apart.

Knows transformers' `DynamicCache`, which appends by making new tensors and never writes into old ones: two caches can
share what they have in common. Knows no models.

Shapes: B sequences, S cached rows; keys and values are [B, heads, S, D / heads] a layer.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache


def fork(cache: DynamicCache) -> DynamicCache:
    """A cache with the same rows, of which the tensors are shared; rows appended to one are not in the other."""
    twin = copy.copy(cache)
    twin.layers = [copy.copy(layer) for layer in cache.layers]
    return twin


def num_bytes(cache: DynamicCache) -> int:
    """Memory of the keys and values."""
    return sum(table.nbytes for table in tables(cache))


def stack(caches: Sequence[DynamicCache]) -> DynamicCache:
    """The rows of all `caches` as one batch, padded at the end to the longest; the padding is zeros, to be hidden."""
    if len(caches) == 1:
        return fork(caches[0])
    return over(caches[0], [_padded(parts) for parts in zip(*map(tables, caches), strict=True)])


def take(cache: DynamicCache, row: int, length: int) -> DynamicCache:
    """The first `length` rows of sequence `row` as a cache of one sequence, in memory of its own."""
    rows = [table[row : row + 1, :, :length] for table in tables(cache)]
    return over(cache, [table.clone(memory_format=torch.contiguous_format) for table in rows])


def select(cache: DynamicCache, rows: Tensor) -> DynamicCache:
    """The sequences at `rows` (int64 [R]) as a batch of their own, padded as they were."""
    return over(cache, [table[rows] for table in tables(cache)])


def tables(cache: DynamicCache) -> list[Tensor]:
    """Keys and values of each layer in turn."""
    return [table for layer in cache.layers for table in _tables(layer)]


def over(cache: DynamicCache, held: Sequence[Tensor]) -> DynamicCache:
    """A cache like `cache` that holds these tables."""
    twin = fork(cache)
    for layer, keys, values in zip(twin.layers, held[::2], held[1::2], strict=True):
        layer.keys, layer.values = keys, values
    return twin


def _tables(layer: object) -> tuple[Tensor, Tensor]:
    keys, values = layer.keys, layer.values  # type: ignore[attr-defined]
    return keys, values


def _padded(parts: Sequence[Tensor]) -> Tensor:
    longest = max(part.shape[2] for part in parts)
    return torch.cat([torch.nn.functional.pad(part, (0, 0, 0, longest - part.shape[2])) for part in parts])
