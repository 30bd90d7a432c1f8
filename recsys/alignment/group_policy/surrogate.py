"""What is minimised for a proposal with an advantage, given how probable it was when it was proposed.

Elementwise, over any shape: a semantic ID is one action, a text one action a token. rho = p / p_old.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

SurrogateKind = Literal["clipped", "ecpo", "gbpo"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Surrogate:
    """Losses, and where a bound took effect."""

    loss: Tensor
    """float32, the shape of the input."""
    clipped: Tensor
    """bool: beyond the clipping range, without a gradient."""
    early: Tensor
    """bool: held by ECPO's early clipping, or by GBPO's bound."""


def surrogate(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    kind: SurrogateKind,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    early: float = 0.1,
) -> Surrogate:
    """Losses to be minimised.

    Args:
        log_probs: under the policy, with gradients.
        old_log_probs: under the policy that proposed, without.
        advantages: the same shape.
        kind: `clipped`: -min(rho A, clip(rho, 1 - low, 1 + high) A) (PPO, arXiv 1707.06347; with high > low DAPO's
            clip-higher, arXiv 2503.14476). `ecpo`: the same, but for A < 0 p_old is at least p / (1 + high + early),
            so that rho stays bounded while its gradient lives (OneRec, arXiv 2506.13695). `gbpo`: -(p / bound) A
            without clipping, with bound max(p_old, p) for A >= 0 and max(p_old, 1 - p) for A < 0 (OneRec-V2, arXiv
            2508.20900).
        clip_low: see `kind`.
        clip_high: see `kind`.
        early: ECPO's delta.
    """
    current = log_probs.detach()
    none = torch.zeros_like(advantages, dtype=torch.bool)
    if kind == "gbpo":
        other = torch.where(advantages >= 0, current, torch.log1p(-current.exp().clamp(max=1 - 1e-7)))
        bound = torch.maximum(old_log_probs, other)
        return Surrogate(loss=-(log_probs - bound).exp() * advantages, clipped=none, early=other > old_log_probs)
    held = none
    if kind == "ecpo":
        floor = current - torch.log1p(torch.tensor(clip_high + early))
        held = (advantages < 0) & (floor > old_log_probs)
        old_log_probs = torch.where(held, floor, old_log_probs)
    ratio = (log_probs - old_log_probs).exp()
    limited = ratio.clamp(1 - clip_low, 1 + clip_high)
    free, bounded = ratio * advantages, limited * advantages
    return Surrogate(loss=-torch.minimum(free, bounded), clipped=(bounded < free) & (ratio != limited), early=held)


def kl_estimate(log_probs: Tensor, reference_log_probs: Tensor) -> Tensor:
    """Schulman's third estimator of KL(policy || reference) from samples: exp(d) - d - 1 for d = log p_ref - log p."""
    difference = reference_log_probs - log_probs
    return difference.exp() - difference - 1
