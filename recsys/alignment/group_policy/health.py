"""When the health of group policy optimisation says that something is wrong. Computes no health itself."""

from __future__ import annotations

from collections.abc import Mapping

_MOST_ZERO_VARIANCE = 0.7
_MOST_KL_A_CODE = 0.5
_MOST_KL_A_WORD = 0.5
_LEAST_ENTROPY = 0.7
_LEAST_LEGALITY = 0.95
_MOST_MALFORMED = 0.05


def alarms(
    health: Mapping[str, float], first: Mapping[str, float], num_levels: int, *, over_vocabulary: bool = False
) -> list[str]:
    """What is out of bounds, one line each, with what to do about it.

    Args:
        health: means over some updates of what `GroupPolicyLoss` or `ChainPolicyLoss` reports, and `legality`.
        first: the same of the fit's beginning.
        num_levels: codes of an item.
        over_vocabulary: the policy learns what is illegal too, so that its legality is its own doing.
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
    if over_vocabulary and health["legality"] < _LEAST_LEGALITY:
        found.append(
            f"{1 - health['legality']:.0%} of what the policy would propose without the trie is no item; raise "
            "policy.kl_weight or policy.supervised_weight"
        )
    if "chain_kl" in health:
        found += _of_chains(health, first)
    return found


def _of_chains(health: Mapping[str, float], first: Mapping[str, float]) -> list[str]:
    found = []
    if health["chain_zero_variance"] > _MOST_ZERO_VARIANCE:
        found.append(
            f"the chains of {health['chain_zero_variance']:.0%} of the histories are worth the same and teach nothing; "
            "use a denser reward (prefix, future), or raise reasoning.chains or reasoning.temperature"
        )
    if health["chain_kl"] > _MOST_KL_A_WORD:
        found.append(
            f"the chains are {health['chain_kl']:.2f} nats a token from the supervised model; raise policy.kl_weight "
            "or lower the learning rate"
        )
    if health["chain_entropy"] < _LEAST_ENTROPY * first["chain_entropy"]:
        left = health["chain_entropy"] / first["chain_entropy"]
        found.append(
            f"chains have {left:.0%} of the entropy a token that they began with: they become one text; raise "
            "policy.kl_weight"
        )
    if health["malformed"] > max(_MOST_MALFORMED, first["malformed"]):
        found.append(
            f"{health['malformed']:.0%} of the chains are not in the form that was taught, and more than at the "
            "beginning; raise reasoning.malformed_penalty, or reasoning.max_tokens if they are cut"
        )
    return found
