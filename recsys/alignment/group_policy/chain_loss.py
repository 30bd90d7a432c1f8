"""From chains, answers and their rewards to a loss with split credit (`credit`), and what its health looks like.

Words and items are two parts of one loss: an item is one action, a chain one action a word, all of which share the
chain's advantage. The words' part is the mean over all words of a batch (DAPO, arXiv 2503.14476; GREAM, arXiv
2510.20815), or, for the advantages that are not scaled (`dr_grpo`, `expected`), their sum over the number of words that
the chains could have had (Dr. GRPO, arXiv 2503.20783), by which long chains weigh no less a word.

Shapes: B histories, C chains each, N = B * C, T words of the longest chain, A answers a chain.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recsys.alignment.group_policy.chains import ChainPolicy, SampledChains
from recsys.alignment.group_policy.config import ChainsConfig, GroupPolicyConfig
from recsys.alignment.group_policy.credit import Credit, split_credit
from recsys.alignment.group_policy.legality import LEGALITY_GROUPS, unconstrained_legality
from recsys.alignment.group_policy.loss import check_rewards, proposal_health, surrogate_of
from recsys.alignment.group_policy.surrogate import kl_estimate
from recsys.data import Sequences


@dataclass(frozen=True, kw_only=True, eq=False)
class JudgedChains:
    """A batch of chains and answers with their advantages: what one or more steps are taken on."""

    sampled: SampledChains
    credit: Credit
    reference_words: Tensor
    """float32 [N, T]: log-probabilities under the reference."""
    reference_answers: Tensor
    """float32 [N, A]: the same."""
    old_words: Tensor
    """float32 [N, T]: log-probabilities under the policy that proposed, as the loss takes them."""
    old_answers: Tensor
    """float32 [N, A]: the same."""
    health: dict[str, float]


@dataclass(frozen=True, kw_only=True, eq=False)
class ChainLoss:
    """A step, or a part of one."""

    loss: Tensor
    """Scalar, to be minimised; the loss of a step is the sum over its parts."""
    health: dict[str, float]
    """Shares of the step's: sums over its parts."""


class ChainPolicyLoss:
    """The loss of a policy that reasons, against a frozen reference.

    Health: what `GroupPolicyLoss` reports, with answers as proposals, each chain's a group; and of chains
    `chain_zero_variance` (share of histories whose chains are worth the same), `chain_length` (tokens), `chain_entropy`
    (nats a token, by the tokens drawn), `chain_kl` (nats a token, policy against reference), `unfinished` (share that
    was ended before it came to an answer by itself), `malformed` (share that is not in the form that was taught), and
    `chain_clipped` (share of words).

    Args:
        policy: learns.
        reference: the supervised model; stays as it is.
        config: of groups and loss; `chains` has the last word on sizes.
        chains: of chains.
    """

    levels_by_history = False
    """See `Objective`. Chains of one history must be measured alike."""

    def __init__(
        self, policy: ChainPolicy, reference: ChainPolicy, config: GroupPolicyConfig, chains: ChainsConfig
    ) -> None:
        self.policy = policy
        self.reference = reference
        self.config = config
        self.chains = chains

    def propose(
        self,
        histories: Sequences,
        *,
        futures: Tensor,
        mask_seen: bool,
        random: np.random.Generator,
        by_reference: bool = False,
    ) -> SampledChains:
        """See `Objective`."""
        return (self.reference if by_reference else self.policy).propose(
            histories,
            futures=futures,
            mask_seen=mask_seen,
            random=random,
            stochastic=self.config.rollout == "stochastic_beam",
        )

    def judge(self, sampled: SampledChains, rewards: Tensor) -> JudgedChains:
        """Advantages of chains and answers from the rewards of the answers (float32 [N, A]).

        Raises:
            RewardError: a reward is NaN or infinite.
        """
        rollouts, chains, config = sampled.rollouts, sampled.chains, self.config
        check_rewards(rewards)
        words, answers = self.reference.frozen_likelihoods(sampled)
        old_words, old_answers = chains.log_probs, rollouts.scores.masked_fill(~rollouts.is_real, 0.0)
        if self.policy.direct.rounds:
            old_words, old_answers = self.policy.frozen_likelihoods(sampled)
        of_words = torch.where(chains.is_word, old_words - words, 0.0)
        of_answers = torch.where(rollouts.is_real, old_answers - answers, 0.0)
        own = self.own_rewards(sampled)
        total = rewards
        if config.kl_place == "reward":
            # Of the whole text: the chain's words bring theirs to the chain, each answer its own.
            total = rewards - config.kl_weight * of_answers
            own = own - config.kl_weight * of_words.sum(1)
        credit = split_credit(
            total,
            sampled.weights,
            rollouts.is_real,
            own.view(-1, self.chains.chains),
            config.advantage,
            exact=rollouts.hits,
            weighted=config.rollout == "stochastic_beam",
            weight_power=config.weight_power,
            pass_at=self.chains.pass_at,
            limit=config.advantage_limit,
        )
        num_words = chains.counts.sum().clamp(min=1)
        return JudgedChains(
            sampled=sampled,
            credit=credit,
            reference_words=words,
            reference_answers=answers,
            old_words=old_words,
            old_answers=old_answers,
            health=proposal_health(self.policy.model, sampled, rewards, credit.answers, of_answers)
            | {
                "chain_reward": float(credit.chain_rewards.mean()),
                "chain_zero_variance": float((credit.chains == 0).all(1).float().mean()),
                "chain_length": float(chains.counts.float().mean()),
                "chain_entropy": float(-chains.log_probs.sum() / num_words),
                "chain_kl": float(of_words.sum() / num_words),
                "unfinished": float((~chains.ended).float().mean()),
                "malformed": float((~chains.well_formed).float().mean()),
            },
        )

    def own_rewards(self, sampled: SampledChains) -> Tensor:
        """float32 [N]: what a chain is worth by its form and length alone; at most 0.

        GREAM sets the reward of a malformed answer to 0, which would be the best one where rewards are negative. The
        length penalty is lambda * max(0, tokens - free) / free, as for profiles.
        """
        config, chains = self.chains, sampled.chains
        beyond = (chains.counts - config.free_tokens).clamp(min=0) / config.free_tokens
        return -config.malformed_penalty * (~chains.well_formed).float() - config.length_penalty * beyond

    def learn(self, judged: JudgedChains, *, is_first: bool) -> dict[str, float]:
        """See `Objective`."""
        health = dict(judged.health)
        for part in self.parts(judged, is_first=is_first):
            part.loss.backward()  # type: ignore[no-untyped-call]
            for name, value in part.health.items():
                health[name] = health.get(name, 0.0) + value
        return health

    def parts(self, judged: JudgedChains, *, is_first: bool) -> Iterator[ChainLoss]:
        """The loss of the policy as it stands, some chains at a time; see `GroupPolicyLoss.step` for `is_first`."""
        config, sampled, credit = self.config, judged.sampled, judged.credit
        chains, rollouts = sampled.chains, sampled.rollouts
        is_word, is_real = chains.is_word, rollouts.is_real
        advantages = credit.chains.reshape(-1, 1)
        live_words = is_word & (credit.chains != 0).any(1).repeat_interleave(self.chains.chains).unsqueeze(1)
        live_answers = is_real & (credit.answers != 0).any(1, keepdim=True)
        if rollouts.items.shape[1] == 1:
            live_answers = is_real & live_words.any(1, keepdim=True)
        num_words, num_answers = live_words.sum().clamp(min=1), live_answers.sum().clamp(min=1)
        divisor = num_words
        if config.advantage in ("dr_grpo", "expected"):
            divisor = live_words.any(1).sum().clamp(min=1) * self.chains.max_tokens
        for found in self.policy.likelihoods(sampled):
            rows = found.numbers
            of_words = advantages[rows].expand_as(found.words)
            words = surrogate_of(config, found.words, judged.old_words[rows], of_words, is_first=is_first)
            answers = surrogate_of(
                config, found.answers, judged.old_answers[rows], credit.answers[rows], is_first=is_first
            )
            chain_loss = torch.where(live_words[rows], words.loss, 0.0).sum() / divisor
            answer_loss = torch.where(live_answers[rows], answers.loss, 0.0).sum() / num_answers
            loss = self.chains.chain_weight * chain_loss + answer_loss
            if config.kl_weight > 0 and config.kl_place == "loss":
                for log_probs, reference, there in (
                    (found.words, judged.reference_words, is_word),
                    (found.answers, judged.reference_answers, is_real),
                ):
                    divergence = torch.where(there[rows], kl_estimate(log_probs, reference[rows]), 0.0)
                    loss = loss + config.kl_weight * divergence.sum() / there.sum().clamp(min=1)
            yield ChainLoss(
                loss=loss,
                health={
                    "policy_loss": answer_loss.item(),
                    "chain_policy_loss": chain_loss.item(),
                    "clipped": float((answers.clipped & live_answers[rows]).sum() / num_answers),
                    "early_clipped": float((answers.early & live_answers[rows]).sum() / num_answers),
                    "chain_clipped": float((words.clipped & live_words[rows]).sum() / num_words),
                },
            )
        if config.supervised_weight > 0:
            supervised = -self.policy.direct.history_log_probs(sampled.prompts).mean()
            yield ChainLoss(loss=config.supervised_weight * supervised, health={"supervised_loss": supervised.item()})

    def legality(self, judged: JudgedChains) -> float:
        """See `Objective`."""
        few = judged.sampled.first(LEGALITY_GROUPS)
        over_all = self.policy.answers_over_vocabulary(few)
        return unconstrained_legality(self.policy.frozen_likelihoods(few)[1], over_all, few.weights)
