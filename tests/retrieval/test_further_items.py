"""Sources, index and fusion with items that they were not fitted on, against what is made over all of them at once."""

from __future__ import annotations

import numpy as np
import pytest
from small_world import NUM_ITEMS, World

from recsys.data import IntArray, Sequences
from recsys.data.rows import Rows
from recsys.generator import Constraints
from recsys.retrieval.index import ItemIndex
from recsys.retrieval.shards import IndexKind
from recsys.retrieval.single import SourceRecommender
from recsys.retrieval.sources import _Places
from recsys.retrieval.towers import ContentTower

HISTORIES = Sequences.from_lists([[0, 1, 2], [12, 13], []])
FURTHER = 5


@pytest.fixture
def vectors(world: World) -> Rows:
    more = np.random.default_rng(1).normal(size=(FURTHER, world.vectors.shape[1])).astype(np.float32)
    return Rows(world.vectors, more)


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf_pq", "ivf_rabitq"])
def test_an_extended_index_finds_the_further_items_and_the_old_one_does_not(kind: IndexKind) -> None:
    vectors = np.random.default_rng(0).normal(size=(400, 16)).astype(np.float32)
    index = ItemIndex(vectors[:390], kind)
    extended = index.with_rows(vectors[390:])
    queries = vectors[[3, 391, 399]]
    assert extended.search(queries, 1).items[:, 0].tolist() == np.argmax(queries @ vectors.T, axis=1).tolist()
    assert index.search(queries, 5).items.max() < 390
    assert extended.kind == kind


@pytest.mark.parametrize("share", [None, 0.05, 0.5])
def test_a_flat_index_with_further_items_is_one_over_all_of_them(share: float | None) -> None:
    random = np.random.default_rng(2)
    vectors = random.normal(size=(300, 8)).astype(np.float32)
    grown, whole = ItemIndex(vectors[:270], "flat").with_rows(vectors[270:]), ItemIndex(vectors, "flat")
    queries = random.normal(size=(6, 8)).astype(np.float32)
    constraints = Constraints(
        allow=None if share is None else random.random((6, 300)) < share,
        deny=[random.choice(300, 20, replace=False) for _ in range(6)],
    )
    for n in (1, 7, 40, 320):
        found, expected = grown.search(queries, n, constraints), whole.search(queries, n, constraints)
        np.testing.assert_array_equal(found.items, expected.items)
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)


def test_content_is_as_if_it_had_been_made_over_all_items(world: World, vectors: Rows) -> None:
    content = world.pool.sources["content"].with_items(vectors)
    whole = ContentTower(np.concatenate([vectors.first, vectors.further]), world.retrieval.config.content_decay)
    grown = world.retrieval.content.with_items(vectors.further)
    np.testing.assert_array_equal(np.concatenate([grown.item_vectors, grown.further_vectors]), whole.item_vectors)
    np.testing.assert_array_equal(grown.encode(HISTORIES), whole.encode(HISTORIES))
    scores = whole.encode(HISTORIES) @ whole.item_vectors.T
    found = content.propose(HISTORIES, 3, Constraints()).items
    assert found[0].tolist() == np.argsort(-scores[0])[:3].tolist()
    assert (found[2] == -1).all()


@pytest.mark.parametrize("name", ["sasrec", "skip_gram", "popularity"])
def test_a_source_that_learned_says_of_old_items_what_it_said(world: World, vectors: Rows, name: str) -> None:
    old, new = world.pool.sources[name], world.pool.sources[name].with_items(vectors)
    before, after = old.propose(HISTORIES, 4, Constraints()), new.propose(HISTORIES, 4, Constraints())
    np.testing.assert_array_equal(before.items, after.items)
    further = np.tile(np.arange(NUM_ITEMS, NUM_ITEMS + FURTHER), (len(HISTORIES), 1))
    scores = after.scores(further)
    if name == "popularity":
        assert (scores < before.scores(before.items)[0, 0]).all()
    else:
        assert np.isneginf(scores).all()
    only = np.zeros(NUM_ITEMS + FURTHER, dtype=bool)
    only[NUM_ITEMS:] = True
    listed = (
        SourceRecommender(old, NUM_ITEMS)
        .with_items(vectors)
        .recommend(HISTORIES, 2, constraints=Constraints(allow=only))
    )
    assert (listed.items >= NUM_ITEMS).all() if name == "popularity" else (listed.items == -1).all()


def test_restrictions_within_others() -> None:
    few, even = np.array([True, True, False, False]), np.array([True, False, True, False])
    assert Constraints().within(None).allow is None
    np.testing.assert_array_equal(Constraints().within(few).allow, few)  # type: ignore[arg-type]
    both = Constraints(allow=np.stack([even, ~even])).within(few).allow
    np.testing.assert_array_equal(both, [[True, False, False, False], [False, True, False, False]])  # type: ignore[arg-type]


@pytest.mark.parametrize("own", [np.array([1, 3, 4]), np.arange(3), 3, np.zeros(0, dtype=np.int64)], ids=str)
def test_a_source_numbers_its_items_as_before_in_a_larger_catalogue(own: IntArray | int) -> None:
    places = _Places(own, 6)
    known = list(range(own)) if isinstance(own, int) else own.tolist()
    place_of = {item: place for place, item in enumerate(known)}
    for one, count in ((places, 6), (places.over(9), 9)):
        items = np.arange(-1, count)
        assert one.places_of(items).tolist() == [place_of.get(item, -1) for item in items.tolist()]
        assert one.items_at(np.arange(-1, len(known))).tolist() == [-1, *known]
        histories = one.renumbered(Sequences.from_lists([list(range(count)), [0], []]))
        assert [row.tolist() for row in histories] == [list(range(len(known))), [0] * (0 in place_of), []]
        allow = np.arange(count) % 2 == 1
        held = one.constraints(Constraints(allow=allow, deny=[np.arange(count)]), 1)
        if len(known) < count:
            assert held.allow is not None
            assert held.deny is not None
            assert held.allow.tolist() == allow[known].tolist()
            assert held.deny[0].tolist() == list(range(len(known)))
    if known == [1, 3, 4]:
        assert places.over(9)._index is places._index, "to make one for ten million items takes a while"
