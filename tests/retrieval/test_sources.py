"""Every source against scoring the whole catalogue, under the constraints of a request."""

from __future__ import annotations

import numpy as np
import pytest
from small_world import FITTED, NEW, NUM_ITEMS, World

from recsys.data import Sequences
from recsys.generator import Constraints
from recsys.retrieval.sources import Proposal

SOURCES = ("generator", "sasrec", "skip_gram", "content", "popularity")
HISTORIES = Sequences.from_lists([[0, 1, 2], [12, 13], [22, 5], [22, 23], [], [3] * 12])
EVERYTHING = np.tile(np.arange(NUM_ITEMS), (len(HISTORIES), 1))


def propose(world: World, name: str, n: int, constraints: Constraints | None = None) -> Proposal:
    return world.pool.sources[name].propose(HISTORIES, n, constraints or Constraints())


def test_a_tower_scores_as_the_baseline_that_it_is(world: World) -> None:
    tower = world.retrieval.tower
    known = HISTORIES.renumber(np.where(np.arange(NUM_ITEMS) < len(FITTED), np.arange(NUM_ITEMS), -1))
    np.testing.assert_allclose(tower.encode(known) @ tower.item_vectors.T, tower.scores(known), atol=1e-5)
    assert not tower.encode(known)[[3, 4]].any()


def test_content_is_the_recency_weighted_mean_of_unit_vectors(world: World) -> None:
    content = world.retrieval.content
    unit = world.vectors / np.linalg.norm(world.vectors, axis=1, keepdims=True)
    mean = 0.49 * unit[0] + 0.7 * unit[1] + unit[2]
    np.testing.assert_allclose(content.encode(HISTORIES)[0], mean / np.linalg.norm(mean), atol=1e-6)
    assert not content.encode(HISTORIES)[4].any()


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("restricted", [False, True])
def test_a_list_holds_the_best_permitted_items_of_the_whole_catalogue(
    world: World, name: str, restricted: bool
) -> None:
    random = np.random.default_rng(0)
    allow = random.random((len(HISTORIES), NUM_ITEMS)) < 0.6
    deny = [np.array(history) for history in HISTORIES]
    constraints = Constraints(allow=allow, deny=deny) if restricted else Constraints()
    # A source that lists everything tells the score of every item that it knows.
    scores = propose(world, name, NUM_ITEMS).scores(EVERYTHING)
    for row, history in enumerate(HISTORIES):
        permitted = allow[row] & ~np.isin(np.arange(NUM_ITEMS), history) if restricted else np.ones(NUM_ITEMS, bool)
        best_first = np.lexsort((np.arange(NUM_ITEMS), -scores[row]))
        ranked = [item for item in best_first if permitted[item] and scores[row, item] > -np.inf]
        listed = propose(world, name, 5, constraints).items[row]
        expected = ranked[:5] + [-1] * (5 - len(ranked[:5]))
        assert listed.tolist() == expected


@pytest.mark.parametrize("name", SOURCES)
def test_a_batch_gives_what_its_histories_give_alone(world: World, name: str) -> None:
    deny = [np.array([7, 8])] * len(HISTORIES)
    together = propose(world, name, 4, Constraints(deny=deny))
    for row in range(len(HISTORIES)):
        alone = world.pool.sources[name].propose(HISTORIES.select(np.array([row])), 4, Constraints(deny=[deny[row]]))
        np.testing.assert_array_equal(alone.items[0], together.items[row])
        np.testing.assert_allclose(alone.scores(EVERYTHING[:1])[0], together.scores(EVERYTHING)[row], atol=1e-5)


@pytest.mark.parametrize("name", SOURCES)
def test_no_item_has_no_score(world: World, name: str) -> None:
    assert np.isneginf(propose(world, name, 3).scores(np.full((len(HISTORIES), 2), -1))).all()


def test_a_source_is_silent_about_what_it_was_not_fitted_on(world: World) -> None:
    for name in ("sasrec", "skip_gram"):
        proposal = propose(world, name, NUM_ITEMS)
        assert not np.isin(proposal.items, NEW).any()
        assert np.isneginf(proposal.scores(EVERYTHING)[:, list(NEW)]).all()
        assert (proposal.items[3] == -1).all()  # a user with new items only
        assert (proposal.items[0] >= 0).any()


def test_content_reaches_new_items_and_users_of_new_items(world: World) -> None:
    listed = propose(world, "content", 5).items
    assert {22, 23} < set(listed[0].tolist())  # like 0 and 1 of the history
    assert {0, 1, 22, 23} == set(listed[3][:4].tolist())


def test_without_a_history_only_popularity_has_something_to_say(world: World) -> None:
    for name in SOURCES:
        assert (propose(world, name, 3).items[4] >= 0).any() == (name == "popularity")
    counts = world.retrieval.item_counts
    assert propose(world, "popularity", 3).items[4].tolist() == np.argsort(-counts, kind="stable")[:3].tolist()
