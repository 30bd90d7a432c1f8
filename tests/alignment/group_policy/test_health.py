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
