"""The decoder against its exact twin: scoring every item through the training path, one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scored_catalogue import score_catalogue

from recsys.data.sequences import Sequences
from recsys.generator.constraints import Constraints
from recsys.generator.decoder import select_best

HISTORIES = Sequences.from_lists([[3, 17, 256], [], [499], [1, 2, 3, 4, 5, 6, 7, 8, 9]])
MODELS = [("nested", "gpt2"), ("nested", "llama"), ("flat", "gpt2"), ("flat", "llama")]


@pytest.mark.parametrize(("shape", "body"), MODELS)
def test_a_wide_beam_equals_scoring_the_whole_catalogue(make_recommender, shape: str, body: str) -> None:
    recommender = make_recommender(shape, body=body)
    found = recommender.recommend(HISTORIES, k=500)
    for row, history in enumerate(HISTORIES):
        exact = score_catalogue(recommender, history)
        assert sorted(found.items[row]) == list(range(500))
        np.testing.assert_allclose(found.scores[row], exact[found.items[row]], atol=1e-4)
        np.testing.assert_allclose(found.scores[row], np.sort(exact)[::-1], atol=1e-4)


@pytest.mark.parametrize(("shape", "body"), MODELS)
def test_probabilities_of_all_items_sum_to_one(make_recommender, shape: str, body: str) -> None:
    found = make_recommender(shape, body=body).recommend(HISTORIES, k=500)
    np.testing.assert_allclose(np.exp(found.scores.astype(np.float64)).sum(axis=1), 1.0, atol=1e-4)


@pytest.mark.parametrize("shape", ["nested", "flat"])
def test_a_batch_gives_what_its_requests_give_alone(make_recommender, shape: str) -> None:
    recommender = make_recommender(shape)
    rng = np.random.default_rng(0)
    histories = [rng.integers(0, 500, size=size) for size in (0, 1, 4, 10, 25, 2, 10)]
    deny = [history[:3] for history in histories]
    together = recommender.recommend(
        Sequences.from_lists(histories), k=20, beams=20, constraints=Constraints(deny=deny), batch_size=4
    )
    for row, history in enumerate(histories):
        alone = recommender.recommend(
            Sequences.from_lists([history]), k=20, beams=20, constraints=Constraints(deny=deny[row : row + 1])
        )
        np.testing.assert_array_equal(together.items[row], alone.items[0])
        np.testing.assert_allclose(together.scores[row], alone.scores[0], atol=1e-5)


@pytest.mark.parametrize("shape", ["nested", "flat"])
def test_constraints_mask_without_changing_order_or_scores(make_recommender, shape: str) -> None:
    recommender = make_recommender(shape)
    free = recommender.recommend(HISTORIES, k=500)
    allow = np.random.default_rng(5).random((len(HISTORIES), 500)) < 0.1
    deny = [np.flatnonzero(row)[:4] for row in allow]
    held = recommender.recommend(HISTORIES, k=30, beams=500, constraints=Constraints(allow=allow, deny=deny))
    for row in range(len(HISTORIES)):
        permitted = allow[row].copy()
        permitted[deny[row]] = False
        keep = permitted[free.items[row]]
        expected = free.items[row][keep][:30]
        np.testing.assert_array_equal(held.items[row][: len(expected)], expected)
        np.testing.assert_allclose(held.scores[row][: len(expected)], free.scores[row][keep][:30], atol=1e-5)


def test_lists_are_full_unique_and_permitted_even_with_one_beam(make_recommender) -> None:
    recommender = make_recommender()
    denied = [np.arange(0, 500, 2)] * len(HISTORIES)
    found = recommender.recommend(HISTORIES, k=10, beams=1, constraints=Constraints(deny=denied))
    for row in found.items:
        assert len(set(row.tolist())) == 10
        assert (row % 2 == 1).all()


def test_a_list_ends_when_no_permitted_item_is_left(make_recommender) -> None:
    recommender = make_recommender(num_items=5, sizes=(2, 4))
    found = recommender.recommend(
        Sequences.from_lists([[0], [1]]), k=7, constraints=Constraints(deny=[[0, 1], range(5)])
    )
    assert set(found.items[0][:3]) == {2, 3, 4}
    assert found.items[0][3:].tolist() == [-1] * 4
    assert found.items[1].tolist() == [-1] * 7
    assert np.isneginf(found.scores[1]).all()


def test_a_catalogue_of_one_item_is_certain(make_recommender) -> None:
    found = make_recommender(num_items=1, sizes=(1, 1)).recommend(Sequences.from_lists([[]]), k=3)
    assert found.items.tolist() == [[0, -1, -1]]
    assert found.scores[0, 0] == pytest.approx(0.0, abs=1e-6)


def test_equal_scores_are_ordered_by_semantic_id(make_recommender) -> None:
    recommender = make_recommender(num_items=64, sizes=(4, 4, 4))
    with torch.no_grad():
        for parameter in recommender.model.parameters():
            parameter.zero_()
    found = recommender.recommend(Sequences.from_lists([[], [5]]), k=20, beams=20)
    by_sid = np.lexsort(recommender.codes.T[::-1])[:20]
    np.testing.assert_array_equal(found.items, np.stack([by_sid, by_sid]))


def test_select_best_takes_the_first_of_equals() -> None:
    scores = torch.tensor([[1.0, 3.0, 1.0, 1.0], [-torch.inf, -torch.inf, 2.0, -torch.inf]])
    best, cut = select_best(scores, 3)
    assert best.tolist() == [[0, 1, 2], [0, 1, 2]]
    assert cut is not None
    assert cut.tolist() == [3, 3]


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.sampled_from([-np.inf, -2.5, -1.0, -0.0, 0.0, 1e-38, 3.0]), min_size=1, max_size=12),
    st.data(),
)
def test_select_best_is_a_stable_sort(values: list[float], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(values)))
    order = data.draw(st.permutations(range(len(values))))
    for places in (list(range(len(values))), order):
        expected = sorted(range(len(values)), key=lambda index: (-values[index], places[index]))
        best, cut = select_best(torch.tensor([values], dtype=torch.float32), count, torch.tensor([places]))
        assert best.tolist() == [sorted(expected[:count])]
        assert (cut is None) == (count == len(values))
        if cut is not None:
            assert cut.tolist() == [expected[count]]


def test_an_item_outside_the_catalogue_is_refused(make_recommender) -> None:
    with pytest.raises(ValueError, match=r"0\.\.499"):
        make_recommender().recommend(Sequences.from_lists([[500]]), k=1)
