"""Terms become one number: sums, soft ANDs, weights, and errors that name the term."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from recsys.alignment.rewards import RewardsConfig, build_rewards, evaluate, log_sigmoid_above
from recsys.alignment.rollouts import Rollouts
from recsys.errors import RewardError
from tests.alignment.rewards.worlds import context, rollouts

CODES = [[0, 0], [0, 1], [1, 0], [1, 1]]


@dataclass
class Fixed:
    values: Tensor
    name: str = "fixed"

    def __call__(self, rollouts: Rollouts) -> Tensor:
        return self.values


def test_a_configuration_names_its_terms():
    config = RewardsConfig.model_validate(
        {"terms": [{"kind": "prefix", "exponent": 1.0}, {"kind": "rank", "weight": 0.5}, {"kind": "future"}]}
    )
    values = build_rewards(config, context(CODES))(rollouts([[1, 0]], [[0, 1]]))
    assert list(values.terms) == ["prefix", "rank", "future"]
    expected = values.terms["prefix"] + 0.5 * values.terms["rank"] + values.terms["future"]
    torch.testing.assert_close(values.total, expected)
    assert values.means()["prefix"] == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ([{"kind": "praise"}], "praise"),
        ([{"kind": "exact", "exponent": 1}], "exponent"),
        ([{"kind": "exact"}, {"kind": "exact"}], "two terms are called 'exact'"),
        ([], "at least one reward"),
    ],
)
def test_a_wrong_configuration_is_refused(terms: list[dict[str, object]], message: str):
    with pytest.raises(ValidationError, match=message):
        RewardsConfig.model_validate({"terms": terms})


def test_log_sigmoid_has_its_golden_values_and_slopes():
    rewards = torch.tensor([0.2, 1.5, 3.0], requires_grad=True)
    transformed = log_sigmoid_above(rewards, 1.0)
    torch.testing.assert_close(transformed, torch.tensor([-1.171101, -0.474077, -0.126928]), atol=1e-6, rtol=0)
    (slopes,) = torch.autograd.grad(transformed.sum(), rewards)
    torch.testing.assert_close(slopes, torch.tensor([0.689974, 0.377541, 0.119203]), atol=1e-6, rtol=0)


def test_a_transformed_term_is_measured_from_the_reference_by_history_or_by_all():
    config = RewardsConfig.model_validate({"terms": [{"kind": "exact", "transform": "log_sigmoid"}], "quantile": 0.5})
    rewards = build_rewards(config, context(CODES))
    reference = rollouts([[0, 1], [2, -1]], [[0], [0]])
    batch = rollouts([[0, 1], [0, -1]], [[0], [0]])
    with pytest.raises(RewardError, match=r"'exact'.*fit_levels"):
        rewards(batch)
    rewards.fit_levels([reference])
    level = rewards.levels["exact"]
    assert level.level == 0
    assert level.scale == pytest.approx((2 / 9) ** 0.5)
    everywhere = rewards(batch).total
    torch.testing.assert_close(everywhere[0], log_sigmoid_above(torch.tensor([1.0, 0.0]), 0.0, level.scale))
    assert everywhere[1, 1] == 0
    by_history = rewards(batch, reference=reference).total
    torch.testing.assert_close(by_history[0], log_sigmoid_above(torch.tensor([1.0, 0.0]), 0.5, level.scale))
    torch.testing.assert_close(by_history[1], everywhere[1])  # one proposal is too few for a level of its own


def test_a_sum_of_log_sigmoids_prefers_the_proposal_that_is_fair_in_both():
    lopsided = log_sigmoid_above(torch.tensor([4.0, -2.0]), 0.0).sum()
    fair = log_sigmoid_above(torch.tensor([1.0, 1.0]), 0.0).sum()
    assert fair > lopsided


def test_weights_may_be_given_for_a_request_and_by_history():
    config = RewardsConfig.model_validate({"terms": [{"kind": "exact"}, {"kind": "prefix", "exponent": 1.0}]})
    rewards = build_rewards(config, context(CODES))
    batch = rollouts([[1, 0], [1, 0]], [[0], [0]])
    assert rewards(batch, weights={"exact": 0}).total.tolist() == [[0.5, 1], [0.5, 1]]
    assert rewards(batch, weights={"prefix": torch.tensor([0.0, 2.0])}).total.tolist() == [[0, 1], [1, 3]]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"novelty": 1.0}, "'novelty'"),
        ({"exact": float("nan")}, "weights.exact"),
        ({"exact": torch.ones(3)}, "weights.exact"),
    ],
)
def test_wrong_weights_are_refused(weights: dict[str, float | Tensor], message: str):
    rewards = build_rewards(RewardsConfig.model_validate({"terms": [{"kind": "exact"}]}), context(CODES))
    with pytest.raises(RewardError, match=message):
        rewards(rollouts([[1, 0]], [[0]]), weights=weights)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (torch.zeros(1, 3), "shape"),
        (torch.zeros(1, 2, dtype=torch.float64), "float64"),
        (torch.tensor([[0.0, torch.nan]]), "NaN or infinite.*history 0, place 1"),
        (torch.tensor([[torch.inf, 0.0]]), "NaN or infinite"),
    ],
)
def test_a_broken_reward_is_an_error_that_names_it(values: Tensor, message: str):
    with pytest.raises(RewardError, match=f"'fixed'.*{message}"):
        evaluate(Fixed(values), rollouts([[1, 0]], [[0]]))
