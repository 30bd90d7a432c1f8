"""Alarms at the thresholds of the brief (6.3), and none below them."""

from __future__ import annotations

import pytest

from recsys.alignment.group_policy.health import alarms

WELL = {"zero_variance": 0.5, "kl": 0.8, "first_code_entropy": 4.0}


def test_nothing_is_said_of_a_fit_that_is_well() -> None:
    assert alarms(WELL, WELL, num_levels=4) == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"zero_variance": 0.71}, "equal rewards"),
        ({"kl": 2.1}, "nats a code"),
        ({"first_code_entropy": 2.7}, "collapse"),
    ],
)
def test_what_is_out_of_bounds_is_named_with_a_remedy(changed: dict[str, float], said: str) -> None:
    (line,) = alarms({**WELL, **changed}, WELL, num_levels=4)
    assert said in line


def test_legality_alarms_only_where_the_policy_learns_what_is_illegal() -> None:
    health = {**WELL, "legality": 0.9}
    assert alarms(health, WELL, num_levels=4) == []
    (line,) = alarms(health, WELL, num_levels=4, over_vocabulary=True)
    assert line.startswith("10% of what the policy would propose")


CHAINS = {**WELL, "chain_zero_variance": 0.2, "chain_kl": 0.1, "chain_entropy": 2.0, "malformed": 0.1}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"chain_zero_variance": 0.71}, "chains of 71% of the histories"),
        ({"chain_kl": 0.6}, "0.60 nats a token"),
        ({"chain_entropy": 1.0}, "50% of the entropy"),
        ({"malformed": 0.2}, "20% of the chains"),
    ],
)
def test_chains_that_are_out_of_bounds_are_named_with_a_remedy(changed: dict[str, float], said: str) -> None:
    assert alarms(CHAINS, CHAINS, num_levels=4) == []
    (line,) = alarms({**CHAINS, **changed}, CHAINS, num_levels=4)
    assert said in line
