"""What a policy would have earned, from the log of another one: estimates with intervals, or a refusal with its reason.

`BanditLog` and `SlateLog` hold what was logged and refuse what is no evidence; `evaluate_policy` and `evaluate_slates`
run every estimator. Pieces for one's own use: `estimators` and `slates` (formulas), `rewards` (cross-fitted models),
`balance` (weights without propensities), `prefixes` (weights of semantic-ID prefixes), `choice` (parameters),
`intervals`, `diagnostics`, `calibration` (whether logged propensities are true).
"""

from __future__ import annotations

from recsys.simulator.off_policy.calibration import PropensityCalibration
from recsys.simulator.off_policy.diagnostics import Limits, ModelDiagnostics, WeightDiagnostics
from recsys.simulator.off_policy.errors import BadLogError
from recsys.simulator.off_policy.estimators import Rounds
from recsys.simulator.off_policy.intervals import Estimate
from recsys.simulator.off_policy.log import BanditLog, SlateLog, SlateTarget
from recsys.simulator.off_policy.report import (
    OffPolicyConfig,
    OffPolicyReport,
    Outcome,
    Refused,
    evaluate_policy,
    evaluate_propensities,
    evaluate_slates,
)
from recsys.simulator.off_policy.rewards import Predictions, cross_fitted, known_rewards
from recsys.simulator.off_policy.slates import WeightedSlates

__all__ = [
    "BadLogError",
    "BanditLog",
    "Estimate",
    "Limits",
    "ModelDiagnostics",
    "OffPolicyConfig",
    "OffPolicyReport",
    "Outcome",
    "Predictions",
    "PropensityCalibration",
    "Refused",
    "Rounds",
    "SlateLog",
    "SlateTarget",
    "WeightDiagnostics",
    "WeightedSlates",
    "cross_fitted",
    "evaluate_policy",
    "evaluate_propensities",
    "evaluate_slates",
    "known_rewards",
]
