"""The steps of a search on the way to given items: what the model says of each choice. The decoder, forced.

Shapes: B requests, C ways on.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from recsys.generator.constraints import Constraints
from recsys.generator.decoder import start_walk
from recsys.generator.set_trie import SetTrie
from recsys.generator.tree_decoding import Prefix, select
from recsys.generator.trie import ItemTrie
from recsys.generator.walk import SidModel


class Step(NamedTuple):
    """One choice on the way to each of B items."""

    log_probs: Tensor
    """float32 [B, C], of all ways on."""
    slots: Tensor
    """int64 [B], the place of the one that is taken."""
    levels: Tensor
    """int64 [B], the level of the semantic ID that its code is of."""

    def taken(self) -> Tensor:
        """float32 [B]: log-probability of what is taken."""
        return self.log_probs.gather(1, self.slots.unsqueeze(1)).squeeze(1)


@torch.inference_mode()
def forced_steps(model: SidModel, trie: ItemTrie | SetTrie, state: Any, items: Tensor) -> list[Step]:
    """The choices that lead to given items, in the order in which the search makes them.

    Args:
        model: gives the logits.
        trie: the catalogue.
        state: what `model` made of B requests, one beam each.
        items: int64 [B], where each request's path leads.
    """
    items = items.to(trie.items.device)
    walk = start_walk(trie, Constraints(), len(items))
    steps = []
    for level in range(trie.num_levels):
        log_probs = walk.expand(model, state, level)
        slots = walk.slots(items.unsqueeze(1))
        steps.append(Step(log_probs.squeeze(1), slots.squeeze(1), walk.levels().squeeze(1)))
        if level < trie.num_levels - 1:
            state = model.advance(state, level, *walk.keep(level, slots))
    return steps


class PrefixModel(SidModel, Protocol):
    """A model whose reading of histories is a value."""

    def state(self, prefix: Prefix) -> Any:
        """The decoder's state with one beam a request; `prefix` stays as it is."""


@torch.inference_mode()
def code_log_probs(
    model: PrefixModel, trie: ItemTrie | SetTrie, prefix: Prefix, rows: Tensor, items: Tensor, at_a_time: int
) -> Tensor:
    """float32 [M, L]: log-probability of each code of `items`, given those that the model emits before it.

    In the arithmetic of the search; their sum is that of the item as the next one.

    Args:
        model: gives the logits.
        trie: the catalogue.
        prefix: B encoded histories.
        rows: int64 [M], after which of them each item would come.
        items: int64 [M].
        at_a_time: how many of the M paths are walked together; changes memory, not results.
    """
    found = [torch.zeros(0, trie.num_levels, device=prefix.hidden.device)]
    for some, targets in zip(torch.split(rows, at_a_time), torch.split(items, at_a_time), strict=True):
        steps = forced_steps(model, trie, model.state(select(prefix, some)), targets)
        taken = torch.stack([step.taken() for step in steps], dim=1)
        levels = torch.stack([step.levels for step in steps], dim=1)
        found.append(torch.empty_like(taken).scatter_(1, levels, taken))
    return torch.cat(found)
