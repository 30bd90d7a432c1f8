"""Credit between a chain and its answers: values by hand, and the properties that make the split a gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from recsys.alignment.group_policy.advantages import group_advantages
from recsys.alignment.group_policy.credit import Credit, split_credit


def split(rewards: list[list[float]], num_chains: int, kind: str, **changes: Any) -> Credit:
    values = torch.tensor(rewards)
    arguments: dict[str, Any] = {
        "weights": torch.full_like(values, 1 / values.shape[1]),
        "is_real": torch.ones_like(values, dtype=torch.bool),
        "own": torch.zeros(len(values) // num_chains, num_chains),
        "exact": values == 1,
        "pass_at": 1,
    }
    return split_credit(values, kind=kind, **{**arguments, **changes})  # type: ignore[arg-type]


def test_the_two_parts_by_hand() -> None:
    """Chains of expected reward 0.7 and 0.15: means of (1, 0) under shares (0.7, 0.3), and of (0, 0.5)."""
    weights = torch.tensor([[0.7, 0.3], [0.7, 0.3]])
    found = split([[1.0, 0.0], [0.0, 0.5]], 2, "dr_grpo", weights=weights)
    assert found.chain_rewards[0].tolist() == pytest.approx([0.7, 0.15], abs=1e-6)
    # Against the mean 0.425 of the chains, and against the means 0.5 and 0.25 of each chain's answers.
    assert found.chains[0].tolist() == pytest.approx([0.275, -0.275], abs=1e-6)
    assert found.answers.flatten().tolist() == pytest.approx([0.5, -0.5, -0.25, 0.25], abs=1e-6)
    scaled = split([[1.0, 0.0], [0.0, 0.5]], 2, "grpo", weights=weights)
    # Two values stand 1 / sqrt(2) deviations (the unbiased one) from their mean.
    assert scaled.chains[0].tolist() == pytest.approx([0.70711, -0.70711], abs=1e-4)
    assert scaled.answers.flatten().tolist() == pytest.approx([0.70711, -0.70711, -0.70711, 0.70711], abs=1e-4)


def test_srpo_gives_its_bonus_to_both_parts() -> None:
    """Ten chains of which one is exact have the advantages that GREAM publishes for ten proposals."""
    exact_first = [[1.0, 0.0]] + 9 * [[0.0, 0.0]]
    certain = torch.tensor([[1.0, 0.0]]).expand(10, -1)
    found = split(exact_first, 10, "srpo", weights=certain, pass_at=4)
    assert found.chains[0, :2].tolist() == pytest.approx([4.0708, -0.4523], abs=1e-4)
    # An exact answer that is not the chain's most probable one is no exact chain: no bonus, only the mean counts.
    swapped = split(exact_first, 10, "srpo", weights=certain.flip(1) * 0.8 + 0.1, pass_at=4)
    assert swapped.chains[0, :2].tolist() == pytest.approx([2.8460, -0.3162], abs=1e-4)


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "srpo", "expected"])
def test_one_answer_a_chain_is_plain_group_policy_optimisation(kind: str) -> None:
    rewards = [[1.0], [0.25], [0.5], [0.0], [0.0], [1.0]]
    found = split(rewards, 3, kind)
    grouped = torch.tensor(rewards).view(2, 3)
    plain = group_advantages(
        grouped,
        torch.ones(2, 3, dtype=torch.bool),
        kind,  # type: ignore[arg-type]
        exact=grouped == 1,
        pass_at=1,
    )
    torch.testing.assert_close(found.chains, plain)
    torch.testing.assert_close(found.answers.view(2, 3), plain)


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "srpo", "expected"])
def test_chains_that_are_equally_good_get_nothing_and_their_answers_do(kind: str) -> None:
    found = split([[0.9, 0.1], [0.1, 0.9], [0.5, 0.5]], 3, kind)
    assert found.chains.tolist() == [[0.0, 0.0, 0.0]]
    assert found.answers[0, 0] > 0 > found.answers[0, 1]
    assert found.answers[2].tolist() == [0.0, 0.0]


def test_what_a_chain_itself_is_worth_moves_the_chain_alone() -> None:
    found = split([[0.5, 0.1], [0.5, 0.1]], 2, "dr_grpo", own=torch.tensor([[0.0, -1.0]]))
    assert found.chains[0].tolist() == pytest.approx([0.5, -0.5])
    torch.testing.assert_close(found.answers[0], found.answers[1])


def test_a_chain_without_answers_has_no_part() -> None:
    is_real = torch.tensor([[True, True], [True, True], [False, False]])
    found = split([[1.0, 0.0], [0.0, 0.0], [9.0, 9.0]], 3, "dr_grpo", is_real=is_real)
    assert found.chains[0].tolist() == pytest.approx([0.25, -0.25, 0.0])
    assert found.answers[2].tolist() == [0.0, 0.0]


@given(st.integers(0, 10_000))
def test_both_parts_together_are_the_gradient_of_the_expected_reward(seed: int) -> None:
    """With all chains and all answers in the groups, and the chains drawn as often as they are probable."""
    generator = torch.Generator().manual_seed(seed)
    num_chains, num_answers = 4, 3
    answer_logits = torch.randn(num_chains, num_answers, generator=generator).requires_grad_()
    chain_logits = torch.zeros(num_chains, requires_grad=True)
    rewards = torch.randn(num_chains, num_answers, generator=generator)
    of_chains, of_answers = chain_logits.log_softmax(-1), answer_logits.log_softmax(-1)
    expected = (of_chains.exp().unsqueeze(1) * of_answers.exp() * rewards).sum()
    truth = torch.autograd.grad(expected, (chain_logits, answer_logits), retain_graph=True)
    found = split_credit(
        rewards,
        of_answers.detach().exp(),
        torch.ones_like(rewards, dtype=torch.bool),
        torch.zeros(1, num_chains),
        "expected",
        exact=torch.zeros_like(rewards, dtype=torch.bool),
        limit=None,
    )
    surrogate: Tensor = (found.chains[0] * of_chains).mean() + (found.answers * of_answers).mean()
    for own, other in zip(torch.autograd.grad(surrogate, (chain_logits, answer_logits)), truth, strict=True):
        torch.testing.assert_close(own, other, atol=1e-5, rtol=1e-4)


def test_a_power_of_the_shares_moves_the_answers_and_not_what_a_chain_is_worth() -> None:
    rewards, weights = [[1.0, 0.0], [0.0, 0.5]], torch.tensor([[0.8, 0.2], [0.8, 0.2]])
    plain, tempered = (split(rewards, 2, "expected", weights=weights, weight_power=power) for power in (1.0, 0.5))
    assert tempered.chain_rewards.tolist() == plain.chain_rewards.tolist()
    assert tempered.chains.tolist() == plain.chains.tolist()
    # Two answers under shares w: 2 w_i (r_i - sum of w r), with (0.8, 0.2) and with (2 / 3, 1 / 3).
    assert plain.answers[0].tolist() == pytest.approx([0.32, -0.32], abs=1e-6)
    assert tempered.answers[0].tolist() == pytest.approx([4 / 9, -4 / 9], abs=1e-6)
    level = split(rewards, 2, "expected", weights=weights, weight_power=0.0)
    torch.testing.assert_close(level.answers, split(rewards, 2, "dr_grpo", weights=weights).answers)
