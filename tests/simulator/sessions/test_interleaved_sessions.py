"""Simulated users and merged lists: the ranker that suits them wins, and neither of two equal ones does."""

from __future__ import annotations

import numpy as np
import pytest
from simulated_world import NUM_ITEMS, make_log, make_model

from recsys.simulator.experiment.interleaving import Preference, probabilistic, team_draft
from recsys.simulator.sessions.interleaved import simulated_preference
from recsys.simulator.sessions.play import PlayConfig

POPULATION = make_log(240).sequences()
CONFIG = PlayConfig(size=4, max_steps=3, sessions_per_user=4)


def lists(*, own: bool) -> np.ndarray:
    """Of each user: unseen items of the genre that the history has most of, or of the others, first; -1 at the end."""
    found = np.full((len(POPULATION), CONFIG.size * CONFIG.max_steps), -1)
    for row, history in enumerate(POPULATION):
        genre = np.bincount(history % 4, minlength=4).argmax()
        unseen = np.setdiff1d(np.arange(NUM_ITEMS), history)
        order = unseen[np.argsort((unseen % 4 == genre) != own, kind="stable")][: found.shape[1]]
        found[row, : len(order)] = order
    return found


def preferred(merge, first: np.ndarray, second: np.ndarray, seed: int = 0) -> Preference:  # type: ignore[no-untyped-def]
    return simulated_preference(
        merge,
        first,
        second,
        make_model(),
        POPULATION,
        CONFIG.model_copy(update={"seed": seed}),
        user_ids=[f"u{user}" for user in range(len(POPULATION))],
        item_ids=[f"i{item}" for item in range(NUM_ITEMS)],
    )


@pytest.mark.parametrize("merge", [team_draft, probabilistic])
def test_the_ranker_that_suits_its_users_wins(merge) -> None:  # type: ignore[no-untyped-def]
    suited, unsuited = lists(own=True), lists(own=False)
    found, turned = preferred(merge, suited, unsuited), preferred(merge, unsuited, suited)
    assert found.wins + found.losses + found.ties == len(POPULATION)
    assert found.wins > 1.3 * found.losses
    assert found.p_value < 0.05
    assert found.difference.low > 0
    assert turned.losses > 1.3 * turned.wins
    assert preferred(merge, suited, unsuited) == found, "the same seed gives the same"


@pytest.mark.parametrize("merge", [team_draft, probabilistic])
def test_neither_of_two_equal_rankers_wins(merge) -> None:  # type: ignore[no-untyped-def]
    same = lists(own=True)
    assert min(preferred(merge, same, same, seed).p_value for seed in range(3)) > 0.01


def test_a_ranker_with_nothing_to_show_loses() -> None:
    found = preferred(team_draft, np.full_like(lists(own=True), -1), lists(own=True))
    assert found.wins == 0
    assert found.losses > 0
