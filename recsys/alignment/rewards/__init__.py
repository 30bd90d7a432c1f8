"""Rewards: what a proposal is worth, by verifiable rules, by the catalogue, by text or by a learned model."""

from recsys.alignment.rewards.combine import Level, Rewards, RewardValues, Weights, build_rewards, log_sigmoid_above
from recsys.alignment.rewards.config import RewardConfig, RewardsConfig
from recsys.alignment.rewards.context import LearnedReward, RewardContext, Scorer
from recsys.alignment.rewards.orchestrator import OrchestratorConfig, PreferenceOrchestrator
from recsys.alignment.rewards.reward import Reward, TermConfig, evaluate

__all__ = [
    "LearnedReward",
    "Level",
    "OrchestratorConfig",
    "PreferenceOrchestrator",
    "Reward",
    "RewardConfig",
    "RewardContext",
    "RewardValues",
    "Rewards",
    "RewardsConfig",
    "Scorer",
    "TermConfig",
    "Weights",
    "build_rewards",
    "evaluate",
    "log_sigmoid_above",
]
