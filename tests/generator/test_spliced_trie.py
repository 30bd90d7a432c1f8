"""A large trie with further items, which copies no table, against one that is made of all items."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from recsys.errors import ArtifactError
from recsys.generator import trie as trie_module
from recsys.generator.constraints import Constraints, RangeCounter
from recsys.generator.placement import on_device
from recsys.generator.spliced import Spliced, entries
from recsys.generator.trie import ItemTrie


@pytest.fixture(autouse=True)
def _every_trie_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trie_module, "_SPLICED_FROM", 1)


@st.composite
def growing_codes(draw: st.DrawFn) -> tuple[np.ndarray, int, tuple[int, ...]]:
    """Unique codes, how many of them are there from the start, and the sizes of the codebooks."""
    sizes = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))
    rows = draw(
        st.lists(st.tuples(*(st.integers(0, size - 1) for size in sizes)), min_size=1, max_size=40, unique=True)
    )
    return np.array(rows, dtype=np.int64), draw(st.integers(1, len(rows))), sizes


CASE = tuple[np.ndarray, int, tuple[int, ...]]


@settings(deadline=None, max_examples=300)
@given(growing_codes())
@example((np.array([[1, 1], [0, 0], [2, 2], [1, 0], [1, 2]]), 1, (3, 3)))
def test_every_table_is_that_of_a_trie_made_of_all_items(case: CASE) -> None:
    codes, count, sizes = case
    base, whole = ItemTrie(codes[:count], sizes), ItemTrie(codes, sizes)
    before = {name: entries(table).clone() for name, table in (("items", base.items), ("positions", base.positions))}
    grown = base.with_items(codes[count:])
    assert isinstance(grown.items, Spliced)
    assert entries(grown.items).tolist() == entries(whole.items).tolist()
    assert entries(grown.positions).tolist() == entries(whole.positions).tolist()
    assert grown.max_children == whole.max_children
    for level in range(len(sizes)):
        assert entries(grown.starts[level]).tolist() == entries(whole.starts[level]).tolist()
        assert entries(grown.codes[level]).tolist() == entries(whole.codes[level]).tolist()
        assert entries(grown.first_child[level]).tolist() == entries(whole.first_child[level]).tolist()
        assert grown.paths[:, level].tolist() == whole.paths[:, level].tolist()
    mask = torch.rand(2, len(codes)) < 0.5
    assert torch.equal(grown.in_order(mask), whole.in_order(mask))
    assert entries(base.items).tolist() == before["items"].tolist()
    assert entries(base.positions).tolist() == before["positions"].tolist()


@settings(deadline=None, max_examples=60)
@given(growing_codes(), st.data())
def test_one_that_has_grown_grows_on_from_where_it_began(case: CASE, data: st.DataObject) -> None:
    codes, count, sizes = case
    middle = data.draw(st.integers(count, len(codes)))
    grown = ItemTrie(codes[:count], sizes).with_items(codes[count:middle]).with_items(codes[middle:])
    assert entries(grown.items).tolist() == entries(ItemTrie(codes, sizes).items).tolist()


@settings(deadline=None, max_examples=60)
@given(growing_codes())
def test_nodes_name_those_of_the_smaller_trie(case: CASE) -> None:
    codes, count, sizes = case
    base = ItemTrie(codes[:count], sizes)
    grown, whole = base.with_items(codes[count:]), ItemTrie(codes, sizes)
    for found, expected in zip(grown.nodes_in(base), whole.nodes_in(base), strict=True):
        assert entries(found).tolist() == entries(expected).tolist()


@settings(deadline=None, max_examples=60)
@given(growing_codes(), st.data())
def test_permitted_items_are_counted_below_each_prefix(case: CASE, data: st.DataObject) -> None:
    codes, count, sizes = case
    allow = np.array(data.draw(st.lists(st.booleans(), min_size=len(codes), max_size=len(codes))))
    deny = [np.array(data.draw(st.lists(st.integers(0, len(codes) - 1), max_size=4)), dtype=np.int64) for _ in range(2)]
    permitted = np.stack([allow, allow])
    for row, items in enumerate(deny):
        permitted[row, items] = False
    grown = ItemTrie(codes[:count], sizes).with_items(codes[count:])
    for mask in (allow, allow[None], np.stack([allow, allow])):
        counter = RangeCounter(grown, Constraints(allow=mask, deny=deny), 2)
        for level in range(len(sizes)):
            prefixes, owner = np.unique(codes[:, : level + 1], axis=0, return_inverse=True)
            nodes = torch.arange(len(prefixes)).repeat(2, 1, 1)
            found = counter.counts(level, nodes)
            assert found is not None
            expected = [np.bincount(owner.ravel(), weights=row, minlength=len(prefixes)).tolist() for row in permitted]
            assert found[:, 0].tolist() == expected


@pytest.mark.parametrize("further", [[[0, 1]], [[1, 1], [1, 1]]], ids=["with an old item", "among the new ones"])
def test_a_code_that_two_items_share_is_refused(further: list[list[int]]) -> None:
    codes = np.array([[0, 0], [0, 1], [2, 1], *further])
    with pytest.raises(ArtifactError, match=r"items \d and \d share \["):
        ItemTrie(codes[:3], (3, 2)).with_items(codes[3:])


def test_nothing_of_the_trie_below_is_copied() -> None:
    codes = np.stack(np.divmod(np.random.default_rng(0).permutation(10_000), 100), axis=1)
    base = ItemTrie(codes[:-2], (100, 100))
    grown = base.with_items(codes[-2:])
    pairs = [(grown.items, base.items), (grown.positions, base.positions)]
    for name in ("starts", "codes", "first_child"):
        pairs += zip(getattr(grown, name), getattr(base, name), strict=True)
    pairs += [(column, base.paths[:, level]) for level, column in enumerate(grown.paths.columns)]
    for table, below in pairs:
        assert table.base.data_ptr() == below.data_ptr()
        assert table.nbytes < 100
    with pytest.raises(ValueError, match="stays on the CPU"):
        on_device(grown, torch.device("meta"))
