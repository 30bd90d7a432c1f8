"""When the health of group policy optimisation says that something is wrong. Computes no health itself."""

from __future__ import annotations

from collections.abc import Mapping

_MOST_ZERO_VARIANCE = 0.7
_MOST_KL_A_CODE = 0.5
_LEAST_ENTROPY = 0.7


def alarms(health: Mapping[str, float], first: Mapping[str, float], num_levels: int) -> list[str]:
    """What is out of bounds, one line each, with what to do about it.

    Args:
        health: means over some updates of what `GroupPolicyLoss` reports.
        first: the same of the fit's beginning.
        num_levels: codes of an item.
    """
    found = []
    if health["zero_variance"] > _MOST_ZERO_VARIANCE:
        found.append(
            f"{health['zero_variance']:.0%} of the groups have equal rewards and teach nothing; use a denser reward "
            "(prefix, future) or larger groups"
        )
    if health["kl"] > _MOST_KL_A_CODE * num_levels:
        found.append(
            f"the policy is {health['kl'] / num_levels:.2f} nats a code from the supervised model; raise "
            "policy.kl_weight or lower the learning rate"
        )
    if health["first_code_entropy"] < _LEAST_ENTROPY * first["first_code_entropy"]:
        left = health["first_code_entropy"] / first["first_code_entropy"]
        found.append(
            f"first codes have {left:.0%} of the entropy that they began with: lists collapse; raise policy.kl_weight, "
            "or weigh novelty or diversity"
        )
    return found
