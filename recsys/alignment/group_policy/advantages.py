"""By how much a proposal is better than the rest of its group: what its log-probability is moved by.

Shapes: B groups of G proposals. Places without a proposal count for nothing and have an advantage of 0.
"""

from __future__ import annotations

from typing import Literal

import torch
from scipy.special import comb
from torch import Tensor

AdvantageKind = Literal["grpo", "dr_grpo", "srpo", "expected"]

_SAME = 1e-6
"""Rewards of a group that differ by less (standard deviation) say nothing."""


def group_advantages(
    rewards: Tensor,
    is_real: Tensor,
    kind: AdvantageKind,
    *,
    exact: Tensor | None = None,
    weights: Tensor | None = None,
    pass_at: int = 4,
    limit: float | None = 5.0,
) -> Tensor:
    """float32 [B, G]: advantages; 0 throughout a group whose rewards are all the same.

    Args:
        rewards: float32 [B, G].
        is_real: bool [B, G].
        kind: `grpo`: (r - mean) / deviation (arXiv 2402.03300). `dr_grpo`: r - mean (arXiv 2503.20783). `srpo`: as
            `grpo`, plus the pass@k bonus of GREAM (arXiv 2510.20815). `expected`: G * w * (r - sum of w r), with which
            the policy gradient is that of the expected reward over the group.
        exact: bool [B, G], the proposals that are the next item; for `srpo`.
        weights: float32 [B, G], rows summing to 1: for `expected`, and for the mean and deviation of the others where
            proposals stand for unequal shares of the policy. Equal ones when None.
        pass_at: k of the bonus.
        limit: advantages are clipped to -limit..limit; None for no clipping.

    Raises:
        ValueError: groups of fewer than two places, or a kind without what it needs.
    """
    if rewards.shape[1] < 2:
        raise ValueError(f"a group needs at least 2 proposals to compare, got {rewards.shape[1]}")
    if weights is None:
        weights = is_real / is_real.sum(1, keepdim=True).clamp(min=1)
    mean = (weights * rewards).sum(1, keepdim=True)
    centred = torch.where(is_real, rewards - mean, 0.0)
    count = is_real.sum(1, keepdim=True)
    # Unbiased where all weigh the same, as in the published code.
    deviation = ((weights * centred.square()).sum(1, keepdim=True) * count / (count - 1).clamp(min=1)).sqrt()
    live = deviation > _SAME
    if kind == "expected":
        found = weights * centred * count
    elif kind == "dr_grpo":
        found = centred
    else:
        found = centred / (deviation + 1e-6)
    if kind == "srpo":
        if exact is None:
            raise ValueError("srpo needs to know which proposals are exact")
        bonus = pass_at_k_bonus(exact & is_real, is_real, pass_at)
        found, live = found + bonus, live | (bonus != 0).any(1, keepdim=True)
    found = torch.where(is_real & live, found, 0.0)
    return found if limit is None else found.clamp(-limit, limit)


def tempered(weights: Tensor, power: float) -> Tensor:
    """float32 [B, G]: `weights` to a power, rows summing to 1 again; what weighs nothing still weighs nothing.

    With a divergence in the reward, a power below 1 takes the least squares between log-ratios and rewards (REBEL,
    arXiv 2404.16767, over a group) towards counting all proposals alike.
    """
    if power == 1:
        return weights
    raised = torch.where(weights > 0, weights.pow(power), 0.0)
    return raised / raised.sum(1, keepdim=True).clamp(min=1e-30)


def pass_at_k_bonus(exact: Tensor, is_real: Tensor, k: int) -> Tensor:
    """float32 [B, G]: GREAM's bonus, the advantage under the objective that one of k random proposals is exact.

    With n proposals, c of them exact, and rho = 1 - C(n - c, k) / C(n, k): (1 - rho) / deviation for exact ones, and
    (1 - rho - C(n - c - 1, k - 1) / C(n - 1, k - 1)) / deviation for others. It vanishes when none is exact, and when
    fewer than k are not.
    """
    n = is_real.sum(1).cpu().numpy().astype(float)
    c = exact.sum(1).cpu().numpy().astype(float)
    some = (n >= k).astype(float)
    missed = comb(n - c, k) / comb(n.clip(k), k) * some
    deviation = (missed * (1 - missed)) ** 0.5
    of_exact = missed / (deviation + 1e-6)
    of_others = (missed - comb((n - c - 1).clip(0), k - 1) / comb((n - 1).clip(k - 1), k - 1)) / (deviation + 1e-6)
    vanishes = (deviation == 0) | (some == 0)
    values = torch.stack(
        [torch.from_numpy(v * ~vanishes).to(exact.device, torch.float32) for v in (of_exact, of_others)]
    )
    return torch.where(exact, values[0].unsqueeze(1), values[1].unsqueeze(1)) * is_real
