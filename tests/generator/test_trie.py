"""The trie against brute force over the code table."""

from __future__ import annotations

import tempfile
from pathlib import Path

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


@settings(deadline=None, max_examples=60)
@given(unique_codes())
def test_codes_too_wide_for_one_integer_make_the_same_trie(case: tuple[np.ndarray, tuple[int, ...]]) -> None:
    codes, sizes = case
    packed, columns = ItemTrie(codes, sizes), ItemTrie(codes, [2**40] * len(sizes))
    assert packed.items.tolist() == np.lexsort(codes.T[::-1]).tolist() == columns.items.tolist()
    assert packed.paths.tolist() == columns.paths.tolist()
    for level in range(len(sizes)):
        assert packed.starts[level].tolist() == columns.starts[level].tolist()
        assert packed.codes[level].tolist() == columns.codes[level].tolist()
        assert packed.first_child[level].tolist() == columns.first_child[level].tolist()


def test_codes_of_exactly_64_bits_are_sorted_as_unsigned() -> None:
    codes = np.array([[2**32 - 1, 0], [0, 2**32 - 1], [2**31, 1], [2**31 - 1, 5]])
    assert ItemTrie(codes, (2**32, 2**32)).items.tolist() == [1, 3, 2, 0]


def test_memory_is_that_of_the_arrays() -> None:
    trie = ItemTrie(np.array([[0, 1], [1, 0], [0, 0]]), (2, 2))
    # Items, positions and paths of three items; starts 3 + 4, codes 2 + 3, first children 2 + 3.
    assert trie.num_bytes == 8 * (3 + 3 + 6 + 7 + 5 + 5)


def test_two_items_on_one_code_are_refused() -> None:
    with pytest.raises(ArtifactError, match="items 0 and 2 share"):
        ItemTrie(np.array([[0, 1], [1, 0], [0, 1]]), (2, 2))


def test_two_items_on_one_code_are_refused_when_codes_are_wide() -> None:
    with pytest.raises(ArtifactError, match=r"items 0 and 2 share \[0, 1\]"):
        ItemTrie(np.array([[0, 1], [1, 0], [0, 1]]), (2**40, 2**40))


def test_a_code_outside_its_codebook_is_refused() -> None:
    with pytest.raises(ArtifactError, match="item 1 has code 7 on level 1"):
        ItemTrie(np.array([[0, 1], [1, 7]]), (2, 2))


@pytest.mark.parametrize("sizes", [(4, 3, 5), (2,) * 4, (1 << 40, 1 << 40, 3)])
def test_a_trie_that_items_were_sorted_into_is_one_over_all_of_them(sizes: tuple[int, ...]) -> None:
    random = np.random.default_rng(0)
    every = np.stack(np.meshgrid(*[np.arange(min(size, 4)) for size in sizes]), axis=-1).reshape(-1, len(sizes))
    for count in (0, 1, 5):
        codes = random.permutation(every)[: 6 + count]
        smaller = ItemTrie(codes[:6], sizes)
        grown, whole = smaller.with_items(codes[6:]), ItemTrie(codes, sizes)
        for name in ("items", "positions", "paths"):
            torch.testing.assert_close(getattr(grown, name), getattr(whole, name))
        for name in ("starts", "codes", "first_child"):
            torch.testing.assert_close(getattr(grown, name), getattr(whole, name))
        assert grown.max_children == whole.max_children
        for level, nodes in enumerate(grown.nodes_in(smaller)):
            expected = torch.full((len(grown.codes[level]),), -1)
            expected[grown.paths[:6, level]] = smaller.paths[:, level]
            torch.testing.assert_close(nodes, expected)


def test_items_that_do_not_fit_are_not_sorted_in() -> None:
    trie = ItemTrie(np.array([[0, 1], [1, 0]]), (2, 2))
    with pytest.raises(ArtifactError, match="items 0 and 2 share"):
        trie.with_items(np.array([[0, 1]]))
    with pytest.raises(ArtifactError, match="item 2 has code 2 on level 1"):
        trie.with_items(np.array([[0, 2]]))


@settings(deadline=None, max_examples=30)
@given(unique_codes(), st.sampled_from([1, 2**40]))
def test_a_trie_comes_back_from_its_file_as_it_was_built(case: tuple[np.ndarray, tuple[int, ...]], wider: int) -> None:
    codes, sizes = case[0], [size * wider for size in case[1]]
    few = max(1, len(codes) // 2)
    built = ItemTrie(codes[:few], sizes)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "trie.safetensors"
        built.save(path, codes[:few])
        loaded = ItemTrie.load(path, codes[:few], sizes)
        assert same_tries(loaded, built)
        assert same_tries(loaded.with_items(codes[few:]), ItemTrie(codes, sizes))


def same_tries(first: ItemTrie, second: ItemTrie) -> bool:
    def plain(trie: ItemTrie) -> dict[str, object]:
        tables = {name: value for name, value in vars(trie).items() if name != "_keys"}
        lists = {
            name: [np.asarray(table).tolist() for table in value]
            if isinstance(value, list)
            else np.asarray(value).tolist()
            for name, value in tables.items()
        }
        return lists | {"_keys": None if trie._keys is None else trie._keys.tolist()}

    return plain(first) == plain(second)


def test_the_tables_of_a_loaded_trie_are_maps_of_its_file(tmp_path: Path) -> None:
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("no list of maps here")
    codes = np.array([[0, 1], [1, 0], [1, 1]])
    ItemTrie(codes, (2, 2)).save(tmp_path / "trie.safetensors", codes)
    trie = ItemTrie.load(tmp_path / "trie.safetensors", codes, (2, 2))
    addresses = [
        tuple(int(part, 16) for part in line.split()[0].split("-"))
        for line in maps.read_text().splitlines()
        if line.endswith(str(tmp_path / "trie.safetensors"))
    ]
    for table in (trie.items, trie.positions, trie.paths, *trie.starts, *trie.codes, *trie.first_child):
        assert any(begin <= table.data_ptr() < end for begin, end in addresses)


def test_the_file_of_another_trie_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    codes = np.array([[0, 1], [1, 0], [1, 1]])
    path = tmp_path / "trie.safetensors"
    ItemTrie(codes, (2, 2)).save(path, codes)
    with pytest.raises(ArtifactError, match="is that of other semantic IDs"):
        ItemTrie.load(path, codes[::-1], (2, 2))
    with pytest.raises(ArtifactError, match="is that of other semantic IDs"):
        ItemTrie.load(path, codes, (2, 3))
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ArtifactError, match="cannot read"):
        ItemTrie.load(path, codes, (2, 2))
