"""Random slates and how probable they were: what exploration shows, and what off-policy estimates need of it.

A slate is a sample of k items without replacement from the model, restricted to the permitted items: the first is drawn
from their probabilities, each further one from those of the rest. The probability of an ordered slate is the product
over its places of p_i / (permitted mass that is not listed before), and each place's factor is its propensity. The
mass behind the slate is summed over what it holds (`mass`), never taken as 1 minus what is listed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recsys.generator.constraints import Constraints
from recsys.generator.lists import SearchPlan, find_lists, shortages
from recsys.generator.mass import permitted_log_mass
from recsys.generator.recommendations import Shortage
from recsys.generator.scoring import PrefixModel
from recsys.generator.set_trie import SetTrie
from recsys.generator.tree_decoding import Prefix
from recsys.generator.trie import ItemTrie


@dataclass(frozen=True, kw_only=True, eq=False)
class SampledSlates:
    """Ordered samples of B requests."""

    items: npt.NDArray[np.int64]
    """int64 [B, k]: item indices in the order in which they were drawn; -1 once no permitted item is left."""
    scores: npt.NDArray[np.float32]
    """float32 [B, k]: log-probabilities under the tempered model, of the whole catalogue; -inf beside -1."""
    log_propensities: npt.NDArray[np.float64]
    """float64 [B, k]: log-probability of each item at its place, given the permitted items and those before it; 0
    beside -1. Their sum is the log-probability of the ordered slate. NaN where the request is not `exact`."""
    exact: npt.NDArray[np.bool_]
    """bool [B]: the slate is an exact sample and its propensities are exact. Not so if constraints leave so little that
    the budget of beams did not suffice for the sample, or for the permitted mass."""
    short: Sequence[Shortage | None]
    """Of each request why its slate has fewer than k items; None for a full one."""

    @property
    def log_probability(self) -> npt.NDArray[np.float64]:
        """float64 [B]: of the whole ordered slate."""
        return np.asarray(self.log_propensities.sum(axis=1))


def draw_slates(
    model: PrefixModel,
    trie: ItemTrie | SetTrie,
    prefix: Prefix,
    constraints: Constraints,
    plan: SearchPlan,
    seeds: Tensor,
) -> SampledSlates:
    """Slates of B requests; see `lists.find_lists` for the arguments.

    Raises:
        ValueError: constraints with caps, under which a slate is no sample without replacement.
    """
    if constraints.caps:
        raise ValueError("caps must be empty for a random slate: its propensities would not hold")
    found = find_lists(model, trie, prefix, constraints, plan, seeds)
    listed = [row[row >= 0] for row in found.items.numpy()]
    rest = permitted_log_mass(
        model,
        trie,
        model.state(prefix),
        batch_size=len(listed),
        constraints=constraints.deny_also(listed),
        temperature=plan.temperature,
        max_beams=plan.beams if plan.max_beams is None else plan.max_beams,
    )
    exact = found.certified & rest.is_exact.cpu()
    log_propensities = _propensities(found.scores, rest.low.cpu()).masked_fill(~exact.unsqueeze(1), torch.nan)
    return SampledSlates(
        items=found.items.numpy(),
        scores=found.scores.numpy(),
        log_propensities=log_propensities.numpy(),
        exact=exact.numpy(),
        short=shortages(found.items, constraints, trie.num_items),
    )


def _propensities(scores: Tensor, rest: Tensor) -> Tensor:
    """float64 [B, k]: log p_i - log(sum of p_j for j >= i, and of the rest) from log-probabilities [B, k] and [B]."""
    backwards = torch.cat([rest.unsqueeze(1), scores.double().flip(1)], dim=1)
    left = backwards.logcumsumexp(1)[:, 1:].flip(1)
    return torch.where(scores == -torch.inf, 0.0, scores.double() - left)
