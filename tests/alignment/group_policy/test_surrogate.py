"""Surrogates against published values, and the bound that each of them promises."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recsys.alignment.group_policy.surrogate import SurrogateKind, kl_estimate, surrogate


def loss(kind: SurrogateKind, log_prob: float, old: float, advantage: float) -> tuple[float, float]:
    """The loss, and its slope in the log-probability."""
    at = torch.tensor([log_prob], requires_grad=True)
    found = surrogate(at, torch.tensor([old]), torch.tensor([advantage]), kind)
    found.loss.sum().backward()  # type: ignore[no-untyped-call]
    assert at.grad is not None
    return found.loss.item(), at.grad.item()


@pytest.mark.parametrize(
    ("case", "expected"), [((-1.0, -3.0, -1.0), 1.3), ((-1.0, -1.1, -1.0), 1.10517), ((-1.0, -3.0, 1.0), -1.2)]
)
def test_ecpo(case: tuple[float, float, float], expected: float) -> None:
    assert loss("ecpo", *case)[0] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("prob", "old", "advantage", "weight"),
    [(0.5, 0.1, 1.0, 1.0), (0.1, 0.5, 1.0, 0.2), (0.02, 0.01, -1.0, 0.0204), (0.9, 0.3, -1.0, 3.0)],
)
def test_gbpo(prob: float, old: float, advantage: float, weight: float) -> None:
    found = loss("gbpo", math.log(prob), math.log(old), advantage)[0]
    assert found == pytest.approx(-weight * advantage, abs=1e-4)


def test_a_stale_proposal_that_grew_explodes_under_clipping_alone() -> None:
    """O3 of the brief: the bound matters where the advantage is negative and the policy has moved towards it."""
    assert abs(loss("ecpo", -1.0, -3.0, -1.0)[1]) <= abs(loss("clipped", -1.0, -3.0, -1.0)[1]) / 3
    assert abs(loss("ecpo", -1.0, -3.0, -1.0)[1]) > 0  # it still learns


@given(st.floats(-6, 0), st.floats(-6, 0), st.floats(-3, 3))
def test_ecpo_never_weighs_more_than_its_bound(log_prob: float, old: float, advantage: float) -> None:
    found, slope = loss("ecpo", log_prob, old, advantage)
    if advantage < 0:
        assert found <= -advantage * 1.3 + 1e-4
        assert abs(slope) <= abs(advantage) * 1.3 + 1e-4


def test_clipping_ends_the_gradient() -> None:
    assert loss("clipped", -1.0, -2.0, 1.0)[1] == 0
    assert loss("clipped", -2.0, -1.0, -1.0)[1] == 0
    assert loss("clipped", -1.0, -1.0, 1.0) == (-1.0, -1.0)


@given(st.floats(-8, 0), st.floats(-8, 0))
def test_the_divergence_is_never_negative(log_prob: float, reference: float) -> None:
    found = kl_estimate(torch.tensor(log_prob), torch.tensor(reference)).item()
    assert found >= -1e-6
    assert kl_estimate(torch.tensor(log_prob), torch.tensor(log_prob)).item() == 0
