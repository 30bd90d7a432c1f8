"""From proposals and their rewards to a loss, and what its health looks like.

Shapes: B histories, G proposals each.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recsys.alignment.candidates import PolicyModel
from recsys.alignment.group_policy.advantages import group_advantages, tempered
from recsys.alignment.group_policy.config import GroupPolicyConfig
from recsys.alignment.group_policy.legality import LEGALITY_GROUPS, unconstrained_legality
from recsys.alignment.group_policy.policy import Policy, Sampled
from recsys.alignment.group_policy.surrogate import Surrogate, kl_estimate, surrogate
from recsys.data import Sequences
from recsys.errors import RewardError
from recsys.ranks import ALONE, Ranks


@dataclass(frozen=True, kw_only=True, eq=False)
class PolicyLoss:
    """One step."""

    loss: Tensor
    """Scalar, to be minimised."""
    health: dict[str, float]
    """What to log: see `GroupPolicyLoss`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Judged:
    """A batch of proposals with their advantages: what one or more steps are taken on."""

    sampled: Sampled
    advantages: Tensor
    """float32 [B, G]."""
    reference: Tensor
    """float32 [B, G]: log-probabilities under the reference."""
    old: Tensor
    """float32 [B, G]: log-probabilities under the policy that proposed, as the loss takes them."""
    health: dict[str, float]


class GroupPolicyLoss:
    """The loss of a policy against a frozen reference.

    Health: `reward`; `zero_variance` (share of groups whose rewards are all the same); `hits` (share of groups with the
    next item); `kl` (nats an item, policy against reference, on the proposals); `first_code_entropy` (nats, over the
    batch); `distinct` (distinct items among the proposals, as a share); `clipped` and `early_clipped` (shares of
    proposals); `policy_loss`; `supervised_loss` (nats an item).

    Args:
        policy: learns.
        reference: the supervised model; stays as it is.
        config: the settings.
        ranks: processes with a batch of proposals each, of which the loss is one: `learn` leaves the gradients of all.
    """

    levels_by_history = True
    """See `Objective`."""

    def __init__(self, policy: Policy, reference: Policy, config: GroupPolicyConfig, ranks: Ranks = ALONE) -> None:
        self.policy = policy
        self.reference = reference
        self.config = config
        self._ranks = ranks

    def propose(
        self,
        histories: Sequences,
        *,
        futures: Tensor,
        mask_seen: bool,
        random: np.random.Generator,
        by_reference: bool = False,
    ) -> Sampled:
        """See `Objective`."""
        seeds = None
        if self.config.rollout == "stochastic_beam":
            seeds = random.integers(2**62, size=len(histories))
        return (self.reference if by_reference else self.policy).propose(
            histories, self.config.group_size, futures=futures, mask_seen=mask_seen, seeds=seeds
        )

    def judge(self, sampled: Sampled, rewards: Tensor) -> Judged:
        """Advantages of proposals from their rewards (float32 [B, G]).

        Raises:
            RewardError: a reward is NaN or infinite.
        """
        rollouts, config = sampled.rollouts, self.config
        check_rewards(rewards)
        over_vocabulary = config.normalise == "vocabulary"
        with torch.no_grad():
            self.reference.model.eval()
            likelihoods = self.reference.likelihoods(rollouts, with_history=False, over_vocabulary=over_vocabulary)
            reference = likelihoods.proposals
            # The policy proposed without dropout, and what it was then is what the ratio is against.
            old = rollouts.scores.masked_fill(~rollouts.is_real, 0.0)
            if over_vocabulary or self.policy.rounds:
                self.policy.model.eval()
                likelihoods = self.policy.likelihoods(rollouts, with_history=False, over_vocabulary=over_vocabulary)
                old = likelihoods.proposals
        divergence = torch.where(rollouts.is_real, old - reference, 0.0)
        total = rewards
        if config.kl_place == "reward":
            total = rewards - config.kl_weight * divergence
        weighted = config.advantage == "expected" or config.rollout == "stochastic_beam"
        weights = tempered(sampled.weights, config.weight_power) if weighted else None
        advantages = group_advantages(
            total,
            rollouts.is_real,
            config.advantage,
            exact=rollouts.hits,
            weights=weights,
            pass_at=config.pass_at,
            limit=config.advantage_limit,
        )
        return Judged(
            sampled=sampled,
            advantages=advantages,
            reference=reference,
            old=old,
            health=proposal_health(self.policy.model, sampled, rewards, advantages, divergence),
        )

    def step(self, judged: Judged, *, is_first: bool) -> PolicyLoss:
        """The loss of the policy as it stands on what was judged.

        Args:
            judged: proposals with advantages.
            is_first: no step was taken since they were proposed: the ratio is then 1 by definition, and dropout does
                not count as a change of the policy.
        """
        rollouts, config = judged.sampled.rollouts, self.config
        found = self.policy.likelihoods(
            rollouts,
            with_history=config.supervised_weight > 0,
            over_vocabulary=config.normalise == "vocabulary",
        )
        live = (judged.advantages != 0).any(1, keepdim=True) & rollouts.is_real
        moved = surrogate_of(config, found.proposals, judged.old, judged.advantages, is_first=is_first)
        # Means are over the proposals of all processes: what each of them has here adds up to the loss.
        counts = [int(live.sum()), int(rollouts.is_real.sum()), len(found.history)]
        num_live, num_real, num_items = self._ranks.sums(counts)
        count = max(1.0, num_live)
        policy_loss = torch.where(live, moved.loss, 0.0).sum() / count
        loss = policy_loss
        if config.kl_weight > 0 and config.kl_place == "loss":
            divergence = kl_estimate(found.proposals, judged.reference)
            loss = loss + config.kl_weight * torch.where(rollouts.is_real, divergence, 0.0).sum() / num_real
        health = judged.health | {
            "policy_loss": policy_loss.item(),
            "clipped": float((moved.clipped & live).sum() / count),
            "early_clipped": float((moved.early & live).sum() / count),
        }
        if config.supervised_weight > 0:
            supervised = -found.history.sum() / num_items
            loss = loss + config.supervised_weight * supervised
            health["supervised_loss"] = supervised.item()
        return PolicyLoss(loss=loss, health=health)

    def learn(self, judged: Judged, *, is_first: bool) -> dict[str, float]:
        """See `Objective`."""
        found = self.step(judged, is_first=is_first)
        found.loss.backward()  # type: ignore[no-untyped-call]
        self._ranks.add_gradients(self.policy.model.parameters())
        return found.health

    @torch.no_grad()
    def legality(self, judged: Judged) -> float:
        """See `Objective`."""
        few = judged.sampled.first(LEGALITY_GROUPS)
        self.policy.model.eval()
        legal, over_all = (
            self.policy.likelihoods(few.rollouts, with_history=False, over_vocabulary=everything).proposals
            for everything in (False, True)
        )
        return unconstrained_legality(legal, over_all, few.weights)


def check_rewards(rewards: Tensor) -> None:
    """Raises RewardError: a reward is NaN or infinite."""
    if not bool(torch.isfinite(rewards).all()):
        raise RewardError("rewards must be finite numbers, and some are NaN or infinite; check the reward's inputs")


def surrogate_of(
    config: GroupPolicyConfig, log_probs: Tensor, old: Tensor, advantages: Tensor, *, is_first: bool
) -> Surrogate:
    """The configured surrogate; its ratio is 1 by definition where no step was taken since `old`."""
    return surrogate(
        log_probs,
        log_probs.detach() if is_first else old,
        advantages,
        config.surrogate,
        clip_low=config.clip_low,
        clip_high=config.clip_high,
        early=config.early_clip,
    )


def proposal_health(
    model: PolicyModel, sampled: Sampled, rewards: Tensor, advantages: Tensor, divergence: Tensor
) -> dict[str, float]:
    """What `GroupPolicyLoss` reports of the proposals; all float32 [B, G]."""
    rollouts = sampled.rollouts
    real = rollouts.items[rollouts.is_real]
    return {
        "reward": float(rewards[rollouts.is_real].mean()),
        "zero_variance": float((advantages == 0).all(1).float().mean()),
        "hits": float(rollouts.hits.any(1).float().mean()),
        "kl": float((sampled.weights * divergence).sum(1).mean()),
        "first_code_entropy": _first_code_entropy(model, sampled),
        "distinct": len(set(real.tolist())) / max(1, len(real)),
    }


def _first_code_entropy(model: PolicyModel, sampled: Sampled) -> float:
    """Nats, of the first code of what the batch is proposed."""
    trie, rollouts = model.trie, sampled.rollouts
    codes = trie.paths[rollouts.items.clamp(min=0), 0]
    shares = torch.zeros(len(trie.codes[0]), device=codes.device)
    shares = shares.index_add(0, codes.flatten(), torch.where(rollouts.is_real, sampled.weights, 0.0).flatten())
    shares = shares / shares.sum().clamp(min=1e-30)
    return float(torch.special.entr(shares).sum())
