"""The steps of a search on the way to given items: what the model says of each choice. The decoder, forced.

Shapes: B requests, C ways on.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from recsys.generator.constraints import Constraints
from recsys.generator.decoder import start_walk
from recsys.generator.set_trie import SetTrie
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
