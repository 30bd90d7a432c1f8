"""How often proposals would be legal if nothing held them to the catalogue: unconstrained legality.

Without the trie, codes are drawn with all codes of a level in the denominator. The probability that what comes out is
an item is the sum over items of their probabilities so, which is the mean over the policy's own proposals of

    p over all codes / p over legal children = the product of the legal children's mass along the path.

A model that was trained over legal children is never told what is illegal: its legality says how much the trie does
for it, not that something is wrong.

Shapes: B histories, G proposals each.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEGALITY_GROUPS = 32
"""Groups that it is measured on: proposals are read whole, each by itself, where the model has a position a code."""


def unconstrained_legality(legal: Tensor, over_all: Tensor, weights: Tensor) -> float:
    """Mean over the groups of the mass, 0..1.

    Args:
        legal: float32 [B, G], log-probabilities over legal children.
        over_all: float32 [B, G], the same over all codes.
        weights: float32 [B, G], rows summing to 1, or to 0 where there is no proposal.
    """
    answered = weights.sum(1) > 0
    if not bool(answered.any()):
        return 0.0
    mass = torch.where(weights > 0, (over_all - legal).clamp(max=0.0).exp(), 0.0)
    return float((weights * mass).sum(1)[answered].mean())
