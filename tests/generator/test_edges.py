"""What a search does at the edges: tiny catalogues, wide beams, nothing permitted, odd histories, a catalogue swap."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from scored_catalogue import exact_order, score_catalogue
from table_model import TableModel

from recsys.data.sequences import Sequences
from recsys.generator.constraints import Constraints
from recsys.generator.decoder import beam_search
from recsys.generator.trie import ItemTrie

SHAPES = ["nested", "flat", "any_order"]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("exact", [False, True])
def test_a_catalogue_of_one_item(make_recommender, shape: str, exact: bool) -> None:
    recommender = make_recommender(shape, num_items=1, sizes=(1, 1))
    found = recommender.recommend(Sequences.from_lists([[], [0, 0]]), 3, exact=exact)
    assert found.items.tolist() == [[0, -1, -1]] * 2
    assert found.scores[:, 0] == pytest.approx(0.0, abs=1e-6)
    assert found.certified is not None
    assert found.certified.all()
    assert found.short == ["small_catalogue"] * 2
    drawn = recommender.sample(Sequences.from_lists([[]]), 2, seeds=np.array([1]))
    assert drawn.items.tolist() == [[0, -1]]
    assert drawn.log_propensities.tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("shape", SHAPES)
def test_beams_beyond_the_legal_children_and_k_beyond_the_catalogue(make_recommender, shape: str) -> None:
    recommender = make_recommender(shape, num_items=9, sizes=(3, 2, 2))
    found = recommender.recommend(Sequences.from_lists([[1]]), 12, beams=1000, exact=True)
    scores = score_catalogue(recommender, np.array([1]))
    assert found.items[0].tolist() == [*exact_order(recommender, scores).tolist(), -1, -1, -1]
    assert found.short == ["small_catalogue"]
    assert found.certified is not None
    assert found.certified.all()


@pytest.mark.parametrize("shape", SHAPES)
def test_chains_of_single_children_cost_nothing(make_recommender, shape: str) -> None:
    # The first code tells all items apart: what follows is certain, at whatever depth.
    recommender = make_recommender(shape, num_items=6, sizes=(6, 1, 1, 1))
    found = recommender.recommend(Sequences.from_lists([[2]]), 6)
    scores = score_catalogue(recommender, np.array([2]))
    np.testing.assert_array_equal(found.items[0], exact_order(recommender, scores))
    np.testing.assert_allclose(np.exp(found.scores.astype(np.float64)).sum(), 1.0, atol=1e-5)


def test_chains_beside_branches_are_ranked_with_them() -> None:
    # Item 0 ends its chain after the first code, the others share a first code and differ in the last.
    codes = np.array([[1, 0, 0], [0, 0, 0], [0, 0, 1], [0, 0, 2]])
    found = beam_search(
        TableModel([[1.0, 1.0], [0.0], [2.0, 0.0, 1.0]]),
        ItemTrie(codes, (2, 1, 3)),
        None,
        batch_size=1,
        k=4,
        beams=4,
        constraints=Constraints(),
    )
    assert found.items.tolist() == [[0, 1, 3, 2]]
    last = torch.tensor([2.0, 0.0, 1.0]).log_softmax(0)
    expected = torch.tensor([[0.5, 0.5, 0.5, 0.5]]).log() + torch.tensor([[0.0, last[0], last[2], last[1]]])
    torch.testing.assert_close(found.scores, expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("exact", [False, True])
def test_a_request_that_is_permitted_too_little_gets_a_reason(make_recommender, shape: str, exact: bool) -> None:
    recommender = make_recommender(shape, num_items=300)
    allow = np.ones((4, 300), dtype=bool)
    allow[0] = False
    allow[1, 4:] = False
    deny = [np.array([], dtype=np.int64), np.array([0, 0]), np.arange(300), np.arange(10)]
    found = recommender.recommend(
        Sequences.from_lists([[], [1], [2], [3]]), 5, exact=exact, constraints=Constraints(allow=allow, deny=deny)
    )
    assert found.short == ["nothing_permitted", "few_permitted", "nothing_permitted", None]
    assert (found.items >= 0).sum(axis=1).tolist() == [0, 3, 0, 5]
    assert np.isneginf(found.scores[0]).all()
    assert found.certified is not None
    assert found.certified[:3].all()
    if exact:
        assert found.certified.all()
    drawn = recommender.sample(
        Sequences.from_lists([[], [1]]), 5, seeds=np.arange(2), constraints=Constraints(deny=[np.arange(300)] * 2)
    )
    assert (drawn.items == -1).all()
    assert drawn.short == ["nothing_permitted"] * 2


@pytest.mark.parametrize("shape", SHAPES)
def test_a_long_history_is_read_at_its_end(make_recommender, shape: str) -> None:
    recommender = make_recommender(shape, num_items=300, max_history=10)
    long = np.random.default_rng(0).integers(300, size=10_000)
    found = recommender.recommend(Sequences.from_lists([long, long[-10:], []]), 5)
    np.testing.assert_array_equal(found.items[0], found.items[1])


@pytest.mark.parametrize("shape", SHAPES)
def test_a_history_of_items_that_the_model_never_saw(make_recommender, shape: str) -> None:
    recommender = make_recommender(shape, num_items=300)
    # The first 280 items are known, the others joined.
    half = recommender.with_catalog(recommender.codes[:280], recommender.item_vectors[:280], _known(300, 280))
    grown = half.with_catalog(recommender.codes, recommender.item_vectors, np.arange(280))
    found = grown.recommend(Sequences.from_lists([[290, 299, 281], []]), 5, exact=True)
    assert (found.items >= 0).all()
    assert found.certified is not None
    assert found.certified.all()
    for row, history in enumerate([[290, 299, 281], []]):
        scores = score_catalogue(grown, np.array(history, dtype=np.int64))
        np.testing.assert_array_equal(found.items[row], exact_order(grown, scores)[:5])


def test_no_histories_give_no_lists(make_recommender) -> None:
    found = make_recommender().recommend(Sequences.from_lists([]), 5, exact=True)
    assert found.items.shape == (0, 5)
    assert found.certified_share is None


@pytest.mark.parametrize("shape", SHAPES)
def test_requests_during_a_swap_get_wholly_old_or_wholly_new_answers(make_recommender, shape: str) -> None:
    old = make_recommender(shape, num_items=300)
    histories = Sequences.from_lists([[1, 2], [3]])
    # The new catalogue has lost its best answers, so that the two never agree.
    gone = np.unique(old.recommend(histories, 5).items)
    known = np.full(300, -1)
    known[np.setdiff1d(np.arange(300), gone)] = np.arange(300 - len(gone))
    keep = known >= 0
    current, started, answers = [old], threading.Event(), []

    def swap() -> None:
        started.wait()
        current[0] = old.with_catalog(old.codes[keep], old.item_vectors[keep], known)

    def request(number: int) -> None:
        if number == 10:
            started.set()
        recommender = current[0]
        answers.append((recommender, recommender.recommend(histories, 5, exact=number % 2 == 0).items))

    swapper = threading.Thread(target=swap)
    swapper.start()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(request, range(40)))
    swapper.join()
    request(0)
    new = current[0]
    expected = {
        id(old): old.recommend(histories, 5, exact=True).items,
        id(new): new.recommend(histories, 5, exact=True).items,
    }
    plain = {id(old): old.recommend(histories, 5).items, id(new): new.recommend(histories, 5).items}
    assert {id(recommender) for recommender, _ in answers} == {id(old), id(new)}
    for recommender, items in answers:
        options = (expected[id(recommender)].tolist(), plain[id(recommender)].tolist())
        assert items.tolist() in options
    assert old.recommend(histories, 5).items.tolist() == plain[id(old)].tolist()


def _known(num_items: int, kept: int) -> np.ndarray:
    known = np.full(num_items, -1)
    known[:kept] = np.arange(kept)
    return known
