from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from planted import COLD, GROUPS, NUM_ITEMS, NUM_USERS, OF_GROUP, behaviour, content, cosines, recall
from torch import Tensor

from recsys.encoder.graph import GraphEmbeddings, SIGERConfig, fit_graph_encoder
from recsys.encoder.graph.propagation import interaction_matrix
from recsys.encoder.graph.sampling import batches
from recsys.encoder.graph.siger import SIGER, Branches, perturb
from recsys.encoder.modalities import Modality
from recsys.errors import DataError

SMALL = {"dim": 16, "hidden_dim": 32, "batch_size": 256, "steps": 60, "learning_rate": 0.02}


def config(**changes: object) -> SIGERConfig:
    return SIGERConfig.model_validate(SMALL | changes)


def fitted(*modalities: Modality, shuffled: bool = False, **changes: object) -> GraphEmbeddings:
    return fit_graph_encoder(modalities, behaviour(shuffled=shuffled)[0], NUM_ITEMS, config(**changes))


def model(*modalities: Modality, **changes: object) -> SIGER:
    torch.manual_seed(0)
    made = SIGER(config(**changes), modalities, NUM_USERS, NUM_ITEMS)
    made.set_interactions(interaction_matrix(behaviour()[0], NUM_ITEMS)[0])
    return made


def trained_branches(*modalities: Modality, steps: int = 60, **changes: object) -> Branches:
    made = model(*modalities, **changes)
    optimizer = torch.optim.Adam(made.parameters(), lr=0.02)
    stream = batches(interaction_matrix(behaviour()[0], NUM_ITEMS)[0], 256, np.random.default_rng(0))
    for _, batch in zip(range(steps), stream, strict=False):
        loss = made.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return made.branches()


@pytest.fixture(scope="module")
def embeddings() -> GraphEmbeddings:
    return fitted(content(), content("image", dim=8, seed=3))


def vectors_of_many_norms() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(500, 16, generator=generator) * torch.rand(500, 1, generator=generator).add(0.1)


def test_noise_is_small_in_the_orthant_and_grows_with_the_norm() -> None:
    vectors = vectors_of_many_norms()
    moved = perturb(vectors, config(noise=0.1))
    noise = moved - vectors
    norms = vectors.norm(dim=1)
    torch.testing.assert_close(noise.norm(dim=1), 0.1 * norms / norms.mean(), atol=1e-5, rtol=1e-4)
    assert torch.nn.functional.cosine_similarity(vectors, moved).mean() > 0.9
    assert np.corrcoef(noise.norm(dim=1), norms)[0, 1] > 0.9
    assert (noise * vectors >= -1e-7).all()


def test_no_noise_leaves_vectors_as_they_are() -> None:
    vectors = vectors_of_many_norms()
    assert torch.equal(perturb(vectors, config(noise=0.0)), vectors)


def test_noise_may_be_constant_or_fall_with_the_norm() -> None:
    vectors = vectors_of_many_norms()
    norms = vectors.norm(dim=1)
    constant = (perturb(vectors, config(noise_scale="constant")) - vectors).norm(dim=1)
    torch.testing.assert_close(constant, torch.full((500,), 0.1), atol=1e-5, rtol=1e-4)
    inverse = (perturb(vectors, config(noise_scale="inverse")) - vectors).norm(dim=1)
    torch.testing.assert_close(inverse, 0.1 * norms.mean() / norms, atol=1e-5, rtol=1e-4)


def test_branches_follow_the_formulas() -> None:
    made = model(content(), semantic_layers=2)
    matrix = torch.from_numpy(interaction_matrix(behaviour()[0], NUM_ITEMS)[0].toarray())
    graph = torch.from_numpy(made._item_graphs[0].matrix.toarray())
    with torch.no_grad():
        branches = made.branches()
        ids = made._fill(made.ids[NUM_USERS:])
        initial = made.content.networks[0](made._inputs.vectors[0]) * torch.sigmoid(made.content.gates[0](ids))
        items = graph @ (graph @ initial)
        users = matrix @ items / matrix.sum(dim=1, keepdim=True)
        torch.testing.assert_close(branches.semantics[0], torch.cat([users, items]), atol=1e-5, rtol=1e-4)
        # Of one modality the attention is 1.
        torch.testing.assert_close(branches.fused, branches.semantics[0])
        unit = branches.fused / branches.fused.norm(dim=1, keepdim=True)
        torch.testing.assert_close(torch.cat(made.representations()), branches.behaviour + unit)


def test_attention_weighs_modalities_for_each_row() -> None:
    made = model(content(), content("image", dim=8, seed=3))
    with torch.no_grad():
        branches = made.branches()
        first, second = branches.semantics
        share = torch.softmax(torch.cat([made.content.attention(part) for part in (first, second)], dim=1), dim=1)
        torch.testing.assert_close(branches.fused, share[:, :1] * first + share[:, 1:] * second)
    assert share.std(dim=0).min() > 0


def test_behaviour_is_the_anchor_that_does_not_move() -> None:
    of_ids, of_content = [], []
    for anchor in (True, False):
        made = model(content(), anchor=anchor)
        # A gate of weight 0 is open by half for everyone: content no longer depends on the ids.
        torch.nn.init.zeros_(made.content.gates[0].weight)
        made._alignment(made.branches(), np.arange(40)).backward()
        of_ids.append(made.ids.grad)
        of_content.append(made.content.networks[0][0].weight.grad)
    torch.testing.assert_close(*of_ids)
    assert not torch.allclose(*of_content)


def test_alignment_brings_content_to_behaviour_without_collapse() -> None:
    def gap_and_rank(branches: Branches) -> tuple[float, float]:
        semantic, anchor = (
            torch.nn.functional.normalize(part, dim=1) for part in (branches.semantics[0], branches.behaviour)
        )
        own = (semantic * anchor).sum(dim=1).mean()
        others = (semantic @ anchor.T).mean()
        spectrum = torch.linalg.svdvals(branches.fused - branches.fused.mean(dim=0))
        shares = spectrum / spectrum.sum()
        return float(own - others), float(torch.exp(-(shares * shares.log()).sum()))

    aligned_gap, aligned_rank = gap_and_rank(trained_branches(content(), alignment_weight=0.1))
    free_gap, free_rank = gap_and_rank(trained_branches(content(), alignment_weight=0.0))
    assert aligned_gap > 0.2
    assert aligned_gap > free_gap
    assert aligned_rank > 0.5 * free_rank


def test_planted_content_is_found_and_shuffled_behaviour_loses_it(embeddings: GraphEmbeddings) -> None:
    found = recall(embeddings, behaviour()[1])
    modalities = content(), content("image", dim=8, seed=3)
    lost = recall(fitted(*modalities, shuffled=True), behaviour(shuffled=True)[1])
    assert found > 0.3
    assert lost < 0.5 * found


@pytest.mark.parametrize(
    "changes",
    [
        {"semantic_share": 1.0},
        {"perturbation_weight": 0.0},
        {"anchor": False},
        {"noise_scale": "constant"},
        {"noise_scale": "inverse"},
        {"alignment_weight": 0.0},
        {"collaborative_counts": "ppmi"},
        {"prune_quantile": 0.5},
        {"semantic_layers": 2},
    ],
    ids=str,
)
def test_each_switch_changes_the_vectors(changes: dict[str, object]) -> None:
    with_it, without = fitted(content(), steps=4, **changes), fitted(content(), steps=4)
    assert np.isfinite(with_it.item_vectors).all()
    assert not np.allclose(with_it.item_vectors, without.item_vectors)


def test_items_may_lack_a_modality() -> None:
    image = content("image", dim=8, seed=3)
    gaps = Modality.from_vectors("image", image.vectors, np.arange(NUM_ITEMS) % 3 > 0)
    made = fitted(content(), gaps, steps=10)
    assert np.isfinite(made.item_vectors).all()
    assert np.isfinite(made.user_table).all()


def test_new_and_cold_items_join_their_group(embeddings: GraphEmbeddings) -> None:
    groups = np.arange(GROUPS)
    new = [content(groups=groups, seed=5), content("image", dim=8, seed=6, groups=groups)]
    vectors = embeddings.embed_new(new)
    similar = cosines(np.concatenate([embeddings.item_vectors, vectors, embeddings.item_vectors[COLD]]))
    similar = similar[NUM_ITEMS:, :NUM_ITEMS]
    similar[:, COLD] = -1
    nearest = np.argsort(-similar, axis=1)[:, :10]
    assert (OF_GROUP[nearest] == np.tile(groups, 2)[:, None]).mean() > 0.8
    scores = embeddings.user_table @ vectors.T
    assert (scores.argmax(axis=1) == np.arange(NUM_USERS) % GROUPS).mean() > 0.6


def test_new_items_do_not_depend_on_those_beside_them_and_may_lack_a_modality(embeddings: GraphEmbeddings) -> None:
    text = content(groups=np.arange(GROUPS), seed=5)
    alone = embeddings.embed_new([Modality.from_vectors("text", text.vectors[2:3])])
    np.testing.assert_array_equal(embeddings.embed_new([text])[2:3], alone)


def test_same_seed_same_vectors() -> None:
    first, second = fitted(content(), steps=10), fitted(content(), steps=10)
    np.testing.assert_array_equal(first.item_vectors, second.item_vectors)
    np.testing.assert_array_equal(first.user_table, second.user_table)
    assert not np.array_equal(first.item_vectors, fitted(content(), steps=10, seed=1).item_vectors)


def test_loaded_embeddings_are_the_saved_ones_bit_for_bit(embeddings: GraphEmbeddings, tmp_path: Path) -> None:
    embeddings.save(tmp_path / "a")
    loaded = GraphEmbeddings.load(tmp_path / "a")
    np.testing.assert_array_equal(loaded.item_vectors, embeddings.item_vectors)
    np.testing.assert_array_equal(loaded.user_table, embeddings.user_table)
    new = [content(groups=np.arange(GROUPS), seed=5)]
    np.testing.assert_array_equal(loaded.embed_new(new), embeddings.embed_new(new))


def test_content_is_needed() -> None:
    with pytest.raises(DataError, match=r"SIGER needs at least one modality, found none"):
        fit_graph_encoder([], behaviour()[0], NUM_ITEMS, config())
