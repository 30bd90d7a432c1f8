"""Beams as query rows over one shared cache: each sees the prefix and its own ancestors, so nothing is copied per beam.

Exact, and many times cheaper than a cache per beam: a step is one forward pass of W rows a request.

Shapes: B requests, W beams, D width, S cached rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


class TreeBody(Protocol):
    """A causal transformer as tree decoding needs it; `cache` is the body's own business."""

    def prefill(self, inputs: Tensor) -> tuple[Tensor, Any]:
        """Hidden states [B, S, D] of inputs [B, S, D], and a cache of S rows."""

    def extend(self, inputs: Tensor, cache: Any, positions: Tensor, visible: Tensor) -> Tensor:
        """Hidden states [B, Q, D] of further rows, appended to `cache`.

        `positions` is int64 [B, Q], `visible` bool [B, Q, S + Q].
        """


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


def plant(body: TreeBody, inputs: Tensor, lengths: Tensor) -> TreeState:
    """One beam a request at the end of its prefix: inputs float32 [B, S, D], right-padded, of `lengths` (int64 [B])."""
    hidden, cache = body.prefill(inputs)
    visible = torch.arange(hidden.shape[1], device=inputs.device) < lengths.unsqueeze(1)
    last = hidden[torch.arange(len(inputs), device=inputs.device), lengths - 1]
    return TreeState(hidden=last.unsqueeze(1), cache=cache, visible=visible.unsqueeze(1), next_position=lengths)


def grow(body: TreeBody, state: TreeState, beams: Tensor, inputs: Tensor) -> TreeState:
    """The state after old beam `beams[b, w]` (int64 [B, W]) was extended by row `inputs[b, w]` (float32 [B, W, D])."""
    batch_size, width = beams.shape
    ancestors = state.visible.gather(1, beams.unsqueeze(-1).expand(-1, -1, state.visible.shape[-1]))
    itself = torch.eye(width, dtype=torch.bool, device=beams.device).expand(batch_size, -1, -1)
    visible = torch.cat([ancestors, itself], dim=-1)
    positions = state.next_position.unsqueeze(1).expand(-1, width)
    hidden = body.extend(inputs, state.cache, positions=positions, visible=visible)
    return TreeState(hidden=hidden, cache=state.cache, visible=visible, next_position=state.next_position + 1)
