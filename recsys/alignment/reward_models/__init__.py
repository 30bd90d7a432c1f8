"""Learned reward models on frozen features, and how good a reward is."""

from recsys.alignment.reward_models.artifact import RewardModel, load_ideal_points, save_ideal_points
from recsys.alignment.reward_models.features import UserItemFeatures
from recsys.alignment.reward_models.head import HeadConfig, RewardHead
from recsys.alignment.reward_models.multi_source import MultiSourceConfig, SourcePairs, fit_sources, min_norm_weights
from recsys.alignment.reward_models.pal import IdealPoints, PalConfig
from recsys.alignment.reward_models.quality import (
    BestOfN,
    Miscalibration,
    ProbabilityQuality,
    Probe,
    RewardQuality,
    best_of_n,
    check_calibrated,
    pair_accuracy,
    pair_calibration,
    probability_quality,
    probes,
)

__all__ = [
    "BestOfN",
    "HeadConfig",
    "IdealPoints",
    "Miscalibration",
    "MultiSourceConfig",
    "PalConfig",
    "ProbabilityQuality",
    "Probe",
    "RewardHead",
    "RewardModel",
    "RewardQuality",
    "SourcePairs",
    "UserItemFeatures",
    "best_of_n",
    "check_calibrated",
    "fit_sources",
    "load_ideal_points",
    "min_norm_weights",
    "pair_accuracy",
    "pair_calibration",
    "probability_quality",
    "probes",
    "save_ideal_points",
]
