"""What holds for every log: limits of parameters, the order of rounds, scale, agreement with the obvious loop."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.simulator.off_policy import BanditLog, Rounds, cross_fitted
from recsys.simulator.off_policy import estimators as single
from recsys.simulator.off_policy.balance import balanced_weights
from recsys.simulator.off_policy.choice import by_slope, squared_error_bound
from recsys.simulator.off_policy.estimators import SHRUNKEN, estimate
from recsys.simulator.off_policy.prefixes import marginalised_weights, prefix_groups
from recsys.simulator.off_policy.rewards import user_folds
from recsys.simulator.off_policy.synthetic import World


@st.composite
def rounds(draw: st.DrawFn) -> Rounds:
    size = draw(st.integers(1, 40))
    random = np.random.default_rng(draw(st.integers(0, 10_000)))
    weights = random.exponential(size=size) * (random.random(size) < 0.8)
    weights[0] += 0.1
    return Rounds(
        rewards=random.normal(size=size),
        weights=weights,
        predicted=random.normal(size=size),
        values=random.normal(size=size),
    )


def _all(data: Rounds) -> dict[str, single.Terms]:
    found = {
        "ips": single.ips(data),
        "snips": single.snips(data),
        "direct": single.direct(data),
        "dr": single.doubly_robust(data),
        "sndr": single.self_normalised_dr(data),
        "on_policy": single.on_policy(data),
    }
    return found | {name: family.terms(data, 0.7) for name, family in SHRUNKEN.items()}


@given(rounds())
def test_parameters_at_their_ends_give_the_estimators_that_they_mix(data: Rounds) -> None:
    dm, dr, ips = (estimate(f(data)) for f in (single.direct, single.doubly_robust, single.ips))

    def shrunken(name: str, parameter: float) -> float:
        return estimate(SHRUNKEN[name].terms(data, parameter))

    for name in ("switch_dr", "dros"):
        assert shrunken(name, 0.0) == pytest.approx(dm, abs=1e-12)
        assert shrunken(name, np.inf) == pytest.approx(dr, abs=1e-12)
    assert shrunken("clipped_ips", np.inf) == pytest.approx(ips, abs=1e-12)
    assert shrunken("clipped_ips", 0.0) == 0
    assert shrunken("subgaussian_ips", 0.0) == pytest.approx(ips, abs=1e-12)
    assert shrunken("subgaussian_dr", 0.0) == pytest.approx(dr, abs=1e-12)
    assert shrunken("subgaussian_ips", 1.0) == pytest.approx(float(data.rewards.mean()), abs=1e-12)


@given(rounds(), st.integers(0, 100))
def test_the_order_of_rounds_does_not_matter(data: Rounds, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(data.rewards))
    shuffled = Rounds(
        rewards=data.rewards[order],
        weights=data.weights[order],
        predicted=data.predicted[order],
        values=data.values[order],
    )
    before, after = _all(data), _all(shuffled)
    assert {name: estimate(terms) for name, terms in before.items()} == pytest.approx(
        {name: estimate(terms) for name, terms in after.items()}, abs=1e-12
    )


@given(rounds(), st.floats(-3, 3), st.floats(0.1, 5))
def test_self_normalised_estimates_move_with_the_rewards_and_not_with_the_weights(
    data: Rounds, shift: float, scale: float
) -> None:
    moved = Rounds(
        rewards=data.rewards + shift,
        weights=data.weights * scale,
        predicted=data.predicted + shift,
        values=data.values + shift,
    )
    for build in (single.snips, single.self_normalised_dr):
        assert estimate(build(moved)) == pytest.approx(estimate(build(data)) + shift, abs=1e-9)
    assert data.rewards.min() - 1e-9 <= estimate(single.snips(data)) <= data.rewards.max() + 1e-9


@given(rounds())
def test_a_perfect_model_makes_dr_the_direct_estimate(data: Rounds) -> None:
    perfect = Rounds(rewards=data.rewards, weights=data.weights, predicted=data.rewards, values=data.values)
    for name in ("switch_dr", "dros", "subgaussian_dr"):
        assert estimate(SHRUNKEN[name].terms(perfect, 0.3)) == pytest.approx(estimate(single.direct(data)), abs=1e-12)


@given(rounds(), st.sampled_from(sorted(SHRUNKEN)))
def test_shrinking_takes_what_is_said_to_be_lost(data: Rounds, name: str) -> None:
    family = SHRUNKEN[name]
    whole = single.doubly_robust(data) if family.is_doubly_robust else single.ips(data)
    lost = family.lost(data, 0.3)
    assert estimate(whole) - estimate(family.terms(data, 0.3)) == pytest.approx(float(lost.mean()), abs=1e-12)


@given(rounds())
def test_the_influence_of_a_mean_is_its_distance_from_it(data: Rounds) -> None:
    moves = single.influence(single.ips(data))
    products = data.weights * data.rewards
    assert moves == pytest.approx(products - products.mean(), abs=1e-12)
    for terms in _all(data).values():
        assert single.influence(terms).mean() == pytest.approx(0, abs=1e-12)


def test_of_equal_policies_every_weight_is_one_and_ips_is_the_mean() -> None:
    log = World.drawn(seed=0).log(500, seed=1)
    assert log.behaviour is not None
    groups = prefix_groups(np.arange(10)[:, None] // 3, 1)
    assert marginalised_weights(log, log.behaviour, groups) == pytest.approx(np.ones(500))


@given(st.integers(0, 50))
@settings(max_examples=20)
def test_prefixes_of_all_codes_give_the_weights_of_items_and_of_one_group_none(seed: int) -> None:
    world = World.drawn(seed=seed)
    log = world.log(200, seed=seed)
    codes = np.stack([np.zeros(10, dtype=np.int64), np.arange(10) // 5, np.arange(10) % 5], axis=1)
    of_items = world.target[log.context_of, log.actions] / log.propensities
    assert marginalised_weights(log, world.target, prefix_groups(codes, 3)) == pytest.approx(of_items)
    assert marginalised_weights(log, world.target, prefix_groups(codes, 1)) == pytest.approx(np.ones(200))
    # Of two items that are liked alike, the group's weight is the mean of theirs under the policy that served.
    middle = marginalised_weights(log, world.target, prefix_groups(codes, 2))
    half = slice(0, 5) if log.actions[0] < 5 else slice(5, 10)
    context = log.context_of[0]
    assert middle[0] == pytest.approx(world.target[context, half].sum() / world.behaviour[context, half].sum())


def test_the_reward_model_of_a_context_without_features_is_the_shrunk_mean_of_other_users() -> None:
    random = np.random.default_rng(0)
    log = BanditLog(
        actions=random.integers(0, 3, 60),
        rewards=random.random(60),
        propensities=np.full(60, 1 / 3),
        num_actions=3,
        users=random.integers(0, 20, 60),
    )
    target = np.array([[0.2, 0.3, 0.5]])
    found = cross_fitted(log, target, num_folds=3, penalty=5.0, seed=1)
    folds = user_folds(log.user_of, 3, 1)
    for row in range(60):
        others = folds != folds[row]
        level = log.rewards[others].mean()
        q = np.empty(3)
        for action in range(3):
            own = log.rewards[others & (log.actions == action)]
            q[action] = (own.sum() + 5.0 * level) / (len(own) + 5.0)
        assert found.predicted[row] == pytest.approx(q[log.actions[row]], abs=1e-12)
        assert found.values[row] == pytest.approx(float(target[0] @ q), abs=1e-12)
    same_user = [set(folds[log.user_of == user]) for user in range(20)]
    assert all(len(each) <= 1 for each in same_user)


def test_a_reward_model_with_features_learns_what_differs_between_contexts() -> None:
    world = World.drawn(seed=3)
    log = world.log(40_000, seed=4)
    found = cross_fitted(log, world.target, num_folds=3, penalty=1.0, seed=0)
    truth = world.expected[log.context_of, log.actions]
    assert np.abs(found.predicted - truth).mean() < 0.02
    assert found.values.mean() == pytest.approx(world.truth, abs=0.01)


def test_a_classifier_finds_the_weights_that_the_propensities_give() -> None:
    world = World.drawn(num_contexts=2, num_actions=4, seed=5)
    log = world.log(40_000, seed=6)
    weights = balanced_weights(log, world.target, num_folds=2, seed=0)
    assert np.corrcoef(weights, world.target[log.context_of, log.actions] / log.propensities)[0, 1] > 0.98
    assert weights.mean() == pytest.approx(1, abs=0.02)


def test_balanced_estimates_of_short_logs_are_not_too_high() -> None:
    world = World.drawn(seed=0)
    errors = []
    for seed in range(10):
        log = world.log(1_000, seed=seed)
        weights = balanced_weights(log, world.target, num_folds=3, seed=seed)
        terms = single.snips(Rounds(rewards=log.rewards, weights=weights, predicted=log.rewards, values=log.rewards))
        errors.append(estimate(terms) - world.truth)
    assert abs(np.mean(errors)) < 0.02


def test_a_fold_without_users_is_left_out_of_the_classifier() -> None:
    world = World.drawn(num_contexts=2, num_actions=4, seed=5)
    log = world.log(400, seed=6, rounds_per_user=200)
    weights = balanced_weights(log, world.target, num_folds=3, seed=0)
    assert (weights > 0).all()
    assert np.isfinite(weights).all()


def test_slope_takes_the_narrowest_estimate_that_agrees_with_all_wider_ones() -> None:
    assert by_slope([1.0, 1.1, 1.05, 9.0], [1.0, 0.5, 0.2, 0.1]) == 2
    assert by_slope([9.0, 1.05, 1.1, 1.0], [0.1, 0.2, 0.5, 1.0]) == 1, "by width, not by place"
    assert by_slope([1.0, 5.0], [0.1, 0.05]) == 0
    assert by_slope([3.0], [1.0]) == 0
    with pytest.raises(ValueError, match="value and a width"):
        by_slope([], [])


def test_the_bound_on_the_squared_error_adds_variance_and_squared_bias() -> None:
    contributions, lost, weights = np.array([1.0, 3.0]), np.array([0.5, 0.5]), np.array([1.0, 2.0])
    assert squared_error_bound(contributions, lost, weights, confidence=None) == pytest.approx(2.0 / 2 + 0.25)
    odds = np.log(2 / 0.05)
    bias = 0.5 + np.sqrt(2 * 2.5 * odds / 2) + 2 * 2 * odds / 6
    assert squared_error_bound(contributions, lost, weights, confidence=0.95) == pytest.approx(1.0 + bias**2)
