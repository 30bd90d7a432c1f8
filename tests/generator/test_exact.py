"""Certificates and exact lists against scoring the whole catalogue."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scored_catalogue import exact_order, score_catalogue
from table_model import TableModel

from recsys.data.sequences import Sequences
from recsys.generator.constraints import Constraints
from recsys.generator.decoder import Found, beam_search
from recsys.generator.exact import widen
from recsys.generator.set_trie import SetTrie
from recsys.generator.trie import ItemTrie

HISTORIES = Sequences.from_lists([[3, 17, 256], [], [299], [1, 2, 3, 4, 5, 6, 7, 8, 9]])
SHAPES = ["nested", "flat", "any_order"]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["free", "allow", "deny"])
def test_exact_lists_are_those_of_the_whole_catalogue(make_recommender, shape: str, kind: str) -> None:
    recommender = make_recommender(shape, num_items=300)
    rng = np.random.default_rng(7)
    permitted = np.ones((4, 300), dtype=bool)
    constraints = Constraints()
    if kind == "allow":
        permitted = rng.random((4, 300)) < 0.2
        constraints = Constraints(allow=permitted)
    if kind == "deny":
        denied = [rng.integers(300, size=60) for _ in range(4)]
        constraints = Constraints(deny=denied)
        for row, items in enumerate(denied):
            permitted[row, items] = False
    found = recommender.recommend(HISTORIES, k=10, beams=10, exact=True, constraints=constraints)
    narrow = recommender.recommend(HISTORIES, k=10, beams=10, constraints=constraints)
    assert found.certified is not None
    assert narrow.certified is not None
    assert found.certified.all()
    assert found.certified_share == 1.0
    for row, history in enumerate(HISTORIES):
        scores = score_catalogue(recommender, history)
        order = exact_order(recommender, scores)
        expected = order[permitted[row][order]][:10]
        np.testing.assert_array_equal(found.items[row], expected)
        np.testing.assert_allclose(found.scores[row], scores[expected], atol=1e-4)
        if narrow.certified[row]:
            np.testing.assert_array_equal(narrow.items[row], expected)


def test_a_narrow_beam_knows_that_it_may_have_missed_something(make_recommender) -> None:
    recommender = make_recommender("nested", num_items=300)
    histories = Sequences.from_lists([[item] for item in range(60)])
    narrow = recommender.recommend(histories, k=2, beams=4)
    wide = recommender.recommend(histories, k=2, beams=300)
    assert narrow.certified is not None
    assert wide.certified is not None
    assert wide.certified.all()
    differs = (narrow.items != wide.items).any(axis=1)
    assert differs.any()
    assert not narrow.certified[differs].any()
    assert narrow.certified.any()
    assert narrow.bound is not None
    np.testing.assert_array_equal(narrow.certified, narrow.scores[:, -1] > narrow.bound)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_spent_budget_gives_the_best_that_is_known(make_recommender, shape: str) -> None:
    recommender = make_recommender(shape, num_items=300)
    histories = Sequences.from_lists([[item] for item in range(20)])
    narrow = recommender.recommend(histories, k=5, beams=5)
    some = recommender.recommend(histories, k=5, beams=5, exact=True, max_beams=8)
    full = recommender.recommend(histories, k=5, beams=5, exact=True)
    assert some.certified is not None
    assert not some.certified.all()
    assert (some.items >= 0).all()
    assert (some.scores >= narrow.scores - 1e-5).all()
    assert (full.scores >= some.scores - 1e-5).all()
    np.testing.assert_array_equal(some.items[some.certified], full.items[some.certified])
    for row in some.items:
        assert len(set(row.tolist())) == 5


@pytest.mark.parametrize("shape", SHAPES)
def test_an_exact_search_reads_no_history_twice(make_recommender, shape: str, monkeypatch) -> None:
    recommender = make_recommender(shape, num_items=300)
    model, calls = recommender.model, []
    encode = model.encode
    monkeypatch.setattr(model, "encode", lambda *batch: (calls.append(len(batch[1])), encode(*batch))[1])
    found = recommender.recommend(HISTORIES, k=10, beams=10, exact=True)
    assert found.certified is not None
    assert found.certified.all()
    assert calls == [4]


@pytest.mark.parametrize("shape", SHAPES)
def test_an_exact_list_does_not_depend_on_the_batch(make_recommender, shape: str) -> None:
    recommender = make_recommender(shape, num_items=300)
    together = recommender.recommend(HISTORIES, k=10, beams=10, exact=True)
    sessions = recommender.recommend(HISTORIES, k=10, beams=10, exact=True, sessions=list("abcd"))
    for row, history in enumerate(HISTORIES):
        alone = recommender.recommend(Sequences.from_lists([history]), k=10, beams=30, exact=True)
        np.testing.assert_array_equal(together.items[row], alone.items[0])
        np.testing.assert_array_equal(together.items[row], sessions.items[row])


def exactly(model: TableModel, trie: ItemTrie | SetTrie, k: int, beams: int, constraints: Constraints) -> Found:
    def search(rows: torch.Tensor, width: int, floor: torch.Tensor | None) -> Found:
        held = constraints.select(rows.numpy())
        return beam_search(model, trie, None, batch_size=len(rows), k=k, beams=width, constraints=held, floor=floor)

    first = search(torch.arange(1), beams, None)
    return widen(search, first, beams=max(beams, k), max_beams=1000, at_a_time=1)


@st.composite
def tied_catalogues(draw: st.DrawFn) -> tuple[np.ndarray, tuple[int, ...], list[list[float]]]:
    sizes = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    rows = draw(st.sets(st.tuples(*(st.integers(0, size - 1) for size in sizes)), min_size=1, max_size=40).map(sorted))
    tables = [draw(st.lists(st.sampled_from([0.0, 1.0, 3.0]), min_size=size, max_size=size)) for size in sizes]
    codes = np.array(draw(st.permutations(rows)), dtype=np.int64).reshape(len(rows), len(sizes))
    return codes, sizes, tables


@settings(deadline=None, max_examples=80)
@given(tied_catalogues(), st.integers(1, 6), st.integers(1, 6), st.booleans(), st.integers(0, 2**16))
def test_ties_of_integer_logits_are_ordered_by_semantic_id(
    case: tuple[np.ndarray, tuple[int, ...], list[list[float]]], k: int, beams: int, is_set: bool, seed: int
) -> None:
    codes, sizes, tables = case
    model, trie = TableModel(tables), (SetTrie if is_set else ItemTrie)(codes, sizes)
    allow = np.random.default_rng(seed).random(len(codes)) < 0.8
    constraints = Constraints(allow=allow)
    arguments = {"batch_size": 1, "constraints": constraints}
    everything = beam_search(model, trie, None, k=len(codes), beams=10**4, **arguments)
    assert everything.certified.all()
    items = everything.items[0][everything.items[0] >= 0].numpy()
    assert sorted(items.tolist()) == np.flatnonzero(allow).tolist()
    scores = np.full(len(codes), -np.inf)
    scores[items] = everything.scores[0][: len(items)].numpy()
    by_sid = np.lexsort(codes.T[::-1])
    expected = by_sid[np.argsort(-scores[by_sid], kind="stable")][: min(k, len(items))]
    expected = np.append(expected, [-1] * (k - len(expected)))
    found = exactly(model, trie, k, beams, constraints)
    assert found.certified.all()
    assert found.items[0].tolist() == expected.tolist()
    narrow = beam_search(model, trie, None, k=k, beams=beams, **arguments)
    if narrow.certified.all():
        assert narrow.items[0].tolist() == expected.tolist()


def test_a_tie_with_what_was_given_up_is_certain_only_where_the_order_is_known() -> None:
    codes = np.stack([np.arange(16), np.arange(16)], axis=1)
    model = TableModel([[0.0] * 16] * 2)
    arguments = {"batch_size": 1, "k": 3, "beams": 3, "constraints": Constraints()}
    found = beam_search(model, ItemTrie(codes, (16, 16)), None, **arguments)
    # All items tie, and the last step is certain: prefixes that come later in the order of codes hold later items.
    assert found.items.tolist() == [[0, 1, 2]]
    assert found.certified.all()
    sets = beam_search(model, SetTrie(codes, (16, 16)), None, **arguments)
    assert not sets.certified.any()


def test_an_earlier_prefix_that_ties_at_its_only_leaf_is_not_overlooked() -> None:
    # Item 0 is a chain of certain steps after 0.25. The beam keeps the better prefix 1, whose items tie with it.
    codes = np.array([[0, 0], [1, 0], [1, 1], [2, 0]])
    model = TableModel([[0.0, 0.6931471805599453, 0.0], [0.0, 0.0]])
    narrow = beam_search(model, ItemTrie(codes, (3, 2)), None, batch_size=1, k=1, beams=1, constraints=Constraints())
    assert narrow.scores[0, 0] == narrow.bound[0]
    assert narrow.items.tolist() == [[1]]
    assert not narrow.certified.any()
    assert exactly(model, ItemTrie(codes, (3, 2)), 1, 1, Constraints()).items.tolist() == [[0]]
