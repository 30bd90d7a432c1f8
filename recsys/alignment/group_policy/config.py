"""Settings of group policy optimisation: what is proposed, and how the policy moves. Schedules are `training`'s."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from recsys.alignment.group_policy.advantages import AdvantageKind
from recsys.alignment.group_policy.surrogate import SurrogateKind
from recsys.config import StrictConfig


class GroupPolicyConfig(StrictConfig):
    """Groups, advantages and the loss of a policy step."""

    group_size: int = Field(default=16, ge=2)
    """Proposals for each history."""
    rollout: Literal["beam", "stochastic_beam"] = "beam"
    """`beam`: the best ones, as served. `stochastic_beam`: a sample without replacement (Gumbel top-k), whose weights
    let sums over the group estimate expectations under the policy (without bias before they are scaled to sum to 1)."""
    advantage: AdvantageKind = "srpo"
    """`grpo`, `dr_grpo`, `srpo` or `expected`: see `advantages`."""
    weight_power: float = Field(default=1.0, ge=0, le=1)
    """Of `expected`: a proposal counts as its probability to this power. 1: the gradient of the expected reward, which
    the first places dominate; 0: all places alike, as in `dr_grpo`; between, what stands far down is learned too."""
    pass_at: int = Field(default=4, ge=1)
    """k of the bonus of `srpo`."""
    advantage_limit: float = Field(default=5.0, gt=0)
    """Advantages are clipped to so much, after they were made."""
    surrogate: SurrogateKind = "clipped"
    """`clipped`, `ecpo` or `gbpo`: see `surrogate`."""
    clip_low: float = Field(default=0.2, gt=0, lt=1)
    """Lower clipping range of the ratio."""
    clip_high: float = Field(default=0.2, gt=0)
    """Upper clipping range of the ratio; above `clip_low` for DAPO's clip-higher."""
    early_clip: float = Field(default=0.1, ge=0)
    """ECPO's delta."""
    updates_per_rollout: int = Field(default=1, ge=1)
    """Steps on the same proposals before new ones are made."""
    kl_weight: float = Field(default=1e-3, ge=0)
    """Of the divergence from the supervised model, estimated on the proposals."""
    kl_place: Literal["loss", "reward"] = "loss"
    """`loss`: added to the loss (GRPO). `reward`: the log-ratio is taken off each proposal's reward. With weight 1 and
    a log-probability as the reward, the best policy is then the product of the supervised model and of that reward."""
    supervised_weight: float = Field(default=0.2, ge=0)
    """Of the supervised loss on the same histories' own items, which keeps what was learned."""
    normalise: Literal["legal", "vocabulary"] = "legal"
    """Which codes the policy's probabilities are taken over: the legal children, which decoding uses, or all codes of a
    level (an ablation)."""

    @model_validator(mode="after")
    def _power_is_used(self) -> GroupPolicyConfig:
        if self.weight_power != 1 and self.advantage != "expected":
            raise ValueError(f"weight_power is of advantage=expected, not {self.advantage}; leave it out")
        return self

    @model_validator(mode="after")
    def _bonus_fits(self) -> GroupPolicyConfig:
        if self.advantage == "srpo" and self.pass_at >= self.group_size:
            raise ValueError(f"pass_at={self.pass_at} must be below group_size={self.group_size}; change one of them")
        return self


class ChainsConfig(StrictConfig):
    """Group policy optimisation of a model that reasons: chains of reasons, and answers after each of them."""

    chains: int = Field(default=4, ge=2)
    """Chains for each history, which are compared with each other."""
    answers: int = Field(default=4, ge=1)
    """Items after each chain, which are compared with each other; in place of `policy.group_size`."""
    max_tokens: int = Field(default=160, ge=1)
    """Tokens of a chain; a chain that has not ended by then is ended."""
    temperature: float = Field(default=1.0, gt=0)
    """Of the words, in drawing as in their log-probabilities. All words can be drawn: a nucleus would move with the
    policy, and a word that leaves it has no ratio."""
    pass_at: int = Field(default=2, ge=1)
    """k of the bonus of `srpo`, among the chains as among the answers; in place of `policy.pass_at`."""
    chain_weight: float = Field(default=1.0, ge=0)
    """Of the loss of the words, beside that of the answers. With `dr_grpo` and `expected` the first is over
    `max_tokens`: the two together are the gradient of the expected reward where this is `max_tokens`."""
    malformed_penalty: float = Field(default=1.0, ge=0)
    """Taken off a chain's reward that does not end by itself, or has not the form of the reasons that were taught."""
    length_penalty: float = Field(default=0.0, ge=0)
    """Taken off a chain's reward for every `free_tokens` tokens beyond the first `free_tokens`."""
    free_tokens: int = Field(default=100, ge=1)
    """See `length_penalty`."""
    batch_rows: int = Field(default=4096, ge=1)
    """Rows (of prompts, chains and items) that are read at once with gradients; a step adds up its parts."""
