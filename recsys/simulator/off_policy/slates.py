"""Estimators for lists: what users do at one place may depend on nothing else, on the places above, or on all of them.

With rewards r_l at the places l = 1..L, marginal weights m_l, and w_l = the weight of the places 1..l together:

    standard (SIPS)     mean of w_L sum r_l        any behaviour of users, weights of whole lists
    independent (IIPS)  mean of sum m_l r_l        a place does not depend on others (item-position click model)
    cascade (RIPS)      mean of sum w_l r_l        users look from the top down
    cascade-DR          mean of sum [ w_l (r_l - Q_l) + w_{l-1} E_l ],  E_l = target's mean of Q_l given those above

Self-normalised versions divide at each place by the mean weight there. Fewer assumptions, more variance.

IIPS: Li et al., KDD 2018. RIPS: McInerney et al., KDD 2020. Cascade-DR: Kiyohara et al., WSDM 2022.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recsys.evaluation.metrics import CaseMetric
from recsys.simulator.off_policy.errors import BadLogError
from recsys.simulator.off_policy.estimators import Terms, mean
from recsys.simulator.off_policy.log import FloatArray, SlateLog, SlateTarget


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightedSlates:
    """What the estimators read, float64 [n, L] each."""

    rewards: FloatArray
    prefix_weights: FloatArray
    """Of the places up to each one; the last column is that of the list."""
    marginal_weights: FloatArray

    @classmethod
    def of(cls, log: SlateLog, target: SlateTarget) -> WeightedSlates:
        """Weights of a log under a target.

        Raises:
            BadLogError: the shapes differ.
        """
        if not target.conditional.shape == target.marginal.shape == log.items.shape:
            raise BadLogError(
                f"the target's propensities must have the log's shape {log.items.shape}, got "
                f"{target.conditional.shape} and {target.marginal.shape}"
            )
        is_shown = log.items >= 0
        steps = np.where(is_shown, target.conditional / log.conditional, 1.0)
        return cls(
            rewards=log.rewards,
            prefix_weights=np.cumprod(steps, axis=1, dtype=np.float64),
            marginal_weights=np.where(is_shown, target.marginal / log.marginal, 1.0),
        )


def standard(slates: WeightedSlates) -> Terms:
    """SIPS."""
    return mean(slates.prefix_weights[:, -1] * slates.rewards.sum(axis=1))


def independent(slates: WeightedSlates) -> Terms:
    """IIPS."""
    return mean((slates.marginal_weights * slates.rewards).sum(axis=1))


def cascade(slates: WeightedSlates) -> Terms:
    """RIPS."""
    return mean((slates.prefix_weights * slates.rewards).sum(axis=1))


def self_normalised_standard(slates: WeightedSlates) -> Terms:
    """SNSIPS."""
    weights = slates.prefix_weights[:, -1]
    return (CaseMetric(numerator=weights * slates.rewards.sum(axis=1), denominator=weights),)


def self_normalised_independent(slates: WeightedSlates) -> Terms:
    """SNIIPS."""
    return _by_place(slates.marginal_weights, slates.rewards)


def self_normalised_cascade(slates: WeightedSlates) -> Terms:
    """SNRIPS."""
    return _by_place(slates.prefix_weights, slates.rewards)


def cascade_dr(slates: WeightedSlates, predicted: FloatArray, expected: FloatArray) -> Terms:
    """Cascade-DR.

    Args:
        slates: n lists.
        predicted: float64 [n, L], Q of the item at each place given those above.
        expected: float64 [n, L], mean of Q over what the target would show there, given the same items above.
    """
    before = np.concatenate([np.ones((len(slates.rewards), 1)), slates.prefix_weights[:, :-1]], axis=1)
    parts = slates.prefix_weights * (slates.rewards - predicted) + before * expected
    return mean(parts.sum(axis=1))


def _by_place(weights: FloatArray, rewards: FloatArray) -> Terms:
    return tuple(
        CaseMetric(numerator=weights[:, place] * rewards[:, place], denominator=weights[:, place])
        for place in range(rewards.shape[1])
    )
