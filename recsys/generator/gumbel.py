"""Random ranks on the way down a trie: the best k of them are a sample of k items without replacement.

Stochastic beam search (Kool et al. 2019, arXiv 1903.06059, section 3 and appendix B.3): an item's rank is its
log-probability plus a Gumbel variable, and a prefix has the rank of its best item, drawn before that item is known. The
children's ranks are then drawn under the condition that the best of them has their parent's rank.

Every prefix draws from its own number, a hash of the request's seed and of its codes, so that a request's ranks depend
neither on what else is in the batch nor on how many beams look at them.

Shapes: B requests, W beams, C ways on from a beam.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recsys.generator.walk import Walk

# Constants of splitmix64 (Steele, Lea and Flood 2014), as signed integers.
_STEP, _FIRST, _SECOND = (number - (1 << 64) for number in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


class GumbelNoise:
    """Ranks of one search; see `decoder.Noise`.

    Args:
        seeds: int64 [B], of each request.
    """

    def __init__(self, seeds: Tensor) -> None:
        self._keys = _mix(seeds).unsqueeze(1)
        # All items together have a log-probability of 0, so that the best rank is a Gumbel variable. Which items come
        # first does not depend on it; how far they lie above a threshold does.
        self._ranks = -(-_uniform(_mix(self._keys)).log()).log()

    def ranks(self, totals: Tensor, walk: Walk) -> Tensor:
        """float64 [B, W, C]: see `decoder.Noise`."""
        none = totals == -torch.inf
        self._keys = _mix(self._keys.unsqueeze(-1) * _FIRST + walk.codes())
        free = totals.double() - (-_uniform(self._keys).log()).log()
        parents = self._ranks.unsqueeze(-1)
        # As in appendix B.3; where a child is the best one, its rank comes out as exactly its parent's.
        gap = parents - free + _log1mexp(free - free.amax(-1, keepdim=True))
        ranks = parents - gap.clamp(min=0) - torch.log1p(torch.exp(-gap.abs()))
        self._ranks = ranks.masked_fill(none, -torch.inf)
        return self._ranks

    def keep(self, best: Tensor) -> None:
        """See `decoder.Noise`."""
        self._keys = self._keys.flatten(1).gather(1, best)
        self._ranks = self._ranks.flatten(1).gather(1, best)


def _log1mexp(values: Tensor) -> Tensor:
    """log(1 - exp(values)) for values up to 0 (Maechler 2012)."""
    return torch.where(values > -0.693, (-torch.expm1(values)).log(), torch.log1p(-values.exp()))


def _mix(values: Tensor) -> Tensor:
    """A hash of int64 values: splitmix64, whose products wrap around."""
    values = values + _STEP
    values = (values ^ _shift(values, 30)) * _FIRST
    values = (values ^ _shift(values, 27)) * _SECOND
    return values ^ _shift(values, 31)


def _shift(values: Tensor, bits: int) -> Tensor:
    """A right shift that takes int64 for uint64."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def _uniform(keys: Tensor) -> Tensor:
    """float64, strictly between 0 and 1, from hashes."""
    return (_shift(keys, 11).double() + 0.5) * 2.0**-53
