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
    return sum(table.nbytes for layer in cache.layers for table in _tables(layer))


def stack(caches: Sequence[DynamicCache]) -> DynamicCache:
    """The rows of all `caches` as one batch, padded at the end to the longest; the padding is zeros, to be hidden."""
    if len(caches) == 1:
        return fork(caches[0])
    joined = fork(caches[0])
    for depth, layer in enumerate(joined.layers):
        pairs = [_tables(cache.layers[depth]) for cache in caches]
        layer.keys, layer.values = (_padded(tables) for tables in zip(*pairs, strict=True))
    return joined


def take(cache: DynamicCache, row: int, length: int) -> DynamicCache:
    """The first `length` rows of sequence `row` as a cache of one sequence, in memory of its own."""
    taken = fork(cache)
    for layer in taken.layers:
        layer.keys, layer.values = (
            table[row : row + 1, :, :length].clone(memory_format=torch.contiguous_format) for table in _tables(layer)
        )
    return taken


def select(cache: DynamicCache, rows: Tensor) -> DynamicCache:
    """The sequences at `rows` (int64 [R]) as a batch of their own, padded as they were."""
    chosen = fork(cache)
    for layer in chosen.layers:
        layer.keys, layer.values = (table[rows] for table in _tables(layer))
    return chosen


def _tables(layer: object) -> tuple[Tensor, Tensor]:
    keys, values = layer.keys, layer.values  # type: ignore[attr-defined]
    return keys, values


def _padded(tables: Sequence[Tensor]) -> Tensor:
    longest = max(table.shape[2] for table in tables)
    return torch.cat([torch.nn.functional.pad(table, (0, 0, 0, longest - table.shape[2])) for table in tables])
