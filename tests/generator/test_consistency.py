"""Pruning of paths whose codes disagree: scores by hand, lists stay full, and what shuffled categories destroy."""

from __future__ import annotations

import numpy as np
import pytest

from recsys.data.sequences import Sequences
from recsys.generator.consistency import Consistency
from recsys.generator.constraints import Constraints
from recsys.generator.groups import Groups
from recsys.generator.set_trie import SetTrie
from recsys.generator.trie import ItemTrie

SHAPES = ["nested", "flat", "any_order"]
HISTORIES = Sequences.from_lists([[3, 17, 256], [], [299]])


def test_scores_of_a_set_are_what_its_pairs_of_tokens_share() -> None:
    codes = np.array([[0, 0, 0], [0, 1, 0], [1, 1, 1], [1, 0, 1]])
    categories = Groups.from_labels([["a"], ["a"], ["b"], ["b"]])
    consistency = Consistency.build(SetTrie(codes, (2, 2, 2)), categories)
    assert consistency.of_pairs is not None
    # First and third codebook tell the categories apart, the second one does not.
    expected = [[1, 0, 0.5, 0.5, 1, 0], [0, 1, 0.5, 0.5, 0, 1], [0.5] * 2 + [1, 1] + [0.5] * 2]
    np.testing.assert_allclose(consistency.of_pairs[:3], expected)
    np.testing.assert_allclose(consistency.of_items(SetTrie(codes, (2, 2, 2))), [0.5] * 4)


def test_scores_of_a_prefix_compare_it_with_the_code_that_follows() -> None:
    codes = np.array([[0, 0], [0, 1], [1, 1], [1, 2]])
    trie = ItemTrie(codes, (2, 3))
    consistency = Consistency.build(trie, Groups.from_labels([["a"], ["a"], ["b"], ["b"]]))
    assert consistency.of_nodes is not None
    # Code 1 of the second level is of both categories, the others are of their prefix's.
    assert [table.tolist() for table in consistency.of_nodes] == [[1.0, 1.0], [1.0, 0.5, 0.5, 1.0]]
    assert consistency.of_items(trie).tolist() == [1.0, 0.5, 0.5, 1.0]


def random_categories(num_items: int) -> Groups:
    rng = np.random.default_rng(4)
    return Groups.from_labels([[int(rng.integers(6))] for _ in range(num_items)])


@pytest.mark.parametrize("shape", SHAPES)
def test_a_threshold_of_nothing_changes_nothing(make_recommender, shape: str) -> None:
    recommender = make_recommender(shape, num_items=300)
    off = Consistency.build(recommender.trie, random_categories(300), threshold=0.0)
    free, held = recommender.recommend(HISTORIES, 10), recommender.recommend(HISTORIES, 10, consistency=off)
    np.testing.assert_array_equal(free.items, held.items)
    np.testing.assert_array_equal(free.scores, held.scores)
    np.testing.assert_array_equal(free.certified, held.certified)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("threshold", [0.6, 2.0])
def test_lists_stay_full_and_permitted_whatever_is_given_up(make_recommender, shape: str, threshold: float) -> None:
    recommender = make_recommender(shape, num_items=300)
    strict = Consistency.build(recommender.trie, random_categories(300), threshold=threshold)
    constraints = Constraints(deny=[np.arange(0, 300, 2)] * 3)
    found = recommender.recommend(HISTORIES, 10, beams=10, constraints=constraints, consistency=strict)
    assert (found.items % 2 == 1).all()
    for row in found.items:
        assert len(set(row.tolist())) == 10
    assert found.certified is not None
    assert not found.certified.all()
    exact = recommender.recommend(HISTORIES, 10, constraints=constraints, exact=True)
    np.testing.assert_array_equal(found.items[found.certified], exact.items[found.certified])
    if threshold > 1:
        # Everything is doubtful: the k best prefixes stay, which is a beam of k.
        plain = recommender.recommend(HISTORIES, 10, beams=10, constraints=constraints)
        np.testing.assert_array_equal(found.items, plain.items)


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_left_is_the_best_of_the_consistent_items(make_recommender, shape: str) -> None:
    recommender = make_recommender(shape, num_items=300)
    built = Consistency.build(recommender.trie, random_categories(300))
    scores = built.of_items(recommender.trie)
    half = built.calibrated(recommender.trie, np.arange(300), keep=0.5)
    sound = np.flatnonzero(scores >= half.threshold)
    assert 120 < len(sound) < 300
    found = recommender.recommend(HISTORIES, 10, beams=300, consistency=half)
    kept = np.isin(found.items, sound)
    if shape == "any_order":
        # Scores of items are the worst over all orders: a path in its own order may be better.
        assert kept.mean() > 0.5
        return
    assert kept.all()
    allow = np.isin(np.arange(300), sound)
    expected = recommender.recommend(HISTORIES, 10, beams=300, constraints=Constraints(allow=allow))
    np.testing.assert_array_equal(found.items, expected.items)


@pytest.mark.parametrize("shape", SHAPES)
def test_calibration_keeps_the_share_of_true_paths(make_recommender, shape: str) -> None:
    trie = make_recommender(shape, num_items=300).trie
    built = Consistency.build(trie, random_categories(300))
    true = np.random.default_rng(0).integers(300, size=1000)
    for keep in (0.98, 0.6, 1.0):
        calibrated = built.calibrated(trie, true, keep)
        scores = built.of_items(trie)[true]
        assert (scores >= calibrated.threshold).mean() >= keep
        # No higher threshold would do.
        above = np.nextafter(np.float32(calibrated.threshold), np.float32(2))
        assert (scores >= above).mean() < keep


@pytest.mark.parametrize("is_set", [False, True])
def test_shuffled_categories_destroy_what_consistency_tells(is_set: bool) -> None:
    """Codes of a category's own range make sound items; one code of another range makes an odd one."""
    rng = np.random.default_rng(0)
    category = rng.integers(8, size=4000)
    codes = 4 * category[:, None] + rng.integers(4, size=(4000, 4))
    odd = rng.random(4000) < 0.05
    codes[odd, 2] = rng.integers(32, size=odd.sum())
    _, first = np.unique(codes, axis=0, return_index=True)
    codes, category, odd = codes[first], category[first], odd[first]
    odd &= codes[:, 2] // 4 != category
    trie = (SetTrie if is_set else ItemTrie)(codes, (32,) * 4)

    def caught(labels: np.ndarray) -> float:
        """Share of odd items given up at a threshold that keeps 98 % of the sound ones."""
        built = Consistency.build(trie, Groups.from_labels(labels[:, None].tolist()))
        calibrated = built.calibrated(trie, np.flatnonzero(~odd), keep=0.98)
        scores = built.of_items(trie)
        assert (scores[~odd] >= calibrated.threshold).mean() >= 0.98
        return float((scores[odd] < calibrated.threshold).mean())

    assert caught(category) > 0.8
    assert caught(rng.permutation(category)) < 0.4


def test_exact_lists_and_pruning_exclude_each_other(make_recommender) -> None:
    recommender = make_recommender()
    consistency = Consistency.build(recommender.trie, random_categories(500))
    with pytest.raises(ValueError, match="ask for one of them"):
        recommender.recommend(HISTORIES, 5, exact=True, consistency=consistency)
    with pytest.raises(ValueError, match="categories must be of 500 items, got 3"):
        Consistency.build(recommender.trie, random_categories(3))
    with pytest.raises(ValueError, match="keep=0"):
        consistency.calibrated(recommender.trie, np.array([1]), keep=0)
