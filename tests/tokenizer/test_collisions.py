from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.errors import DataError
from recsys.tokenizer import collisions
from recsys.tokenizer.collisions import resolve_collisions
from recsys.tokenizer.residual import nearest_codes, summed_codes


def codebooks_of(sizes: tuple[int, ...], dim: int = 3, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(size, dim)).astype(np.float32) / (level + 1) for level, size in enumerate(sizes)]


def rows(codes: np.ndarray) -> set[tuple[int, ...]]:
    return set(map(tuple, codes.tolist()))


@pytest.mark.parametrize("greedy", [False, True])
@given(seed=st.integers(0, 10**6), sizes=st.sampled_from([(24,), (4, 6), (2, 3, 4)]), data=st.data())
@settings(max_examples=60, deadline=None)
def test_codes_are_unique_free_and_legal_whenever_they_fit(
    greedy: bool, seed: int, sizes: tuple[int, ...], data: st.DataObject
) -> None:
    rng = np.random.default_rng(seed)
    num_taken = data.draw(st.integers(0, 23))
    num_items = data.draw(st.integers(1, 24 - num_taken))
    everything = np.array(list(itertools.product(*(range(size) for size in sizes))), dtype=np.int64)
    taken = rng.permutation(everything)[:num_taken]
    codebooks = codebooks_of(sizes, seed=seed)
    # Few distinct points: exact duplicates and crowded prefixes.
    latents = rng.normal(size=(3, 3))[rng.integers(0, 3, size=num_items)]
    raw = nearest_codes(latents, codebooks)
    with pytest.MonkeyPatch.context() as patch:
        if greedy:
            patch.setattr(collisions, "_HUNGARIAN_CELLS", 0)
        codes = resolve_collisions(raw, latents, codebooks, taken)
    assert len(rows(codes)) == num_items
    assert not rows(codes) & rows(taken)
    assert (codes >= 0).all()
    assert (codes < np.array(sizes)).all()


def test_items_without_collision_keep_their_codes() -> None:
    codebooks = codebooks_of((4, 12))
    latents = np.random.default_rng(1).normal(size=(12, 3))
    raw = nearest_codes(latents, codebooks)
    codes = resolve_collisions(raw, latents, codebooks)
    _, inverse, counts = np.unique(raw, axis=0, return_inverse=True, return_counts=True)
    assert (counts > 1).any()
    # As few items move as can: of each colliding group all but one.
    assert (codes != raw).any(axis=1).sum() == (counts - 1).sum()
    alone = counts[inverse] == 1
    np.testing.assert_array_equal(codes[alone], raw[alone])


def test_group_gets_the_least_total_distance_among_fewest_changes() -> None:
    codebook = codebooks_of((6,))
    latents = codebook[0][2] + np.random.default_rng(0).normal(size=(4, 3)) * 0.05
    raw = np.full((4, 1), 2)
    chosen = resolve_collisions(raw, latents, codebook)[:, 0]

    def cost(columns: tuple[int, ...]) -> tuple[int, float]:
        distance = ((latents - codebook[0][list(columns)]) ** 2).sum()
        return sum(column != 2 for column in columns), float(distance)

    assert tuple(chosen) == min(itertools.permutations(range(6), 4), key=cost)


def test_crowded_prefix_passes_its_worst_fits_to_the_nearest_sibling() -> None:
    first = np.array([[0.0], [10.0], [100.0]], dtype=np.float32)
    second = np.array([[-1.0], [1.0]], dtype=np.float32)
    latents = np.array([[0.1], [0.2], [3.0]])
    raw = nearest_codes(latents, [first, second])
    assert raw[:, 0].tolist() == [0, 0, 0]
    codes = resolve_collisions(raw, latents, [first, second])
    assert codes[2].tolist() == [1, 0]
    assert sorted(codes[:2, 1]) == [0, 1]


def test_full_prefix_of_existing_items_makes_new_ones_go_elsewhere() -> None:
    codebooks = [np.array([[0.0], [10.0]], dtype=np.float32), np.array([[-1.0], [1.0]], dtype=np.float32)]
    taken = np.array([[0, 0], [0, 1]])
    latents = np.array([[0.0]])
    codes = resolve_collisions(nearest_codes(latents, codebooks), latents, codebooks, taken)
    assert codes.tolist() == [[1, 0]]


def test_as_many_items_as_codes_fill_every_code() -> None:
    codebooks = codebooks_of((3, 2, 2))
    latents = np.zeros((12, 3))
    codes = resolve_collisions(nearest_codes(latents, codebooks), latents, codebooks)
    assert len(rows(codes)) == 12


def test_more_items_than_codes_is_an_error_that_names_the_setting() -> None:
    codebooks = codebooks_of((3, 2))
    latents = np.zeros((5, 3))
    with pytest.raises(DataError, match=r"7 items do not fit into 6 codes .*raise tokenizer\.levels"):
        resolve_collisions(nearest_codes(latents, codebooks), latents, codebooks, np.array([[0, 0], [0, 1]]))


def test_more_codes_than_an_integer_holds_are_no_problem() -> None:
    codebooks = codebooks_of((300,) * 9)
    latents = np.zeros((3, 3))
    codes = resolve_collisions(nearest_codes(latents, codebooks), latents, codebooks)
    assert len(rows(codes)) == 3


def test_moved_items_stay_near_on_a_realistic_catalogue() -> None:
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(3000, 8))
    latents[:100] = latents[100:200]
    codebooks = [rng.normal(size=(32, 8)).astype(np.float32) / (level + 1) for level in range(3)]
    raw = nearest_codes(latents, codebooks)
    codes = resolve_collisions(raw, latents, codebooks)
    moved = (codes != raw).any(axis=1)
    assert moved.sum() >= 100
    assert (codes[:, :2] == raw[:, :2]).all()

    def error(some: np.ndarray) -> float:
        return float(((latents - summed_codes(some, codebooks))[moved] ** 2).sum())

    assert error(codes) <= 2 * error(raw)
