"""How much probability the items have that a request is permitted, as a sum of positive terms.

A prefix whose items are all permitted counts as it is, one with none does not count, and only what is mixed is looked
into. A few denied items make a few mixed prefixes a level, so that the sum is cheap and exact. Masks of any form can
make many: those beyond a budget stay unresolved and make the answer an interval.

Shapes: B requests, W beams.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from recsys.generator.constraints import Constraints
from recsys.generator.decoder import select_best, start_walk
from recsys.generator.set_trie import SetTrie
from recsys.generator.trie import ItemTrie
from recsys.generator.walk import SidModel, temper


@dataclass(frozen=True, kw_only=True, eq=False)
class LogMass:
    """The log-probability that an item of the model is a permitted one, between two limits."""

    low: Tensor
    """float64 [B]; -inf for nothing."""
    high: Tensor
    """float64 [B]."""

    @property
    def is_exact(self) -> Tensor:
        """bool [B]: nothing stayed unresolved."""
        return self.low == self.high


@torch.inference_mode()
def permitted_log_mass(
    model: SidModel,
    trie: ItemTrie | SetTrie,
    state: Any,
    *,
    batch_size: int,
    constraints: Constraints,
    temperature: float = 1.0,
    max_beams: int,
) -> LogMass:
    """The mass of what allow and deny leave; see `decoder.beam_search` for the arguments.

    Args:
        max_beams: mixed prefixes that are looked into on a level, the most probable ones.
    """
    walk = start_walk(trie, constraints, batch_size)
    scores = torch.zeros((batch_size, 1), device=trie.items.device)
    low = torch.full((batch_size,), -torch.inf, dtype=torch.float64, device=scores.device)
    unresolved = low
    for level in range(trie.num_levels):
        totals = scores.unsqueeze(-1) + temper(walk.expand(model, state, level), temperature)
        whole = walk.whole()
        low = torch.logaddexp(low, _log_sum(totals.masked_fill(~whole, -torch.inf)))
        mixed = totals.masked_fill(whole, -torch.inf)
        alive = walk.alive()
        if alive is not None:
            mixed = mixed.masked_fill(~alive, -torch.inf)
        mixed = mixed.flatten(1)
        count = int((mixed > -torch.inf).sum(-1).max()) if batch_size else 0
        if count == 0:
            break
        best, _ = select_best(mixed, min(count, max_beams))
        left_out = mixed.scatter(1, best, -torch.inf)
        unresolved = torch.logaddexp(unresolved, _log_sum(left_out))
        scores = mixed.gather(1, best)
        parents, codes = walk.keep(level, best)
        state = model.advance(state, level, parents, codes)
    return LogMass(low=low, high=torch.logaddexp(low, unresolved))


def _log_sum(totals: Tensor) -> Tensor:
    """float64 [B]: the log of the sum of all probabilities of each request."""
    return totals.flatten(1).double().logsumexp(-1)
