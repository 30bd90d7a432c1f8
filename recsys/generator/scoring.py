"""The steps of a search on the way to given items: what the model says of each choice. The decoder, forced.

Shapes: B requests, C ways on.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from recsys.generator.constraints import Constraints
from recsys.generator.decoder import start_walk
from recsys.generator.set_trie import SetTrie
from recsys.generator.tree_decoding import Prefix, select
from recsys.generator.trie import ItemTrie
from recsys.generator.walk import SidModel


@torch.inference_mode()
def forced_steps(model: SidModel, trie: ItemTrie | SetTrie, state: Any, items: Tensor) -> list[tuple[Tensor, Tensor]]:
    """For each level the log-probabilities of all ways on, float32 [B, C], and the taken one's place, int64 [B].

    Args:
        model: gives the logits.
        trie: the catalogue.
        state: what `model` made of B requests, one beam each.
        items: int64 [B], where each request's path leads.
    """
    walk = start_walk(trie, Constraints(), len(items))
    steps = []
    for level in range(trie.num_levels):
        log_probs = walk.expand(model, state, level)
        slots = walk.slots(items.unsqueeze(1))
        steps.append((log_probs.squeeze(1), slots.squeeze(1)))
        if level < trie.num_levels - 1:
            state = model.advance(state, level, *walk.keep(level, slots))
    return steps


class PrefixModel(SidModel, Protocol):
    """A model whose reading of histories is a value."""

    def state(self, prefix: Prefix) -> Any:
        """The decoder's state with one beam a request; `prefix` stays as it is."""


@torch.inference_mode()
def item_log_probs(
    model: PrefixModel, trie: ItemTrie | SetTrie, prefix: Prefix, rows: Tensor, items: Tensor, at_a_time: int
) -> Tensor:
    """float32 [M]: log-probability of each of `items` as the next one, in the arithmetic of the search.

    Args:
        model: gives the logits.
        trie: the catalogue.
        prefix: B encoded histories.
        rows: int64 [M], after which of them each item would come.
        items: int64 [M].
        at_a_time: how many of the M paths are walked together; changes memory, not results.
    """
    totals = []
    for some, targets in zip(torch.split(rows, at_a_time), torch.split(items, at_a_time), strict=True):
        steps = forced_steps(model, trie, model.state(select(prefix, some)), targets)
        taken = [log_probs.gather(1, slots.unsqueeze(1)).squeeze(1) for log_probs, slots in steps]
        totals.append(torch.stack(taken).sum(0))
    return torch.cat(totals) if totals else torch.zeros(0)
