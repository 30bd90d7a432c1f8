"""One source as a recommender: its own order, cut to what is permitted."""

from __future__ import annotations

import numpy as np
import pytest
from small_world import NUM_ITEMS, World

from recsys.data import Sequences
from recsys.generator import Constraints
from recsys.generator.constraints import Cap
from recsys.generator.diversity import walk_one
from recsys.generator.groups import Groups
from recsys.retrieval.single import SourceRecommender

HISTORIES = Sequences.from_lists([[0, 1, 2], [12, 13], [5, 22]])


@pytest.mark.parametrize("name", ["sasrec", "skip_gram", "content", "popularity"])
def test_a_list_is_the_sources_order_without_what_is_denied(world: World, name: str) -> None:
    source = world.pool.sources[name]
    held = Constraints(deny=list(HISTORIES))
    found = SourceRecommender(source, NUM_ITEMS).recommend(HISTORIES, 4, constraints=held)
    proposal = source.propose(HISTORIES, 4, held)
    np.testing.assert_array_equal(found.items, proposal.items)
    listed = found.items >= 0
    np.testing.assert_allclose(found.scores[listed], proposal.scores(found.items)[listed])
    assert (found.scores[~listed] == -np.inf).all()
    assert listed.any()


def test_a_capped_list_is_the_walk_over_the_whole_order(world: World) -> None:
    source = world.pool.sources["content"]
    groups = Groups.from_labels([[item % 3] for item in range(NUM_ITEMS)])
    held = Constraints(caps=[Cap(groups=groups, most=2)])
    found = SourceRecommender(source, NUM_ITEMS).recommend(HISTORIES, 6, constraints=held)
    whole = source.propose(HISTORIES, NUM_ITEMS, Constraints()).items
    for row, order in enumerate(whole):
        np.testing.assert_array_equal(found.items[row], walk_one(order[order >= 0], held.caps, 6))


def test_a_list_that_the_source_cannot_fill_is_short(world: World) -> None:
    counter = SourceRecommender(world.pool.sources["skip_gram"], NUM_ITEMS)
    found = counter.recommend(Sequences.from_lists([[]]), 3)
    assert (found.items == -1).all()
    longer = counter.recommend(HISTORIES, NUM_ITEMS + 5)
    assert longer.items.shape == (3, NUM_ITEMS + 5)
    with pytest.raises(ValueError, match="k must be at least 1"):
        counter.recommend(HISTORIES, 0)
