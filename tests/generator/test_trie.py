"""The trie against brute force over the code table."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.errors import ArtifactError
from recsys.generator.constraints import Constraints, RangeCounter
from recsys.generator.trie import ItemTrie


@st.composite
def unique_codes(draw: st.DrawFn) -> tuple[np.ndarray, tuple[int, ...]]:
    sizes = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))
    rows = draw(st.sets(st.tuples(*(st.integers(0, size - 1) for size in sizes)), min_size=1, max_size=40).map(list))
    return np.array(rows, dtype=np.int64).reshape(len(rows), len(sizes)), sizes


@settings(deadline=None, max_examples=60)
@given(unique_codes())
def test_children_are_the_distinct_continuations_of_a_prefix(
    case: tuple[np.ndarray, tuple[int, ...]],
) -> None:
    codes, sizes = case
    trie = ItemTrie(codes, sizes)
    for level in range(len(sizes)):
        for item in range(len(codes)):
            parents, slot = trie.child_slots(level, torch.tensor([item]))
            children = trie.children(level, parents)
            found = children.codes[0][children.legal[0]].tolist()
            same_prefix = (codes[:, :level] == codes[item, :level]).all(axis=1)
            assert found == sorted(set(codes[same_prefix, level].tolist()))
            assert found[int(slot)] == codes[item, level]


@settings(deadline=None, max_examples=60)
@given(unique_codes(), st.randoms(use_true_random=False))
def test_alive_equals_counting_permitted_items_below_a_node(
    case: tuple[np.ndarray, tuple[int, ...]], random: object
) -> None:
    codes, sizes = case
    trie = ItemTrie(codes, sizes)
    num_items = len(codes)
    rng = np.random.default_rng(random.getrandbits(32))  # type: ignore[attr-defined]
    allow = rng.random((2, num_items)) < 0.5
    deny = [rng.integers(0, num_items, size=rng.integers(0, 4)) for _ in range(2)]
    counter = RangeCounter(trie, Constraints(allow=allow, deny=deny), 2)
    permitted = allow.copy()
    for row, items in enumerate(deny):
        permitted[row, items] = False
    for level in range(len(sizes)):
        nodes = torch.arange(len(trie.codes[level])).expand(2, 1, -1)
        alive = counter.alive(level, nodes)
        assert alive is not None
        for row in range(2):
            for node in range(nodes.shape[-1]):
                below = (trie.paths[:, level] == node).numpy()
                assert bool(alive[row, 0, node]) == bool((permitted[row] & below).any())


def test_two_items_on_one_code_are_refused() -> None:
    with pytest.raises(ArtifactError, match="items 0 and 2 share"):
        ItemTrie(np.array([[0, 1], [1, 0], [0, 1]]), (2, 2))


def test_a_code_outside_its_codebook_is_refused() -> None:
    with pytest.raises(ArtifactError, match="item 1 has code 7 on level 1"):
        ItemTrie(np.array([[0, 1], [1, 7]]), (2, 2))
