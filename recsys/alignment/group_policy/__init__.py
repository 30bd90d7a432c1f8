"""Group policy optimisation: the generator's own constrained lists as groups, judged by rewards, against each other."""

from recsys.alignment.group_policy.config import GroupPolicyConfig
from recsys.alignment.group_policy.loss import GroupPolicyLoss, PolicyLoss
from recsys.alignment.group_policy.policy import Policy, Sampled
from recsys.alignment.group_policy.prompts import Prompts, current_prompts, labelled_prompts

__all__ = [
    "GroupPolicyConfig",
    "GroupPolicyLoss",
    "Policy",
    "PolicyLoss",
    "Prompts",
    "Sampled",
    "current_prompts",
    "labelled_prompts",
]
