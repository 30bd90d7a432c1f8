"""Caps against their exact twin: walking the fully scored catalogue and skipping items of full groups."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scored_catalogue import exact_order, score_catalogue

from recsys.data.sequences import Sequences
from recsys.generator.constraints import Cap, Constraints
from recsys.generator.diversity import walk_in_order, walk_one
from recsys.generator.groups import Groups

HISTORIES = Sequences.from_lists([[3, 17, 256], [], [299]])


def greedy(order: np.ndarray, caps: list[Cap], k: int) -> list[int]:
    """The definition, item by item."""
    counts = [Counter() for _ in caps]
    taken = []
    for cap, count in zip(caps, counts, strict=True):
        count.update(cap.groups.of(cap.given).ravel().tolist())
    for item in order.tolist():
        groups = [[int(g) for g in cap.groups.of(np.array([item]))[0] if g >= 0] for cap in caps]
        if all(count[g] < cap.most for count, cap, mine in zip(counts, caps, groups, strict=True) for g in mine):
            taken.append(item)
            for count, mine in zip(counts, groups, strict=True):
                count.update(mine)
        if len(taken) == k:
            break
    return taken


def ragged(num_items: int, num_groups: int, seed: int) -> Groups:
    rng = np.random.default_rng(seed)
    return Groups.from_labels(rng.choice(num_groups, size=rng.integers(0, 4)).tolist() for _ in range(num_items))


@pytest.mark.parametrize("shape", ["nested", "flat", "any_order"])
@pytest.mark.parametrize("kind", ["prefix", "categories", "both", "one group", "deny too", "given"])
def test_capped_lists_are_a_walk_over_the_whole_catalogue(make_recommender, shape: str, kind: str) -> None:
    recommender = make_recommender(shape, num_items=300)
    prefix = Cap(groups=Groups.from_prefixes(recommender.codes, 1), most=1)
    categories = Cap(groups=ragged(300, 12, seed=3), most=2)
    dominating = Cap(groups=Groups.from_labels([0] if item % 20 else [1] for item in range(300)), most=2)
    given_too = Cap(groups=categories.groups, most=2, given=np.array([5, 40, 41, 100]))
    caps = {"prefix": [prefix], "categories": [categories], "both": [prefix, categories], "one group": [dominating]}
    caps["given"] = [prefix, given_too]
    used = caps.get(kind, [categories])
    deny = [np.arange(row, 300, 3) for row in range(3)] if kind == "deny too" else None
    found = recommender.recommend(HISTORIES, 10, beams=10, exact=True, constraints=Constraints(deny=deny, caps=used))
    quick = recommender.recommend(HISTORIES, 10, beams=10, constraints=Constraints(deny=deny, caps=used))
    assert found.certified is not None
    assert found.certified.all()
    for row, history in enumerate(HISTORIES):
        order = exact_order(recommender, score_catalogue(recommender, history))
        if deny is not None:
            order = order[~np.isin(order, deny[row])]
        expected = greedy(order, used, 10)
        assert found.items[row][found.items[row] >= 0].tolist() == expected
        # Without a certificate the list is as long, and keeps the caps.
        listed = quick.items[row][quick.items[row] >= 0]
        assert len(listed) == len(expected)
        assert greedy(listed, used, 10) == listed.tolist()
        assert (np.diff(quick.scores[row][: len(listed)]) <= 0).all()


def test_a_list_that_caps_keep_short_says_so(make_recommender) -> None:
    recommender = make_recommender(num_items=300)
    cap = Cap(groups=Groups.from_labels([item % 3] for item in range(300)), most=2)
    found = recommender.recommend(HISTORIES, 10, constraints=Constraints(caps=[cap]))
    assert ((found.items >= 0).sum(axis=1) == 6).all()
    assert found.short == ["caps"] * 3


def test_a_cap_that_never_fills_changes_nothing(make_recommender) -> None:
    recommender = make_recommender(num_items=300)
    cap = Cap(groups=ragged(300, 12, seed=3), most=300)
    free = recommender.recommend(HISTORIES, 20)
    held = recommender.recommend(HISTORIES, 20, constraints=Constraints(caps=[cap]))
    np.testing.assert_array_equal(free.items, held.items)
    np.testing.assert_array_equal(free.scores, held.scores)
    np.testing.assert_array_equal(free.certified, held.certified)


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 2**16), st.integers(1, 3), st.integers(1, 12), st.integers(0, 3))
def test_walking_many_lists_at_once_is_walking_each(seed: int, most: int, k: int, num_given: int) -> None:
    rng = np.random.default_rng(seed)
    beside = rng.permutation(30)[:num_given]
    caps = [
        Cap(groups=ragged(30, 5, seed), most=most, given=beside),
        Cap(groups=ragged(30, 9, seed + 1), most=1, given=beside),
    ]
    items = np.stack([rng.permutation(30)[:15] for _ in range(3)])
    items[0, 12:] = -1
    taken = walk_in_order(items, caps, k)
    for row in range(3):
        expected = greedy(items[row][items[row] >= 0], caps, k)
        assert items[row][taken[row]].tolist() == expected
        assert walk_one(items[row][items[row] >= 0], caps, k).tolist() == expected


def test_a_walk_that_finds_too_few_does_not_look_at_each_item() -> None:
    num_items = 300_000
    caps = [Cap(groups=Groups.from_prefixes(np.arange(num_items)[:, None] % 3, 1), most=2)]
    caps[0].groups.items_of(np.array([0]))  # the inverse is made once for all lists
    started = time.process_time()
    taken = walk_one(np.arange(num_items), caps, 100)
    rows = walk_in_order(np.arange(20_000)[None], caps, 100)
    assert time.process_time() - started < 0.2
    assert taken.tolist() == np.flatnonzero(rows[0]).tolist() == [0, 1, 2, 3, 4, 5]


def test_groups_know_their_items_both_ways() -> None:
    groups = Groups.from_labels([["a", "b", "a"], [], ["b"]])
    assert groups.num_groups == 2
    assert groups.of(np.array([0, 1, 2, -1])).tolist() == [[0, 1], [-1, -1], [1, -1], [-1, -1]]
    assert groups.items_of(np.array([1])).tolist() == [0, 2]
    assert groups.histogram(np.array([0, 0, 1]), 3).tolist() == [[0.5, 0.5], [0.0, 1.0], [0.0, 0.0]]
    prefixes = Groups.from_prefixes(np.array([[1, 0], [0, 1], [1, 1]]), 1)
    assert prefixes.of(np.arange(3)).tolist() == [[1], [0], [1]]
    assert Groups.from_labels([[], []]).of(np.array([1])).shape == (1, 0)


@pytest.mark.parametrize(
    ("offsets", "ids", "message"),
    [([0, 2], [0], "offsets"), ([0, 1], [5], r"ids must lie in 0\.\.1"), ([1], [], "offsets")],
)
def test_groups_that_do_not_fit_are_refused(offsets: list[int], ids: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Groups(offsets=np.array(offsets), ids=np.array(ids, dtype=np.int64), num_groups=2)


def test_a_cap_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="most must be at least 1"):
        Cap(groups=Groups.from_labels([["a"]]), most=0)
