"""Random slates: how often they come against what they should, and propensities against brute force."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from scored_catalogue import score_catalogue

from recsys.data.sequences import Sequences
from recsys.generator.constraints import Cap, Constraints
from recsys.generator.groups import Groups
from recsys.generator.mass import permitted_log_mass

SHAPES = ["nested", "flat", "any_order"]
HISTORY = np.array([1, 2])


def probabilities(recommender, temperature: float = 1.0) -> np.ndarray:
    """float64 [N] of the next item after HISTORY, from the whole catalogue."""
    count = recommender.trie.num_items
    found = recommender.recommend(Sequences.from_lists([HISTORY]), count, temperature=temperature)
    exact = np.zeros(count)
    exact[found.items[0]] = np.exp(found.scores[0].astype(np.float64))
    if temperature == 1.0:
        np.testing.assert_allclose(exact, np.exp(score_catalogue(recommender, HISTORY)), atol=1e-5)
    np.testing.assert_allclose(exact.sum(), 1, atol=1e-5)
    return exact / exact.sum()


def draw(recommender, count: int, k: int, **arguments: object):
    """`count` slates of the same request with different seeds."""
    histories = Sequences.from_lists([HISTORY] * count)
    return recommender.sample(histories, k, seeds=np.arange(count), batch_size=500, **arguments)


def slate_probabilities(items: np.ndarray, k: int) -> dict[tuple[int, ...], float]:
    """Of every ordered slate of k items, from weights [N] of which zeros are not permitted."""
    exact = {}
    for slate in permutations(np.flatnonzero(items).tolist(), k):
        probability, left = 1.0, items.sum()
        for item in slate:
            probability *= items[item] / left
            left -= items[item]
        exact[slate] = probability
    return exact


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["free", "deny", "temperature"])
def test_slates_come_as_often_as_drawing_one_item_after_another(make_recommender, shape: str, kind: str) -> None:
    recommender = make_recommender(shape, num_items=7, sizes=(2, 3, 2))
    temperature = 2.5 if kind == "temperature" else 1.0
    exact = probabilities(recommender, temperature)
    deny = [np.array([0, 3])] * 3000 if kind == "deny" else None
    if deny is not None:
        exact[[0, 3]] = 0
    drawn = draw(recommender, 3000, 2, constraints=Constraints(deny=deny), temperature=temperature)
    expected = slate_probabilities(exact, 2)
    index = {slate: number for number, slate in enumerate(expected)}
    counts = np.bincount([index[tuple(row)] for row in drawn.items.tolist()], minlength=len(index))
    weights = np.array(list(expected.values()))
    # Rare slates together, so that the test's approximation holds.
    rare = weights * 3000 < 5
    counts = np.append(counts[~rare], counts[rare].sum())
    weights = np.append(weights[~rare], weights[rare].sum())
    used = weights > 0
    assert used.sum() > 5
    assert chisquare(counts[used], 3000 * weights[used]).pvalue > 0.001
    assert drawn.exact.all()
    rows = [np.log(expected[tuple(row)]) for row in drawn.items.tolist()]
    np.testing.assert_allclose(drawn.log_probability, rows, atol=1e-4)


def test_the_frequencies_would_tell_a_wrong_temperature(make_recommender) -> None:
    recommender = make_recommender("nested", num_items=7, sizes=(2, 3, 2))
    counts = np.bincount(draw(recommender, 3000, 1, temperature=1.5).items[:, 0], minlength=7)
    assert chisquare(counts, 3000 * probabilities(recommender)).pvalue < 1e-6
    assert chisquare(counts, 3000 * probabilities(recommender, 1.5)).pvalue > 0.001


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("k", [5, 40])
def test_propensities_are_those_of_brute_force(make_recommender, shape: str, k: int) -> None:
    recommender = make_recommender(shape, num_items=60, sizes=(4, 5, 4))
    allow = np.random.default_rng(2).random(60) < 0.5
    drawn = draw(recommender, 20, k, constraints=Constraints(allow=allow, deny=[np.arange(5)] * 20))
    left = probabilities(recommender) * allow
    left[:5] = 0
    count = min(k, int((left > 0).sum()))
    assert drawn.exact.all()
    assert (drawn.items[:, count:] == -1).all()
    assert (drawn.log_propensities[:, count:] == 0).all()
    assert drawn.short == [None if count == k else "few_permitted"] * 20
    for row in range(20):
        weights = left.copy()
        for place in range(count):
            item = drawn.items[row, place]
            expected = np.log(weights[item] / weights.sum())
            assert drawn.log_propensities[row, place] == pytest.approx(expected, abs=2e-3)
            weights[item] = 0


def test_a_slate_of_all_items_loses_nothing_to_rounding(make_recommender) -> None:
    recommender = make_recommender("nested", num_items=60, sizes=(4, 5, 4))
    drawn = draw(recommender, 10, 60)
    assert (drawn.log_propensities <= 0).all()
    np.testing.assert_array_equal(drawn.log_propensities[:, -1], 0.0)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_slate_follows_from_its_seed_alone(make_recommender, shape: str) -> None:
    recommender = make_recommender(shape, num_items=300)
    histories = [np.arange(size) for size in (0, 3, 9, 1, 5)]
    allow = np.random.default_rng(0).random((5, 300)) < 0.3
    seeds = np.array([3, -1, 2**62, 3, 0])
    together = recommender.sample(
        Sequences.from_lists(histories), 6, seeds=seeds, constraints=Constraints(allow=allow), batch_size=3
    )
    assert together.exact.all()
    for row, history in enumerate(histories):
        alone = recommender.sample(
            Sequences.from_lists([history]),
            6,
            seeds=seeds[row : row + 1],
            constraints=Constraints(allow=allow[row]),
            sessions=["u"],
        )
        np.testing.assert_array_equal(together.items[row], alone.items[0])
        np.testing.assert_allclose(together.log_propensities[row], alone.log_propensities[0], atol=1e-4)
    assert len({tuple(row) for row in draw(recommender, 50, 6).items.tolist()}) > 40


def test_what_the_budget_does_not_reach_is_not_called_exact(make_recommender) -> None:
    recommender = make_recommender("nested", num_items=300)
    allow = np.random.default_rng(0).random(300) < 0.3
    drawn = draw(recommender, 10, 5, constraints=Constraints(allow=allow), max_beams=5)
    assert not drawn.exact.any()
    assert np.isnan(drawn.log_propensities).all()
    assert allow[drawn.items].all()


def test_caps_and_wrong_seeds_are_refused(make_recommender) -> None:
    recommender = make_recommender("nested", num_items=7, sizes=(2, 3, 2))
    cap = Cap(groups=Groups.from_labels([["a"]] * 7), most=1)
    with pytest.raises(ValueError, match="caps must be empty"):
        draw(recommender, 1, 2, constraints=Constraints(caps=[cap]))
    with pytest.raises(ValueError, match="one number a history: 1, got 2"):
        recommender.sample(Sequences.from_lists([[]]), 2, seeds=np.arange(2))
    with pytest.raises(ValueError, match="temperature must be positive"):
        draw(recommender, 1, 2, temperature=0.0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["nothing", "free", "deny", "allow"])
def test_the_permitted_mass_is_the_sum_over_permitted_items(make_recommender, shape: str, kind: str) -> None:
    recommender = make_recommender(shape, num_items=300)
    permitted = np.ones(300, dtype=bool)
    constraints = Constraints()
    if kind == "nothing":
        permitted[:] = False
        constraints = Constraints(allow=permitted)
    if kind == "deny":
        permitted[::7] = False
        constraints = Constraints(deny=[np.arange(0, 300, 7)])
    if kind == "allow":
        permitted = np.random.default_rng(0).random(300) < 0.5
        constraints = Constraints(allow=permitted)
    expected = np.exp(score_catalogue(recommender, HISTORY).astype(np.float64))[permitted].sum()
    for budget in (3, 1000):
        state = recommender.model.start(torch.from_numpy(HISTORY).unsqueeze(0), torch.tensor([2]))
        mass = permitted_log_mass(
            recommender.model, recommender.trie, state, batch_size=1, constraints=constraints, max_beams=budget
        )
        low, high = float(mass.low.exp()), float(mass.high.exp())
        assert low - 1e-5 <= expected <= high + 1e-5
        assert bool(mass.is_exact) == (low == high)
        if budget == 1000 or kind in ("nothing", "free"):
            assert mass.is_exact.all()
        elif kind == "allow":
            assert high - low > 1e-3
