"""Group policy optimisation: the generator's own constrained lists as groups, judged by rewards, against each other."""

from recsys.alignment.group_policy.chain_loss import ChainPolicyLoss
from recsys.alignment.group_policy.chains import ChainPolicy, SampledChains
from recsys.alignment.group_policy.config import ChainsConfig, GroupPolicyConfig
from recsys.alignment.group_policy.credit import split_credit
from recsys.alignment.group_policy.loss import GroupPolicyLoss, PolicyLoss
from recsys.alignment.group_policy.objective import Objective
from recsys.alignment.group_policy.policy import Policy, Sampled
from recsys.alignment.group_policy.prompts import Prompts, current_prompts, labelled_prompts

__all__ = [
    "ChainPolicy",
    "ChainPolicyLoss",
    "ChainsConfig",
    "GroupPolicyConfig",
    "GroupPolicyLoss",
    "Objective",
    "Policy",
    "PolicyLoss",
    "Prompts",
    "Sampled",
    "SampledChains",
    "current_prompts",
    "labelled_prompts",
    "split_credit",
]
