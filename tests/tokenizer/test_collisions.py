from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from recsys.errors import DataError
from recsys.tokenizer import RKMeansConfig, build_tokenizer, load_tokenizer
from recsys.tokenizer.collisions import assignment, ordinal_codebook, resolve_collisions, resolve_sets, sets
from recsys.tokenizer.collisions.assignment import separate_leaves
from recsys.tokenizer.collisions.group_sinkhorn import spread_groups
from recsys.tokenizer.collisions.rooms import make_room, near_occupied
from recsys.tokenizer.config import CollisionStrategy
from recsys.tokenizer.nearest import NearestCodeTokenizer
from recsys.tokenizer.residual import nearest_codes, squared_distances, summed_codes

STRATEGIES = ("assignment", "greedy", "group_sinkhorn")


def codebooks_of(sizes: tuple[int, ...], dim: int = 3, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(size, dim)).astype(np.float32) / (level + 1) for level, size in enumerate(sizes)]


def rows(codes: np.ndarray) -> set[tuple[int, ...]]:
    return set(map(tuple, codes.tolist()))


@pytest.mark.parametrize("strategy", STRATEGIES)
@given(seed=st.integers(0, 10**6), sizes=st.sampled_from([(24,), (4, 6), (2, 3, 4)]), data=st.data())
@settings(max_examples=60, deadline=None)
def test_codes_are_unique_free_and_legal_whenever_they_fit(
    strategy: CollisionStrategy, seed: int, sizes: tuple[int, ...], data: st.DataObject
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
    codes = resolve_collisions(raw, latents, codebooks, taken, strategy=strategy)
    assert len(rows(codes)) == num_items
    assert not rows(codes) & rows(taken)
    assert (codes >= 0).all()
    assert (codes < np.array(sizes)).all()


@given(seed=st.integers(0, 10**6), num_taken=st.integers(1, 47), data=st.data())
@settings(max_examples=60, deadline=None)
def test_new_items_are_told_apart_from_those_near_them_as_from_all(
    seed: int, num_taken: int, data: st.DataObject
) -> None:
    rng = np.random.default_rng(seed)
    sizes = (3, 4, 4)
    taken = rng.permutation(np.array(list(itertools.product(*map(range, sizes))), dtype=np.int64))[:num_taken]
    codebooks = codebooks_of(sizes, seed=seed)
    latents = rng.normal(size=(data.draw(st.integers(1, 48 - num_taken)), 3))
    raw = nearest_codes(latents, codebooks)
    expected, parents = make_room(raw, latents, codebooks, taken)
    separate_leaves(expected, latents, codebooks, taken, parents, optimal=True)
    np.testing.assert_array_equal(resolve_collisions(raw, latents, codebooks, taken), expected)


def test_of_many_occupied_codes_only_near_ones_count() -> None:
    taken = np.array(list(itertools.product(range(3), range(4), range(4))), dtype=np.int64)[:-3]
    near = near_occupied(np.array([[1, 2, 0], [2, 3, 0]]), [3, 4, 4], taken)
    # The first of the two finds its prefix full, so it may have to go anywhere.
    assert len(near) == len(taken)
    near = near_occupied(np.array([[2, 3, 0]]), [3, 4, 4], taken)
    np.testing.assert_array_equal(near, [[2, 3, 0]])


@pytest.mark.parametrize("strategy", ["assignment", "greedy"])
def test_items_without_collision_keep_their_codes(strategy: CollisionStrategy) -> None:
    codebooks = codebooks_of((4, 12))
    latents = np.random.default_rng(1).normal(size=(12, 3))
    raw = nearest_codes(latents, codebooks)
    codes = resolve_collisions(raw, latents, codebooks, strategy=strategy)
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


def hungarian_per_prefix(raw: np.ndarray, latents: np.ndarray, codebooks: list[np.ndarray], taken: np.ndarray):
    """The optimum, prefix by prefix, all items against all free codes: moved items and total squared distance."""
    moved, total = 0, 0.0
    for prefix in np.unique(raw[:, :-1], axis=0):
        items = np.flatnonzero((raw[:, :-1] == prefix).all(axis=1))
        free = np.setdiff1d(np.arange(len(codebooks[-1])), taken[(taken[:, :-1] == prefix).all(axis=1), -1])
        distances = squared_distances(latents[items] - summed_codes(raw[items, :-1], codebooks), codebooks[-1][free])
        changed = raw[items, -1][:, None] != free
        rows, columns = linear_sum_assignment(distances + 1e6 * changed)
        moved += int(changed[rows, columns].sum())
        total += float(distances[rows, columns].sum())
    return moved, total


@pytest.mark.parametrize("together", [True, False])
def test_shortcut_for_uncrowded_prefixes_finds_the_hungarian_optimum(together: bool) -> None:
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(1000, 6))
    latents[:60] = latents[60:120]
    codebooks = [rng.normal(size=(size, 6)).astype(np.float32) / (level + 1) for level, size in enumerate((8, 6, 400))]
    taken_latents = rng.normal(size=(200, 6))
    taken = resolve_collisions(nearest_codes(taken_latents, codebooks), taken_latents, codebooks)
    raw = nearest_codes(latents, codebooks)
    with pytest.MonkeyPatch.context() as patch:
        if not together:
            patch.setattr(assignment, "_blocks", lambda rows, _: ((i, i + 1) for i in range(len(rows))))
        codes = resolve_collisions(raw, latents, codebooks, taken)
    assert (codes[:, :-1] == raw[:, :-1]).all()
    moved, total = hungarian_per_prefix(raw, latents, codebooks, taken)
    assert (codes != raw).any(axis=1).sum() == moved
    assert np.square(latents - summed_codes(codes, codebooks)).sum() == pytest.approx(total, rel=1e-9)
    # The shortcut alone does not do: some prefixes are contested by items that want the same free code.
    greedy = resolve_collisions(raw, latents, codebooks, taken, strategy="greedy")
    assert (greedy != raw).any(axis=1).sum() == moved
    assert np.square(latents - summed_codes(greedy, codebooks)).sum() > total


def test_prefix_too_large_for_a_block_is_still_resolved() -> None:
    codebooks = codebooks_of((64,))
    latents = np.random.default_rng(0).normal(size=(60, 3)) * 0.1
    raw = nearest_codes(latents, codebooks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assignment, "_BLOCK_CELLS", 256)
        codes = resolve_collisions(raw, latents, codebooks)
    np.testing.assert_array_equal(codes, resolve_collisions(raw, latents, codebooks, strategy="greedy"))
    assert len(rows(codes)) == 60


def test_greedy_gives_the_closest_item_the_code_and_the_next_the_nearest_left() -> None:
    codebook = [np.array([[0.0], [1.0], [3.0], [-2.5]], dtype=np.float32)]
    latents = np.array([[0.3], [0.1], [-0.2]])
    codes = resolve_collisions(np.zeros((3, 1), dtype=np.int64), latents, codebook, strategy="greedy")
    # 0.1 stays on 0; -0.2 comes before 0.3 and is nearer to 1 than to -2.5; 0.3 takes -2.5 (2.8 away) or 3 (2.7).
    assert codes[:, 0].tolist() == [2, 0, 1]


def crowded_catalogue(num_items: int = 3000) -> tuple[np.ndarray, list[np.ndarray]]:
    """All items but the first 200 are unlike; item i + 100 repeats item i for i below 100."""
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(num_items, 8))
    latents[:100] = latents[100:200]
    return latents, [rng.normal(size=(32, 8)).astype(np.float32) / (level + 1) for level in range(3)]


@pytest.mark.parametrize("strategy", ["assignment", "greedy"])
def test_moved_items_stay_near_on_a_realistic_catalogue(strategy: CollisionStrategy) -> None:
    latents, codebooks = crowded_catalogue()
    raw = nearest_codes(latents, codebooks)
    codes = resolve_collisions(raw, latents, codebooks, strategy=strategy)
    moved = (codes != raw).any(axis=1)
    assert moved.sum() >= 100
    assert (codes[:, :2] == raw[:, :2]).all()

    def error(some: np.ndarray) -> float:
        return float(((latents - summed_codes(some, codebooks))[moved] ** 2).sum())

    assert error(codes) <= 2 * error(raw)


def test_group_sinkhorn_sends_items_to_nearly_random_codes_and_cannot_split_duplicates() -> None:
    """What LC-Rec's loop does, kept to show why it is not the default."""
    latents, codebooks = crowded_catalogue(1000)
    raw = nearest_codes(latents, codebooks)
    left = spread_groups(raw, latents, codebooks)
    np.testing.assert_array_equal(left[:100], left[100:200])
    codes = resolve_collisions(raw, latents, codebooks, strategy="group_sinkhorn")
    assert len(rows(codes)) == 1000
    moved = (left != raw).any(axis=1)
    residual = (latents - summed_codes(raw[:, :-1], codebooks))[moved]
    distances = squared_distances(residual, codebooks[-1])
    ranks = (distances < np.take_along_axis(distances, left[moved, -1:], axis=1)).sum(axis=1)
    assert np.median(ranks) >= 8  # of 32; the assignment's is 1
    default = resolve_collisions(raw, latents, codebooks)
    moved = (default != raw).any(axis=1)
    distances = squared_distances((latents - summed_codes(raw[:, :-1], codebooks))[moved], codebooks[-1])
    assert np.median((distances < np.take_along_axis(distances, default[moved, -1:], axis=1)).sum(axis=1)) <= 2


def counted(codes: list[list[int]], latents: list[float], taken: list[list[int]], size: int) -> list[list[int]]:
    codebooks = [np.array([[0.0], [10.0]], dtype=np.float32), np.zeros((size, 1), dtype=np.float32)]
    occupied = np.array(taken, dtype=np.int64).reshape(-1, 2)
    raw = np.array(codes, dtype=np.int64)
    return resolve_collisions(raw, np.array(latents)[:, None], codebooks, occupied, strategy="extra_level").tolist()


def test_extra_level_counts_the_items_of_a_group_from_the_closest_on() -> None:
    assert counted([[0, 0], [0, 0], [1, 0], [0, 0]], [0.5, 0.1, 10.0, 0.5], [], 4) == [[0, 1], [0, 0], [1, 0], [0, 2]]


def test_extra_level_goes_on_counting_for_new_items() -> None:
    assert counted([[0, 0], [0, 0], [1, 0]], [0.5, 0.1, 9.0], [[0, 0], [0, 1]], 4) == [[0, 3], [0, 2], [1, 0]]
    # Item 0 of the group is no more: its number is free again.
    assert counted([[0, 0], [0, 0]], [0.5, 0.1], [[0, 1]], 4) == [[0, 2], [0, 0]]


def test_full_group_of_the_extra_level_is_an_error_that_names_the_way_out() -> None:
    with pytest.raises(DataError, match=r"3 items share the codes \[0\], but the counting level has 2; .*assignment"):
        counted([[0, 0]], [0.0], [[0, 0], [0, 1]], 2)


def test_extra_level_has_the_size_of_the_last_one_or_twice_the_largest_group() -> None:
    codebooks = codebooks_of((3, 5))
    assert ordinal_codebook(np.array([[0, 0], [0, 0]]), codebooks).shape == (5, 3)
    assert ordinal_codebook(np.array([[0, 0]] * 4), codebooks).shape == (8, 3)


def test_tokenizer_with_an_extra_level_names_encodes_and_survives_the_disk(embeddings, tmp_path: Path) -> None:
    config = RKMeansConfig(levels=2, codebook_size=24, code_dim=8, collisions="extra_level")
    tokenizer = build_tokenizer(config)
    ids = tokenizer.fit(embeddings)
    plain = build_tokenizer(config.model_copy(update={"collisions": "assignment"})).fit(embeddings)
    assert ids.ordinal
    assert ids.codebook_sizes == tokenizer.codebook_sizes == (24, 24, len(tokenizer.codebooks[2]))
    np.testing.assert_array_equal(ids.codes[:, :2], plain.raw_codes)
    np.testing.assert_array_equal(tokenizer.encode_raw(embeddings), ids.raw_codes)
    largest = np.unique(ids.raw_codes, axis=0, return_counts=True)[1].max()
    assert ids.codes[:, 2].max() == largest - 1
    tokenizer.save(tmp_path / "tokenizer")
    loaded = load_tokenizer(tmp_path / "tokenizer")
    new = loaded.encode(embeddings[:2], ids.codes)
    np.testing.assert_array_equal(new, tokenizer.encode(embeddings[:2], ids.codes))
    np.testing.assert_array_equal(new[:, :2], ids.codes[:2, :2])
    group = (ids.codes[:, :2] == ids.codes[0, :2]).all(axis=1)
    assert sorted(new[:, 2]) == [group.sum(), group.sum() + 1]
    # What the extra code says is not of this world: reconstructions do not depend on it.
    np.testing.assert_array_equal(loaded.reconstruct(ids.codes), tokenizer.reconstruct(ids.codes[:, :2]))


@pytest.mark.parametrize("strategy", [*STRATEGIES, "extra_level"])
def test_strategy_of_the_config_gives_unique_codes_twice_the_same(strategy: CollisionStrategy, embeddings) -> None:
    config = RKMeansConfig(levels=2, codebook_size=24, code_dim=8, collisions=strategy)
    ids = build_tokenizer(config).fit(embeddings)
    assert len(rows(ids.codes)) == 400
    assert len(rows(ids.raw_codes)) < 400
    np.testing.assert_array_equal(ids.codes, build_tokenizer(config).fit(embeddings).codes)


def test_assigned_codes_are_what_resolution_starts_from_and_raw_codes_stay_nearest(embeddings) -> None:
    tokenizer = build_tokenizer(RKMeansConfig(levels=2, codebook_size=32, code_dim=8))
    nearest = tokenizer.fit(embeddings).raw_codes
    assert isinstance(tokenizer, NearestCodeTokenizer)
    assigned = np.stack([np.arange(400) % 32, np.arange(400) // 32], axis=1)
    ids = tokenizer._name_items(tokenizer.latents(embeddings), assigned)
    np.testing.assert_array_equal(ids.codes, assigned)  # unique already
    np.testing.assert_array_equal(ids.raw_codes, nearest)


# ---- parallel codes ----------------------------------------------------------------------------------------------


def test_least_confident_expert_gives_way() -> None:
    # Two items on (0, 0). Changing expert 0 costs 5 and 4, changing expert 1 costs 3 and 2: item 1 changes expert 1.
    distances = np.array([[[0.0, 5.0, 9.0], [0.0, 3.0, 9.0]], [[0.0, 4.0, 9.0], [1.0, 3.0, 9.0]]])
    codes = resolve_sets(np.zeros((2, 2), dtype=np.int64), distances)
    assert codes.tolist() == [[0, 0], [0, 1]]
    # Once (0, 1) is taken, item 0's change to it is gone too: the next best of all is item 1's (1, 0), at 4.
    codes = resolve_sets(np.zeros((2, 2), dtype=np.int64), distances, taken=np.array([[0, 1]]))
    assert codes.tolist() == [[0, 0], [1, 0]]


def test_item_on_a_taken_tuple_moves_and_others_stay() -> None:
    distances = np.array([[[0.0, 5.0], [0.0, 3.0]], [[5.0, 0.0], [3.0, 0.0]]])
    codes = resolve_sets(np.array([[0, 0], [1, 1]]), distances, taken=np.array([[0, 0]]))
    assert codes.tolist() == [[0, 1], [1, 1]]


def test_two_codes_change_only_when_all_tuples_at_one_change_are_taken() -> None:
    distances = np.array([[[0.0, 1.0, 2.0], [0.0, 1.5, 2.5]]])
    near = np.array([[0, 0], [0, 1], [0, 2], [1, 0]])
    assert resolve_sets(np.array([[0, 0]]), distances, taken=near).tolist() == [[2, 0]]
    # All of cost 2 and less are gone: (1, 1) at 2.5 is the cheapest of two changes.
    every = np.concatenate([near, [[2, 0]]])
    assert resolve_sets(np.array([[0, 0]]), distances, taken=every).tolist() == [[1, 1]]
    assert resolve_sets(np.array([[0, 0]]), distances, taken=np.concatenate([every, [[1, 1]]])).tolist() == [[1, 2]]


@given(seed=st.integers(0, 10**6), shape=st.sampled_from([(1, 24), (2, 5), (3, 3), (9, 2)]), data=st.data())
@settings(max_examples=60, deadline=None)
def test_sets_are_unique_free_and_legal_whenever_they_fit(
    seed: int, shape: tuple[int, int], data: st.DataObject
) -> None:
    experts, size = shape
    rng = np.random.default_rng(seed)
    everything = np.array(list(itertools.product(range(size), repeat=experts)), dtype=np.int64)
    room = len(everything)
    num_taken = data.draw(st.integers(0, min(room - 1, 40)))
    num_items = data.draw(st.integers(1, min(room - num_taken, 60)))
    taken = rng.permutation(everything)[:num_taken]
    # Few distinct points: exact duplicates.
    distances = rng.uniform(size=(3, experts, size))[rng.integers(0, 3, size=num_items)]
    raw = distances.argmin(axis=2)
    codes = resolve_sets(raw, distances, taken)
    assert len(rows(codes)) == num_items
    assert not rows(codes) & rows(taken)
    assert (codes >= 0).all()
    assert (codes < size).all()
    np.testing.assert_array_equal(resolve_sets(raw, lambda some: distances[some], taken), codes)


def naive_sets(raw: np.ndarray, distances: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """The rule itself: of all changes of one code by all colliding items to free tuples, make the cheapest; again."""
    codes = raw.copy()
    while True:
        everyone = [*map(tuple, codes.tolist()), *map(tuple, taken.tolist())]
        changes = []
        for row in range(len(codes)):
            if everyone.count(everyone[row]) > 1:
                for expert, code in itertools.product(range(codes.shape[1]), range(distances.shape[2])):
                    changed = codes[row].copy()
                    changed[expert] = code
                    if tuple(changed.tolist()) not in everyone:
                        increase = distances[row, expert, code] - distances[row, expert, codes[row, expert]]
                        changes.append((increase, -row, changed))
        if not changes:
            return codes
        _, minus_row, changed = min(changes, key=lambda change: change[:2])
        codes[-minus_row] = changed


def test_sets_are_resolved_as_by_the_rule_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        points = rng.uniform(size=(6, 3, 7))[rng.integers(0, 6, size=24)]
        distances = points + 0.3 * rng.uniform(size=points.shape)
        raw = points.argmin(axis=2)
        taken = np.unique(rng.integers(0, 7, size=(6, 3)), axis=0)
        expected = naive_sets(raw, distances, taken)
        assert len(rows(expected)) == 24 > len(rows(raw))
        np.testing.assert_array_equal(resolve_sets(raw, distances, taken), expected)
        with monkeypatch.context() as patch:  # lists that are too short, looked up in small blocks
            patch.setattr(sets, "_SHORT_LIST", 2)
            patch.setattr(sets, "_BLOCK_CELLS", 50)
            np.testing.assert_array_equal(resolve_sets(raw, distances, taken), expected)


def test_only_as_many_items_move_as_must_and_by_one_code() -> None:
    rng = np.random.default_rng(0)
    distances = rng.uniform(size=(40, 4, 16))[rng.integers(0, 40, size=300)]
    raw = distances.argmin(axis=2)
    codes = resolve_sets(raw, distances)
    assert (codes != raw).any(axis=1).sum() == 300 - len(rows(raw))
    assert (codes != raw).sum(axis=1).max() == 1


def test_more_items_than_sets_is_an_error() -> None:
    with pytest.raises(DataError, match=r"5 items do not fit into 4 sets of codes \(2 codebooks of 2\)"):
        resolve_sets(np.zeros((4, 2), dtype=np.int64), np.zeros((4, 2, 2)), np.array([[0, 1]]))
