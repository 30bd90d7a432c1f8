"""The probabilities of drawn lists against the enumeration of all lists of a small catalogue."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.simulator.exploration import draw_slate, list_propensities

SCORES = np.array([0.3, -1.0, 1.2, 0.0])
TEMPERATURE, UNIFORM, EPSILON = 0.7, 0.05, 0.4


def _all_lists(k: int) -> dict[tuple[int, ...], float]:
    """The probability of every list, from the definition of the policy."""
    weights = np.exp(SCORES / TEMPERATURE)
    strengths = (1 - UNIFORM) * weights / weights.sum() + UNIFORM / len(SCORES)
    best = tuple(np.argsort(-SCORES)[:k].tolist())
    found = {}
    for items in permutations(range(len(SCORES)), k):
        probability, left = 1.0, 1.0
        for item in items:
            probability *= strengths[item] / left
            left -= strengths[item]
        found[items] = EPSILON * probability + (1 - EPSILON) * (items == best)
    return found


def _draw(seed: int, k: int = 3, epsilon: float = EPSILON):
    return draw_slate(SCORES, k, epsilon=epsilon, seed=seed, temperature=TEMPERATURE, uniform=UNIFORM)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_probabilities_are_those_of_the_enumeration(k: int) -> None:
    lists = _all_lists(k)
    assert sum(lists.values()) == pytest.approx(1)
    for seed in range(40):
        drawn = _draw(seed, k)
        items = tuple(drawn.order.tolist())
        assert drawn.joint_log == pytest.approx(np.log(lists[items]), abs=1e-9)
        for place, item in enumerate(items):
            begins = {
                size: sum(p for each, p in lists.items() if each[:size] == items[:size]) for size in (place, place + 1)
            }
            assert drawn.conditional[place] == pytest.approx(begins[place + 1] / begins[place])
            marginal = sum(p for each, p in lists.items() if each[place] == item)
            assert drawn.marginal[place] == pytest.approx(marginal, abs=1e-9 if place < 2 else 0.02)


def test_lists_appear_as_often_as_their_probability_says() -> None:
    lists, draws = _all_lists(3), 2000
    counts = dict.fromkeys(lists, 0)
    for seed in range(draws):
        counts[tuple(_draw(seed).order.tolist())] += 1
    for items, probability in lists.items():
        spread = np.sqrt(probability * (1 - probability) / draws)
        assert abs(counts[items] / draws - probability) < 4.5 * spread


def test_without_exploration_the_best_list_is_certain() -> None:
    drawn = _draw(0, epsilon=0)
    assert drawn.order.tolist() == [2, 0, 3]
    assert drawn.joint_log == 0
    assert drawn.marginal.tolist() == drawn.conditional.tolist() == [1, 1, 1]
    assert not drawn.was_drawn


def test_a_seed_draws_the_same_list_and_probabilities() -> None:
    first, second = _draw(5, epsilon=1), _draw(5, epsilon=1)
    assert first.was_drawn
    assert first.order.tolist() == second.order.tolist()
    assert first.marginal.tolist() == second.marginal.tolist()


@given(
    scores=st.lists(st.floats(-800, 0), max_size=30),
    k=st.integers(0, 12),
    epsilon=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
def test_every_list_is_possible_whatever_the_scores(scores: list[float], k: int, epsilon: float, seed: int) -> None:
    drawn = draw_slate(np.array(scores), k, epsilon=epsilon, seed=seed)
    assert len(set(drawn.order.tolist())) == len(drawn.order) == min(k, len(scores))
    assert np.isfinite(drawn.joint_log)
    for probabilities in (drawn.marginal, drawn.conditional):
        assert ((probabilities > 0) & (probabilities <= 1 + 1e-9)).all()


@pytest.mark.parametrize(
    "change", [{"epsilon": 2}, {"temperature": 0}, {"uniform": 0}, {"k": -1}, {"scores": np.array([np.nan])}]
)
def test_impossible_values_are_refused(change: dict) -> None:
    values = {"scores": SCORES, "k": 2, "epsilon": 0.1, "seed": 0} | change
    with pytest.raises(ValueError, match="must be"):
        draw_slate(values.pop("scores"), values.pop("k"), **values)


def test_no_marginal_is_below_what_is_known_however_few_draws_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recsys.simulator.exploration.NUM_DRAWS", 1)
    scores = np.array([0.0, -1.0, -1.5, -2.0, -2.5])
    for seed in range(50):
        slate = draw_slate(scores, 5, epsilon=1.0, seed=seed)
        assert (slate.marginal > 0).all()
        assert (slate.marginal >= np.cumprod(slate.conditional)).all()
        assert (slate.marginal <= 1).all()


@pytest.mark.parametrize("k", [1, 2, 3])
def test_a_list_that_another_policy_showed_has_the_probabilities_of_the_enumeration(k: int) -> None:
    lists = _all_lists(k)
    for items, probability in lists.items():
        found = list_propensities(
            SCORES, np.array(items), epsilon=EPSILON, seed=0, temperature=TEMPERATURE, uniform=UNIFORM
        )
        assert found.conditional.prod() == pytest.approx(probability)
        for place in range(k):
            marginal = sum(p for each, p in lists.items() if each[place] == items[place])
            assert found.marginal[place] == pytest.approx(marginal, abs=1e-9 if place < 2 else 0.02)
            begun = sum(p for each, p in lists.items() if each[:place] == items[:place])
            for item in range(4):
                then = sum(p for each, p in lists.items() if each[: place + 1] == (*items[:place], item))
                assert found.choices[place, item] == pytest.approx(then / begun, abs=1e-12)


def test_lists_with_items_that_are_no_candidates_are_impossible_from_there_on() -> None:
    found = list_propensities(SCORES, np.array([2, -1, 0]), epsilon=EPSILON, seed=0)
    assert found.conditional[0] > 0
    assert found.conditional[1:].tolist() == [0, 0]
    assert found.marginal[1] == 0
    assert found.marginal[2] > 0, "at its place whatever stands elsewhere"
    assert found.choices.sum(axis=1) == pytest.approx([1, 1, 0])
    certain = list_propensities(SCORES, np.array([2, 0]), epsilon=0, seed=0)
    assert certain.conditional.tolist() == [1, 1]
    assert list_propensities(SCORES, np.array([2, 1]), epsilon=0, seed=0).conditional.tolist() == [1, 0]


@pytest.mark.parametrize(("k", "candidates"), [(1, 4), (2, 4), (4, 4), (5, 12)])
def test_what_stands_at_a_place_is_one_of_all_candidates(k: int, candidates: int) -> None:
    scores = np.random.default_rng(0).normal(size=candidates)
    order = np.random.default_rng(1).permutation(candidates)[:k].astype(np.int64)
    found = list_propensities(scores, order, epsilon=0.4, seed=3)
    assert found.marginals.sum(axis=1) == pytest.approx(np.ones(k))
    assert found.marginals[0] == pytest.approx(found.choices[0])
    assert np.maximum(found.marginals[np.arange(k), order], np.cumprod(found.conditional)) == pytest.approx(
        found.marginal
    )


def test_without_candidates_nothing_can_be_shown() -> None:
    found = list_propensities(np.zeros(0), np.array([-1, -1]), epsilon=0.4, seed=3)
    assert found.conditional.tolist() == found.marginal.tolist() == [0, 0]
    assert found.choices.shape == found.marginals.shape == (2, 0)
