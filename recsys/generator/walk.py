"""How a search stands in a catalogue and goes on in it, whichever its form. Knows no scores and no lists.

Shapes: B requests, W beams, C ways on from a beam.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from recsys.generator.constraints import RangeCounter
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
    """Where the beams of a batch stand in a catalogue. All but `expand` and `leaves` speak of the last expansion."""

    def expand(self, model: SidModel, state: Any, level: int) -> Tensor:
        """float32 [B, W, C]: log-probabilities of the ways on, which sum to 1 for a beam; -inf where there is none."""

    def alive(self) -> Tensor | None:
        """bool [B, W, C]: some permitted item lies that way; anything where there is no way. None: all do."""

    def whole(self) -> Tensor:
        """bool [B, W, C]: there is a way, and every item that lies there is permitted."""

    def codes(self) -> Tensor:
        """int64 [B, W, C]: the code (or token) that each way takes; anything where there is none."""

    def levels(self) -> Tensor:
        """int64 [B, W]: the level of the semantic ID whose code each beam takes."""

    def slots(self, items: Tensor) -> Tensor:
        """int64 [B, W]: which way leads to each beam's item (int64 [B, W]), given that the beam can reach it."""

    def first_places(self, candidates: Tensor) -> Tensor:
        """int64 [B]: no item below each candidate (int64 [B], flat [W * C]) has a lower place in the sorted codes."""

    def leaf_order(self) -> Tensor | None:
        """int64 [B, W * C]: after the last expansion, the place of each way's item among the sorted codes. None: they
        are in that order."""

    def keep(self, level: int, best: Tensor) -> tuple[Tensor, Tensor]:
        """Go on with candidates `best` (int64 [B, W'], flat [W * C]): their old beams and their codes, [B, W'] each."""

    def leaves(self) -> Tensor:
        """int64 [B, W]: after the last step, the item of each beam as its place among the sorted codes."""


def legal_log_softmax(logits: Tensor, children: Children) -> Tensor:
    """Log-probabilities [..., C] over the legal children from their logits [..., C]; -inf on padding."""
    return logits.masked_fill(~children.legal, -torch.inf).log_softmax(-1)


def temper(log_probs: Tensor, temperature: float) -> Tensor:
    """Log-probabilities [..., C] to the power of 1 / `temperature`, normalised again; -inf stays.

    Taken at every step of a path, the probabilities of all items still sum to 1, which a power of an item's own
    probability would need the whole catalogue for.
    """
    if temperature == 1.0:
        return log_probs
    none = log_probs == -torch.inf
    return (log_probs / temperature).log_softmax(-1).masked_fill(none, -torch.inf)


class PrefixWalk:
    """The beams as nodes of an `ItemTrie`; see `Walk`. Beams stay in ascending node order."""

    def __init__(self, trie: ItemTrie, counter: RangeCounter, batch_size: int) -> None:
        self.trie = trie
        self.counter = counter
        self.nodes = torch.zeros((batch_size, 1), dtype=torch.int64, device=trie.items.device)
        self.level = 0
        self.children: Children

    def expand(self, model: SidModel, state: Any, level: int) -> Tensor:
        """See `Walk`."""
        self.level = level
        self.children = self.trie.children(level, self.nodes)
        return legal_log_softmax(model.child_logits(state, level, self.children), self.children)

    def alive(self) -> Tensor | None:
        """See `Walk`."""
        return self.counter.alive(self.level, self.children.nodes)

    def whole(self) -> Tensor:
        """See `Walk`."""
        counts = self.counter.counts(self.level, self.children.nodes)
        if counts is None:
            return self.children.legal
        starts = self.trie.starts[self.level]
        return self.children.legal & (counts == starts[self.children.nodes + 1] - starts[self.children.nodes])

    def codes(self) -> Tensor:
        """See `Walk`."""
        return self.children.codes

    def levels(self) -> Tensor:
        """See `Walk`."""
        return torch.full_like(self.nodes, self.level)

    def slots(self, items: Tensor) -> Tensor:
        """See `Walk`."""
        return self.trie.child_slots(self.level, items)[1]

    def first_places(self, candidates: Tensor) -> Tensor:
        """See `Walk`."""
        nodes = self.children.nodes.flatten(1).gather(1, candidates.unsqueeze(1)).squeeze(1)
        return self.trie.starts[self.level][nodes]

    def leaf_order(self) -> Tensor | None:
        """See `Walk`."""
        return None

    def keep(self, level: int, best: Tensor) -> tuple[Tensor, Tensor]:
        """See `Walk`; `best` must ascend, so that the first of a tie stays the lowest semantic ID."""
        self.nodes = self.children.nodes.flatten(1).gather(1, best)
        return best // self.trie.max_children[level], self.children.codes.flatten(1).gather(1, best)

    def leaves(self) -> Tensor:
        """See `Walk`."""
        return self.nodes
