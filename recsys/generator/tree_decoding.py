"""What a causal transformer has read, and beams that go on from it: query rows over one shared cache.

A prefix is a value: reading on, or searching, makes another one and leaves it as it is, so that it can be kept. Beams
see the prefix and their own ancestors, so nothing is copied per beam: exact, and many times cheaper than a cache per
beam, as a step is one forward pass of W rows a request.

Shapes: B requests, W beams, D width, S cached rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from recsys.generator import caches


class TreeBody(Protocol):
    """A causal transformer as tree decoding needs it."""

    def prefill(self, inputs: Tensor) -> tuple[Tensor, Any]:
        """Hidden states [B, S, D] of inputs [B, S, D], and a cache of S rows."""

    def extend(self, inputs: Tensor, cache: Any, positions: Tensor, visible: Tensor) -> Tensor:
        """Hidden states [B, Q, D] of further rows, appended to `cache`.

        `positions` is int64 [B, Q], `visible` bool [B, Q, S + Q].
        """


@dataclass(frozen=True, kw_only=True, eq=False)
class Prefix:
    """What a body has read of B sequences."""

    hidden: Tensor
    """float32 [B, D]: the last row of each."""
    cache: Any
    """Keys and values of S rows (see `caches`); never appended to."""
    lengths: Tensor
    """int64 [B]: the rows of each sequence; those behind, up to S, are padding."""

    @property
    def num_bytes(self) -> int:
        """Memory that keeping it takes."""
        return caches.num_bytes(self.cache) + self.hidden.nbytes + self.lengths.nbytes


def read(body: TreeBody, inputs: Tensor, lengths: Tensor) -> Prefix:
    """The prefix of inputs float32 [B, S, D], right-padded, of `lengths` (int64 [B], at least 1)."""
    hidden, cache = body.prefill(inputs)
    last = hidden[torch.arange(len(inputs), device=inputs.device), lengths - 1]
    return Prefix(hidden=last, cache=cache, lengths=lengths)


def read_on(body: TreeBody, prefix: Prefix, inputs: Tensor) -> Prefix:
    """The prefix followed by inputs float32 [B, Q, D], Q at least 1: one forward pass of Q rows a sequence.

    Raises:
        ValueError: the sequences of `prefix` differ in length, so that there is padding where the rows would go.
    """
    size = int(prefix.lengths[0])
    if (prefix.lengths != size).any():
        raise ValueError(f"prefix: lengths must be equal to read on, got {prefix.lengths.tolist()}; split it")
    batch_size, count = inputs.shape[:2]
    cache = caches.fork(prefix.cache)
    steps = torch.arange(count, device=inputs.device)
    visible = torch.arange(size + count, device=inputs.device) <= size + steps.unsqueeze(1)
    hidden = body.extend(
        inputs,
        cache,
        positions=(size + steps).expand(batch_size, -1),
        visible=visible.expand(batch_size, -1, -1),
    )
    return Prefix(hidden=hidden[:, -1], cache=cache, lengths=prefix.lengths + count)


def rows_from(hidden: Tensor, start: Tensor | int, count: int) -> Tensor:
    """float32 [B, count, D]: rows of `hidden` (float32 [B, S, D]) from `start` on (int64 [B], or one number)."""
    if isinstance(start, int):
        return hidden[:, start : start + count].contiguous()
    rows = start.unsqueeze(1) + torch.arange(count, device=hidden.device)
    return hidden.gather(1, rows.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))


def stack(prefixes: Sequence[Prefix]) -> Prefix:
    """The sequences of all `prefixes` as one batch, in their order."""
    return Prefix(
        hidden=torch.cat([prefix.hidden for prefix in prefixes]),
        cache=caches.stack([prefix.cache for prefix in prefixes]),
        lengths=torch.cat([prefix.lengths for prefix in prefixes]),
    )


def select(prefix: Prefix, rows: Tensor) -> Prefix:
    """The sequences at `rows` (int64 [R]) as a batch of their own."""
    return Prefix(hidden=prefix.hidden[rows], cache=caches.select(prefix.cache, rows), lengths=prefix.lengths[rows])


def split(prefix: Prefix) -> list[Prefix]:
    """Every sequence as a prefix of its own, without padding, in memory of its own."""
    return [
        Prefix(
            hidden=prefix.hidden[row : row + 1].clone(),
            cache=caches.take(prefix.cache, row, length),
            lengths=prefix.lengths[row : row + 1].clone(),
        )
        for row, length in enumerate(prefix.lengths.tolist())
    ]


@dataclass(frozen=True, kw_only=True, eq=False)
class TreeState:
    """One search's state: the shared cache and what each beam may see of it."""

    hidden: Tensor
    """float32 [B, W, D]: the last row of every beam."""
    cache: Any
    visible: Tensor
    """bool [B, W, S]: the prefix and the ancestors of every beam."""
    next_position: Tensor
    """int64 [B]: the position of the next row."""


def plant(prefix: Prefix) -> TreeState:
    """One beam a request at the end of its prefix. The rows of the beams go into a cache of the search's own."""
    size = prefix.cache.get_seq_length()
    visible = torch.arange(size, device=prefix.hidden.device) < prefix.lengths.unsqueeze(1)
    return TreeState(
        hidden=prefix.hidden.unsqueeze(1),
        cache=caches.fork(prefix.cache),
        visible=visible.unsqueeze(1),
        next_position=prefix.lengths,
    )


def grow(body: TreeBody, state: TreeState, beams: Tensor, inputs: Tensor, wanted: Tensor | None = None) -> TreeState:
    """The state after old beam `beams[b, w]` (int64 [B, W]) was extended by row `inputs[b, w]` (float32 [B, W, D]).

    Beams that are not `wanted` (bool [B, W]; None: all are) cost no row: neither their hidden state nor that of any
    beam that goes on from them is one that the caller reads.
    """
    batch_size, width = beams.shape
    ancestors = state.visible.gather(1, beams.unsqueeze(-1).expand(-1, -1, state.visible.shape[-1]))
    next_position = state.next_position + 1
    rows = None
    count = width
    if wanted is not None:
        count = int(wanted.sum(-1).max())
        if count < width:
            # The wanted ones first; a request with fewer of them than another one fills up with others.
            rows = wanted.sort(dim=-1, descending=True, stable=True).indices[:, :count]
    if count == 0:
        hidden = torch.zeros_like(inputs)
        return TreeState(hidden=hidden, cache=state.cache, visible=ancestors, next_position=next_position)
    itself = torch.eye(count, dtype=torch.bool, device=beams.device).expand(batch_size, -1, -1)
    positions = state.next_position.unsqueeze(1).expand(-1, count)
    if rows is None:
        visible = torch.cat([ancestors, itself], dim=-1)
        hidden = body.extend(inputs, state.cache, positions=positions, visible=visible)
    else:
        seen = ancestors.gather(1, rows.unsqueeze(-1).expand(-1, -1, ancestors.shape[-1]))
        extended = body.extend(
            inputs.gather(1, rows.unsqueeze(-1).expand(-1, -1, inputs.shape[-1])),
            state.cache,
            positions=positions,
            visible=torch.cat([seen, itself], dim=-1),
        )
        hidden = torch.zeros_like(inputs).scatter(1, rows.unsqueeze(-1).expand_as(extended), extended)
        itself = itself.new_zeros(batch_size, width, count).scatter(1, rows.unsqueeze(-1).expand_as(itself), itself)
        visible = torch.cat([ancestors, itself], dim=-1)
    return TreeState(hidden=hidden, cache=state.cache, visible=visible, next_position=next_position)
