"""Group advantages against the values of GREAM's code, and what they must not do."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from recsys.alignment.group_policy.advantages import group_advantages, pass_at_k_bonus, tempered


def of(values: list[float], kind: str = "srpo", exact: list[int] | None = None) -> list[float]:
    rewards = torch.tensor([values])
    is_exact = torch.tensor([exact], dtype=torch.bool) if exact is not None else rewards == 1
    found = group_advantages(
        rewards,
        torch.ones_like(rewards, dtype=torch.bool),
        kind,  # type: ignore[arg-type]
        exact=is_exact,
    )
    return found[0].tolist()


def test_the_values_of_the_paper() -> None:
    one_exact = of([1.0] + 9 * [0.0])
    assert one_exact[:2] == pytest.approx([4.0708, -0.4523], abs=1e-4)
    assert of([1.0] + 9 * [0.0], kind="grpo")[:2] == pytest.approx([2.8460, -0.3162], abs=1e-4)
    graded = of([1.0, 0.707, 0.5, 0.5] + 6 * [0.0])
    assert graded[:5] == pytest.approx([3.1684, 1.0267, 0.4750, 0.4750, -0.8575], abs=1e-4)
    no_exact = of([0.95, 0.5, 0.5] + 7 * [0.0])
    assert no_exact[:4] == pytest.approx([2.2402, 0.9050, 0.9050, -0.5786], abs=1e-4)


def test_the_bonus_of_the_paper() -> None:
    exact = torch.zeros(3, 10, dtype=torch.bool)
    exact[0, 0] = True
    exact[1, :7] = True
    bonus = pass_at_k_bonus(exact, torch.ones_like(exact), 4)
    assert bonus[0, :2].tolist() == pytest.approx([1.2247, -0.1361], abs=1e-4)
    assert bonus[1].tolist() == 10 * [0.0]  # fewer than k are not exact
    assert bonus[2].tolist() == 10 * [0.0]  # none is


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "srpo", "expected"])
def test_a_group_of_equal_rewards_moves_nothing(kind: str) -> None:
    assert of(6 * [0.5], kind=kind, exact=6 * [0]) == 6 * [0.0]


@given(st.lists(st.floats(0, 1), min_size=3, max_size=12), st.sampled_from(["grpo", "dr_grpo"]))
def test_advantages_sum_to_nothing(values: list[float], kind: str) -> None:
    assert sum(of(values, kind=kind)) == pytest.approx(0, abs=1e-3)


def test_places_without_a_proposal_count_for_nothing() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.5, 77.0]])
    is_real = torch.tensor([[True, True, True, False]])
    exact = torch.tensor([[True, False, False, True]])
    found = group_advantages(rewards, is_real, "srpo", exact=exact, pass_at=2)
    alone = group_advantages(rewards[:, :3], is_real[:, :3], "srpo", exact=exact[:, :3], pass_at=2)
    torch.testing.assert_close(found[:, :3], alone)
    assert found[0, 3] == 0


def test_a_group_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 proposals"):
        group_advantages(torch.ones(3, 1), torch.ones(3, 1, dtype=torch.bool), "grpo")


def test_expected_advantages_give_the_gradient_of_the_expected_reward() -> None:
    torch.manual_seed(0)
    log_probs = torch.randn(4, 6, requires_grad=True)
    rewards = torch.randn(4, 6)
    weights = log_probs.softmax(-1)
    (expected,) = torch.autograd.grad((weights * rewards).sum(), log_probs)
    advantages = group_advantages(
        rewards, torch.ones(4, 6, dtype=torch.bool), "expected", weights=weights.detach(), limit=None
    )
    surrogate: Tensor = (advantages * log_probs).sum() / 6
    (found,) = torch.autograd.grad(surrogate, log_probs)
    torch.testing.assert_close(found, expected)


def test_tempered_weights_go_from_shares_to_equal_ones_and_leave_out_what_weighs_nothing() -> None:
    weights = torch.tensor([[0.64, 0.32, 0.04, 0.0]])
    assert torch.equal(tempered(weights, 1.0), weights)
    assert torch.allclose(tempered(weights, 0.0), torch.tensor([[1 / 3, 1 / 3, 1 / 3, 0.0]]))
    roots = torch.tensor([[0.8, 0.32**0.5, 0.2, 0.0]])
    assert torch.allclose(tempered(weights, 0.5), roots / roots.sum())


def test_expected_advantages_of_equal_weights_are_those_of_dr_grpo() -> None:
    rewards = torch.tensor([[1.0, 0.5, -2.0, 0.0]])
    is_real = torch.tensor([[True, True, True, False]])
    weights = tempered(torch.tensor([[0.7, 0.2, 0.1, 0.0]]), 0.0)
    expected = group_advantages(rewards, is_real, "expected", weights=weights)
    assert torch.allclose(expected, group_advantages(rewards, is_real, "dr_grpo"), atol=1e-6)
