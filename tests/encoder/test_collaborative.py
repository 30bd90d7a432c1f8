from __future__ import annotations

import numpy as np
import pytest

from recsys.data import Sequences
from recsys.encoder import cooccurrence_embeddings, fuse
from recsys.encoder.collaborative import _positive_pmi, cooccurrence_counts, unit_rows
from recsys.errors import ConfigError


def communities() -> Sequences:
    """Items 0-9 are consumed together, and items 10-19; item 20 never, item 21 only alone."""
    rng = np.random.default_rng(0)
    lists = [rng.permutation(10)[:6] + 10 * (user % 2) for user in range(100)]
    return Sequences.from_lists([*lists, np.array([21])])


def test_items_consumed_together_get_similar_vectors() -> None:
    vectors, covered = cooccurrence_embeddings(communities(), 22, dim=2)
    assert covered.tolist() == [True] * 20 + [False] * 2
    assert (vectors[20:] == 0).all()
    unit = vectors[:20] / np.linalg.norm(vectors[:20], axis=1, keepdims=True)
    cosine = unit @ unit.T
    assert cosine[:10, :10].min() > 0.5 > cosine[:10, 10:].max()


def test_same_input_same_vectors() -> None:
    first, _ = cooccurrence_embeddings(communities(), 22, dim=4)
    second, _ = cooccurrence_embeddings(communities(), 22, dim=4)
    np.testing.assert_array_equal(first, second)


def test_unconnected_communities_get_the_same_vectors_each_time() -> None:
    rng = np.random.default_rng(0)
    blob = [rng.permutation(60)[:6] for _ in range(80)]
    pairs = [np.array([60 + 2 * pair, 61 + 2 * pair]) for pair in range(20)]
    train = Sequences.from_lists([*blob, *pairs])
    first, _ = cooccurrence_embeddings(train, 100, dim=80)
    second, _ = cooccurrence_embeddings(train, 100, dim=80)
    np.testing.assert_array_equal(first, second)


def test_columns_beyond_the_rank_are_zero() -> None:
    # Item 0 beside each of the others and those never beside each other: a matrix of rank 2.
    star = Sequences.from_lists([[0, leaf] for leaf in range(1, 12)])
    vectors, _ = cooccurrence_embeddings(star, 12, dim=6)
    assert (np.abs(vectors[:, :2]).max(axis=0) > 0.1).all()
    assert (vectors[:, 2:] == 0).all()


def test_window_counts_neighbours_of_one_user_only() -> None:
    train = Sequences.from_lists([[0, 1, 2, 0], [3], [1, 3]])
    one = cooccurrence_counts(train, 4, window=1).toarray()
    assert one.tolist() == [[0, 1, 1, 0], [1, 0, 1, 1], [1, 1, 0, 0], [0, 1, 0, 0]]
    # Distance 2 adds 0-2 and 1-0; distance 3 would be item 0 with itself, which is left out.
    two = cooccurrence_counts(train, 4, window=2).toarray()
    assert two.tolist() == [[0, 2, 2, 0], [2, 0, 1, 1], [2, 1, 0, 0], [0, 1, 0, 0]]
    np.testing.assert_array_equal(cooccurrence_counts(train, 4, window=3).toarray(), two)


def test_pointwise_information_is_positive_and_exact() -> None:
    counts = cooccurrence_counts(Sequences.from_lists([[0, 1], [0, 1], [1, 2]]), 3, window=1)
    # p(0,1) = 2/6, p(0) = 2/6, p(1) = 3/6; and the same for 1 and 2.
    expected = np.log(2.0)
    np.testing.assert_allclose(_positive_pmi(counts).toarray(), expected * (counts.toarray() > 0))


def test_fused_rows_have_the_weight_between_their_parts() -> None:
    text = np.array([[3.0, 4.0], [0.0, 2.0]], dtype=np.float32)
    collaborative = np.array([[0.0, 0.0], [5.0, 0.0]], dtype=np.float32)
    fused = fuse((text, 1.0), (collaborative, 0.5))
    assert fused.dtype == np.float32
    np.testing.assert_allclose(fused, [[0.6, 0.8, 0.0, 0.0], [0.0, 1.0, 0.5, 0.0]])


@pytest.mark.parametrize("dim", [0, 22])
def test_width_must_be_below_the_number_of_items(dim: int) -> None:
    with pytest.raises(ConfigError, match="must be between 1 and 21"):
        cooccurrence_embeddings(communities(), 22, dim=dim)


def test_history_without_neighbours_is_no_crash() -> None:
    vectors, covered = cooccurrence_embeddings(Sequences.from_lists([[0], [1]]), 3, dim=2)
    assert not covered.any()
    assert (vectors == 0).all()


def test_parts_are_fused_slice_by_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    parts = [(random.normal(size=(7, 3)).astype(np.float32), 1.0), (random.normal(size=(7, 2)), 0.5)]
    parts[0][0][2] = 0
    whole = np.concatenate([weight * unit_rows(vectors) for vectors, weight in parts], axis=1).astype(np.float32)
    np.testing.assert_array_equal(fuse(*parts), whole)
    monkeypatch.setattr("recsys.encoder.collaborative._FUSED_TOGETHER", 3)
    np.testing.assert_array_equal(fuse(*parts), whole)
