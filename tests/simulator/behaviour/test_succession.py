from __future__ import annotations

import numpy as np
import pytest
from simulated_world import NUM_ITEMS, make_catalog, make_model

from recsys.data import Sequences
from recsys.simulator.behaviour.choice_sets import sampled_choices
from recsys.simulator.behaviour.fit import fit_choice_model
from recsys.simulator.behaviour.fitting import FitConfig
from recsys.simulator.behaviour.logged_sessions import LoggedSessions
from recsys.simulator.behaviour.stress import Traits
from recsys.simulator.behaviour.succession import succession_evidence, successions

NOBODY = np.full((1, 5), -1)


def test_what_came_after_counts_for_less_with_every_place_and_never_backwards() -> None:
    counts = successions(Sequences.from_lists([[0, 1, 2], [0, 2], [3, 4, 4, 4, 4, 4, 5]]), 6)
    assert counts[[0, 0, 1, 2], [1, 2, 2, 0]] == pytest.approx([1.0, 0.6 + 1.0, 1.0, 0.0])
    assert counts[[3], [5]] == 0.0  # six places apart
    assert counts[[4], [4]] == 0.0


def test_evidence_is_the_same_for_options_as_for_the_catalogue_and_fades_with_the_age_of_an_item() -> None:
    counts = successions(Sequences.from_lists([[0, 1, 2], [0, 2], [3, 2]]), 5)
    latest = np.array([[-1, -1, -1, 3, 0], [-1, -1, -1, -1, -1]])
    whole = succession_evidence(counts, latest, None)
    assert whole[0] == pytest.approx(np.log1p([0, 1.0, 1.6 + 0.6 * 1.0, 0, 0]))
    assert not whole[1].any()
    items = np.array([[2, 4, 1], [2, 0, -1]])
    np.testing.assert_allclose(
        succession_evidence(counts, latest, items), np.take_along_axis(whole, items, axis=1), rtol=1e-6
    )


def test_two_rare_items_that_follow_each_other_in_the_log_are_taken_together_by_users_who_are_new() -> None:
    # Every user takes three of the pairs (0, 1), (2, 3), ..., each in order: only direction tells the next item.
    random = np.random.default_rng(0)
    pairs = [random.choice(NUM_ITEMS // 2, 3, replace=False) for _ in range(60)]
    log = Sequences.from_lists([np.stack([2 * pair, 2 * pair + 1], axis=1).ravel() for pair in pairs])
    model = fit_choice_model(make_catalog(), LoggedSessions(log=log, starts=None), FitConfig(alternatives=16))
    assert model.parameters.succession > 0
    memories = model.remember(Sequences.from_lists([[8]]))
    forth = model.utilities(memories, NOBODY[:, :3], np.array([[9, 7]]), Traits.ordinary(1))[0]
    without = model.having(succession=0.0).utilities(memories, NOBODY[:, :3], np.array([[9, 7]]), Traits.ordinary(1))[0]
    assert forth[0] - forth[1] > without[0] - without[1] + 0.5


def test_users_without_a_taste_of_their_own_do_not_follow_what_followed() -> None:
    model = make_model()
    memories, recent = model.remember(Sequences.from_lists([[0, 4]])), NOBODY[:, :3]
    chasers = Traits.of(["popularity_chaser"])
    np.testing.assert_array_equal(
        model.utilities(memories, recent, None, chasers),
        model.having(succession=0.0).utilities(memories, recent, None, chasers),
    )


def test_a_fit_sees_a_choice_through_the_counts_of_the_log_that_it_is_given() -> None:
    model = make_model()
    log = Sequences.from_lists([[0, 4, 8], [2, 3]])
    sets = sampled_choices(log, model.featurizer, alternatives=4, most_per_user=5, seed=0)
    # Sorted by position: 4 after 0, 3 after 2, 8 after 0 and 4.
    latest = np.array([[-1, -1, -1, -1, 0], [-1, -1, -1, -1, 2], [-1, -1, -1, 0, 4]])
    expected = succession_evidence(model.successions, latest, np.array([[4], [3], [8]]))
    np.testing.assert_allclose(sets.features[:, 0, -3], expected[:, 0], rtol=1e-6)
