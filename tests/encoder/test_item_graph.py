from __future__ import annotations

import numpy as np
import pytest
import torch
from planted import GROUP_SIZE, NUM_ITEMS, NUM_USERS, behaviour, content
from scipy import sparse

from recsys.data import Sequences
from recsys.encoder.graph import SIGERConfig, graph_report
from recsys.encoder.graph.item_graph import (
    collaborative_graph,
    companions,
    content_graph,
    enhanced_graph,
    fill_from_neighbours,
    nearest_items,
    neighbour_mean,
    semantic_graph,
    strongest,
)
from recsys.encoder.graph.propagation import (
    SparseProduct,
    interaction_matrix,
    row_normalised,
    symmetric_normalised,
    user_item_graph,
)
from recsys.encoder.graph.sampling import batches, keep_back_last
from recsys.encoder.modalities import Modality
from recsys.errors import DataError

# Directions on a quarter circle: 0 and 1 are near each other, 2 and 3 are, and 4 has no content.
ANGLES = np.deg2rad([0, 10, 50, 80])
LINE = Modality.from_vectors(
    "text", np.concatenate([np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1), np.zeros((1, 2))])
)
TRAIN = Sequences.from_lists([[0, 2], [0, 2, 3], [3, 4], [0, 0]])


def interactions() -> sparse.csr_array:
    return interaction_matrix(TRAIN, 5)[0]


def test_interactions_count_repeats_once_and_leave_out_users_without_items() -> None:
    train = Sequences.from_lists([[2, 2, 0], [], [1]], users=[9, 4, 5])
    matrix, users = interaction_matrix(train, 3)
    assert users.tolist() == [5, 9]
    assert matrix.toarray().tolist() == [[0, 1, 0], [1, 0, 1]]


def test_missing_and_foreign_interactions_are_errors() -> None:
    with pytest.raises(DataError, match="needs training interactions, found none"):
        interaction_matrix(Sequences.from_lists([[]]), 3)
    with pytest.raises(DataError, match="training items must be between 0 and 2, found 1 to 3"):
        interaction_matrix(Sequences.from_lists([[1, 3]]), 3)


def test_user_item_graph_is_normalised_by_both_degrees() -> None:
    graph = user_item_graph(interactions()).toarray()
    np.testing.assert_allclose(graph, graph.T)
    # User 1 has 3 items; item 0 has 3 users, item 3 has 2.
    np.testing.assert_allclose(graph[1, 4:], [1 / 3, 0, 1 / np.sqrt(6), 1 / np.sqrt(6), 0], rtol=1e-6)


def test_normalised_rows_sum_to_one_and_empty_ones_stay_empty() -> None:
    matrix = sparse.csr_array(np.array([[1.0, 3.0], [0.0, 0.0]]))
    assert row_normalised(matrix).toarray().tolist() == [[0.25, 0.75], [0, 0]]
    assert symmetric_normalised(sparse.csr_array(np.zeros((2, 2)))).toarray().tolist() == [[0, 0], [0, 0]]


def test_sparse_product_and_its_gradient_are_those_of_the_dense_product() -> None:
    matrix = sparse.random_array((7, 5), density=0.5, rng=np.random.default_rng(0), format="csr")
    dense = torch.from_numpy(matrix.toarray()).float()
    first = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    second = first.detach().clone().requires_grad_()
    weight = torch.arange(21.0).reshape(7, 3)
    product = SparseProduct(sparse.csr_array(matrix))(first)
    torch.testing.assert_close(product, dense @ second)
    (product * weight).sum().backward()
    (dense @ second * weight).sum().backward()
    torch.testing.assert_close(first.grad, second.grad)


def test_nearest_items_are_those_of_brute_force_and_ties_go_by_index() -> None:
    modality = content()
    items, cosine = nearest_items(modality.vectors[:30], modality, 7)
    unit = modality.vectors / np.linalg.norm(modality.vectors, axis=1, keepdims=True)
    full = unit[:30] @ unit.T
    np.testing.assert_array_equal(items, np.argsort(-full, axis=1)[:, :7])
    np.testing.assert_allclose(cosine, -np.sort(-full, axis=1)[:, :7], atol=1e-5)
    twins = Modality.from_vectors("text", np.ones((6, 2), dtype=np.float32))
    assert nearest_items(twins.vectors[:1], twins, 3)[0].tolist() == [[0, 1, 2]]
    assert nearest_items(twins.vectors[:1], twins, 9)[0].shape == (1, 6)


def test_content_graph_holds_the_nearest_and_the_item_itself() -> None:
    graph = content_graph(LINE, 2).toarray()
    assert (graph > 0).astype(int).tolist() == [
        [1, 1, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0],
    ]
    assert graph[0, 1] == pytest.approx(np.cos(np.deg2rad(10)), abs=1e-5)
    np.testing.assert_array_equal(np.diag(neighbour_mean(LINE, 2).toarray()), [0.5] * 4 + [0])


def test_item_among_many_duplicates_is_still_its_own_neighbour() -> None:
    twins = Modality.from_vectors("text", np.ones((6, 2), dtype=np.float32))
    graph = neighbour_mean(twins, 3).toarray()
    np.testing.assert_allclose(np.diag(graph), 1 / 3)
    np.testing.assert_allclose(graph.sum(axis=1), 1)


def test_companions_count_common_users() -> None:
    expected = np.zeros((5, 5))
    expected[0, 2] = expected[2, 0] = 2
    expected[0, 3] = expected[3, 0] = expected[2, 3] = expected[3, 2] = expected[3, 4] = expected[4, 3] = 1
    np.testing.assert_array_equal(companions(interactions()).toarray(), expected)


def test_collaborative_graph_keeps_the_strongest_companions() -> None:
    graph = collaborative_graph(interactions(), SIGERConfig(collaborative_neighbours=1)).toarray()
    # Strengths: 0-2 is 2/3, 3-4 is 1/sqrt(3), 0-3 and 2-3 are 1/3.
    pair = np.zeros((5, 5))
    pair[0, 2] = pair[2, 0] = pair[3, 4] = pair[4, 3] = 1
    np.testing.assert_allclose(graph, pair, atol=1e-12)
    by_surprise = collaborative_graph(interactions(), SIGERConfig(collaborative_counts="ppmi")).toarray()
    # Of 10 pairs both ways, item 0 and item 3 are in 3 each and meet in 1: ln(10 / 9) is above 0.
    assert by_surprise[0, 3] > 0
    np.testing.assert_allclose(by_surprise, by_surprise.T)


def test_strongest_breaks_ties_by_column() -> None:
    matrix = sparse.csr_array(np.array([[1.0, 3.0, 1.0], [0.0, 0.0, 2.0], [0.0, 0.0, 0.0]]))
    assert strongest(matrix, 2).toarray().tolist() == [[1, 3, 0], [0, 0, 2], [0, 0, 0]]


def test_pruning_spares_what_someone_consumed_together() -> None:
    chain = interaction_matrix(Sequences.from_lists([[2, 3], [0]]), 5)[0]
    loose = semantic_graph(LINE, chain, SIGERConfig(neighbours=3)).toarray()
    tight = semantic_graph(LINE, chain, SIGERConfig(neighbours=3, prune_quantile=0.9)).toarray()
    assert loose[1, 2] > 0
    assert tight[1, 2] == 0
    # The cosine of 2 and 3 is below the quantile too, but one user has both.
    assert tight[2, 3] > 0
    assert tight[0, 1] > 0
    assert (np.diag(tight)[:4] > 0).all()


def test_enhanced_graph_blends_by_share() -> None:
    semantic = semantic_graph(LINE, interactions(), SIGERConfig(neighbours=2))
    collaborative = collaborative_graph(interactions(), SIGERConfig())
    np.testing.assert_allclose(
        enhanced_graph(semantic, collaborative, 0.3).toarray(),
        0.3 * semantic.toarray() + 0.7 * collaborative.toarray(),
    )
    np.testing.assert_allclose(enhanced_graph(semantic, collaborative, 1.0).toarray(), semantic.toarray())


def test_cold_items_are_filled_in_from_warm_neighbours_of_the_modalities_they_have() -> None:
    other = Modality.from_vectors("image", np.array([[1, 0], [1, 0], [0, 1], [0, 1], [0, 1]], dtype=np.float32))
    warm = interaction_matrix(Sequences.from_lists([[0, 3]]), 5)[0]
    fill = fill_from_neighbours([LINE, other], warm, 2).toarray()
    # Item 1 lies with 0 in both; item 4 has no text; items 0 and 3 keep what was trained.
    assert fill.tolist() == [[1, 0, 0, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 1, 0], [0, 0, 0, 1, 0]]
    assert fill_from_neighbours([], warm, 2).toarray().sum() == 2


def test_negatives_are_warm_items_that_the_user_does_not_have() -> None:
    matrix, _ = interaction_matrix(behaviour()[0], NUM_ITEMS)
    drawn = []
    stream = batches(matrix, 100, np.random.default_rng(0))
    seen = []
    for _ in range(9):  # one pass: 960 interactions
        batch = next(stream)
        assert (matrix[batch.users, batch.items] == 1).all()
        assert (matrix[batch.users, batch.negatives] == 0).all()
        drawn.append(batch.negatives)
        seen.append(batch.users * NUM_ITEMS + batch.items)
    assert (np.concatenate(drawn) % GROUP_SIZE != 0).all()
    assert len(np.unique(np.concatenate(seen))) == 900


def test_what_is_kept_back_is_the_last_item_and_loses_no_item() -> None:
    train, _ = behaviour()
    rest, cases = keep_back_last(train, 0.1, np.random.default_rng(0))
    assert len(cases) == 96
    assert len(rest.items) == len(train.items) - 96
    assert set(rest.items) == set(train.items)
    for user, history, target in zip(cases.histories.users, cases.histories, cases.targets, strict=True):
        original = train[int(user) - 1000]
        assert [*history, target] == original.tolist()
    assert len(keep_back_last(train, 0.0, np.random.default_rng(0))[1]) == 0


def test_report_sees_the_planted_structure_and_its_absence() -> None:
    train, _ = behaviour()
    report = graph_report([content()], train, NUM_ITEMS, SIGERConfig())
    [text] = report.modalities
    assert report.num_pairs == 3 * NUM_USERS
    assert text.consumed_together > 2 * text.together_by_chance
    assert text.recall_by_share[0.5] >= max(text.recall_by_share[0.0], 0.2)
    shuffled = graph_report([content()], behaviour(shuffled=True)[0], NUM_ITEMS, SIGERConfig()).modalities[0]
    assert shuffled.consumed_together < 1.5 * shuffled.together_by_chance
    assert max(shuffled.recall_by_share.values()) < 0.15


def test_report_counts_pairs_by_hand() -> None:
    train = Sequences.from_lists([[0, 1, 3], [0, 1, 3], [2, 3], [0, 2]])
    report = graph_report([LINE], train, 5, SIGERConfig(neighbours=2))
    # Kept back: both 3 after 0 and 1. The rest has the pairs 01, 23 and 02; content has 01 and 23.
    assert (report.num_pairs, report.num_unseen_pairs) == (4, 4)
    [text] = report.modalities
    assert text.consumed_together == 1.0
    assert text.companions_found == pytest.approx(2 / 3)
    assert text.together_by_chance == pytest.approx(3 / 10)
    # 3 is no one's companion in one step; in two, 0 gets there by 2, and 1 only as far as 2.
    assert set(text.recall_by_share.values()) == {0.0}
    assert text.unseen_recall_by_share[0.0] == 0.5
    assert text.unseen_recall_by_share[1.0] == 0.0


def test_report_without_long_sequences_is_an_error() -> None:
    with pytest.raises(DataError, match="needs training sequences of at least 3 items, found none"):
        graph_report([LINE], Sequences.from_lists([[0, 1], [1, 2]]), 5, SIGERConfig())
