"""Constrained beam search over an item trie: the one decoder of evaluation, rollouts and the API.

Knows a model only through `SidModel`: encode a batch of histories once, then read the logits of legal children and
advance the beams level by level; and a catalogue only through its `Walk`, over a prefix tree or sets of tokens.
Vectorised over requests and beams. Log-probabilities are normalised over a node's legal children, so those of all items
sum to 1; a request's constraints mask candidates without renormalising, so the order among permitted items is their
unconstrained order.

Shapes: B requests, W beams, C children of a node.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recsys.generator.constraints import Constraints, RangeCounter
from recsys.generator.set_trie import SetTrie
from recsys.generator.set_walk import SetWalk
from recsys.generator.trie import Children, ItemTrie


class SidModel(Protocol):
    """What the decoder asks of a model; `state` is the model's own business."""

    def start(self, items: Tensor, lengths: Tensor) -> Any:
        """Encode right-padded histories (int64 [B, T]) of `lengths` (int64 [B]) as a state with one beam a request."""

    def child_logits(self, state: Any, level: int, children: Any) -> Tensor:
        """float32 [B, W, C]: logits of the `Children` of every beam's node; anything on padding.

        Over a `SetTrie` [B * W, J, K], logits of `TokenChildren`.
        """

    def advance(self, state: Any, level: int, beams: Tensor, codes: Tensor) -> Any:
        """The state after old beam `beams[b, w]` (int64 [B, W']) took `codes[b, w]` on `level` (tokens of a set)."""


class Walk(Protocol):
    """Where the beams of a batch stand in a catalogue."""

    def expand(self, model: SidModel, state: Any, level: int) -> Tensor:
        """float32 [B, W, C]: log-probabilities of the ways on; -inf for none and where no permitted item lies."""

    def keep(self, level: int, best: Tensor) -> tuple[Tensor, Tensor]:
        """Go on with candidates `best` (int64 [B, W'], flat [W * C]): their old beams and their codes, [B, W'] each."""

    def leaves(self) -> Tensor:
        """int64 [B, W]: after the last step, the item of each beam as its place among the sorted codes."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Recommendations:
    """Ranked items of B requests, best first; ties are ordered by semantic ID."""

    items: npt.NDArray[np.int64]
    """int64 [B, k]: item indices; -1 once no permitted item is left."""
    scores: npt.NDArray[np.float32]
    """float32 [B, k]: log-probabilities under the model; -inf beside -1."""


def legal_log_softmax(logits: Tensor, children: Children) -> Tensor:
    """Log-probabilities [..., C] over the legal children from their logits [..., C]; -inf on padding."""
    return logits.masked_fill(~children.legal, -torch.inf).log_softmax(-1)


def select_best(scores: Tensor, count: int) -> Tensor:
    """Indices (int64 [B, count], ascending) of the `count` largest of `scores` [B, S]; of equal ones the first.

    `topk` alone breaks ties arbitrarily, which would let batch size or engine change a list.
    """
    threshold = scores.topk(count, dim=-1).values[:, -1:]
    above = scores > threshold
    level = scores == threshold
    room = count - above.sum(-1, keepdim=True)
    chosen = above | (level & (level.cumsum(-1) <= room))
    return chosen.nonzero()[:, 1].view(len(scores), count)


class PrefixWalk:
    """The beams as nodes of an `ItemTrie`."""

    def __init__(self, trie: ItemTrie, constraints: Constraints, batch_size: int) -> None:
        self.trie = trie
        self.counter = RangeCounter(trie, constraints, batch_size)
        self.nodes = torch.zeros((batch_size, 1), dtype=torch.int64, device=trie.items.device)
        self.children: Children

    def expand(self, model: SidModel, state: Any, level: int) -> Tensor:
        """See `Walk`."""
        self.children = self.trie.children(level, self.nodes)
        log_probs = legal_log_softmax(model.child_logits(state, level, self.children), self.children)
        dead = ~self.children.legal
        alive = self.counter.alive(level, self.children.nodes)
        if alive is not None:
            dead = dead | ~alive
        return log_probs.masked_fill(dead, -torch.inf)

    def keep(self, level: int, best: Tensor) -> tuple[Tensor, Tensor]:
        """See `Walk`. Beams stay in ascending node order, so that the first of a tie is the lowest semantic ID."""
        self.nodes = self.children.nodes.flatten(1).gather(1, best)
        return best // self.trie.max_children[level], self.children.codes.flatten(1).gather(1, best)

    def leaves(self) -> Tensor:
        """See `Walk`."""
        return self.nodes


@torch.inference_mode()
def beam_search(
    model: SidModel,
    trie: ItemTrie | SetTrie,
    state: Any,
    *,
    batch_size: int,
    k: int,
    beams: int,
    constraints: Constraints,
) -> Recommendations:
    """The k best items of each request that the beam finds; all permitted ones when k exceeds their number.

    Args:
        model: gives the logits.
        trie: the catalogue.
        state: what `model` made of B requests, one beam each: its `start`, or another way in that it has.
        batch_size: B.
        k: length of the lists.
        beams: prefixes kept a level, at least k are kept.
        constraints: of the B requests.
    """
    beams = max(beams, k)
    walk: Walk
    if isinstance(trie, SetTrie):
        walk = SetWalk(trie, constraints, batch_size)
    else:
        walk = PrefixWalk(trie, constraints, batch_size)
    scores = torch.zeros((batch_size, 1), device=trie.items.device)
    for level in range(trie.num_levels):
        # A beam without permitted items enters with -inf, and -inf + x stays there, so it cannot revive.
        candidates = (scores.unsqueeze(-1) + walk.expand(model, state, level)).flatten(1)
        is_leaf = level == trie.num_levels - 1
        best = select_best(candidates, min(k if is_leaf else beams, candidates.shape[1]))
        scores = candidates.gather(1, best)
        parents, codes = walk.keep(level, best)
        if not is_leaf:
            state = model.advance(state, level, parents, codes)
    leaves, by_sid = walk.leaves().sort(dim=-1)
    scores, order = scores.gather(1, by_sid).sort(dim=-1, descending=True, stable=True)
    ranked = trie.items[leaves.gather(1, order)].masked_fill(scores == -torch.inf, -1)
    missing = (0, k - ranked.shape[1])
    return Recommendations(
        items=torch.nn.functional.pad(ranked, missing, value=-1).cpu().numpy(),
        scores=torch.nn.functional.pad(scores, missing, value=-torch.inf).cpu().numpy(),
    )
