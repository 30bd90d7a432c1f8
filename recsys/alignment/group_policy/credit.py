"""Who is to be thanked for a reward: the chain of reasons, or the answer after it.

The expected reward of a history is E over chains c of sum over answers a of p(a | c) r(a), and its gradient has two
parts: the chain's log-probability times how much better the chain's expected reward is than other chains', and the
answer's times how much better it is than other answers of the same chain. So each part has a group of its own (the
two-stage rollout of OpenOneRec, arXiv 2512.24762, where all answers are one group; the split is ours):

    reward of a chain       R(c) = sum_a w(a | c) r(a) + what the chain itself is worth, w: shares of the answers
    advantage of a chain    R(c) among the chains of its history
    advantage of an answer  r(a) among the answers of its chain

Shapes: B histories, C chains each, N = B * C, A answers a chain.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recsys.alignment.group_policy.advantages import AdvantageKind, group_advantages, tempered


@dataclass(frozen=True, kw_only=True, eq=False)
class Credit:
    """Advantages of both parts."""

    chains: Tensor
    """float32 [B, C]."""
    answers: Tensor
    """float32 [N, A]."""
    chain_rewards: Tensor
    """float32 [B, C]: what the chains were compared by."""


def split_credit(
    rewards: Tensor,
    weights: Tensor,
    is_real: Tensor,
    own: Tensor,
    kind: AdvantageKind,
    *,
    exact: Tensor,
    weighted: bool = False,
    weight_power: float = 1.0,
    pass_at: int = 2,
    limit: float | None = 5.0,
) -> Credit:
    """Advantages of chains and answers, both by `group_advantages`.

    A lone answer has no other answers to be compared with: it takes the advantage of its chain, so that one answer a
    chain is plain GRPO over chain and answer as one text. A chain without any answer has no part in either.

    Args:
        rewards: float32 [N, A], of the answers.
        weights: float32 [N, A], rows summing to 1: the share of the policy that each answer stands for.
        is_real: bool [N, A]: there is an answer.
        own: float32 [B, C]: what a chain itself is worth, whatever its answers.
        kind: see `group_advantages`. Chains are draws, so that all weigh the same.
        exact: bool [N, A], the answers that are the next item. A chain is exact if its most probable answer is.
        weighted: whether the answers' mean and deviation are weighted too; `expected` always is.
        weight_power: an answer counts among the others of its chain as its share to this power, see `tempered`. What a
            chain is worth stays the mean under the shares themselves.
        pass_at: k of the bonus of `srpo`.
        limit: see `group_advantages`.
    """
    num_chains = own.shape[1]
    expected = torch.where(is_real, weights * rewards, 0.0).sum(1).view(-1, num_chains)
    answered = is_real.any(1).view(-1, num_chains)
    totals = torch.where(answered, expected + own, 0.0)
    best = torch.where(is_real, weights, -1.0).argmax(1, keepdim=True)
    of_chains = group_advantages(
        totals,
        answered,
        kind,
        exact=(exact & is_real).gather(1, best).view(-1, num_chains),
        pass_at=pass_at,
        limit=limit,
    )
    if rewards.shape[1] == 1:
        of_answers = torch.where(is_real, of_chains.view(-1, 1), 0.0)
    else:
        of_answers = group_advantages(
            rewards,
            is_real,
            kind,
            exact=exact,
            weights=tempered(weights, weight_power) if weighted or kind == "expected" else None,
            pass_at=pass_at,
            limit=limit,
        )
    return Credit(chains=of_chains, answers=of_answers, chain_rewards=totals)
