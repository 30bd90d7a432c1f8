from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from planted import COLD, GROUPS, NUM_ITEMS, NUM_USERS, OF_GROUP, behaviour, content, cosines, recall
from scipy.stats import spearmanr

from recsys.data import Sequences
from recsys.encoder.graph import CM3Config, GraphEmbeddings, LightGCNConfig, fit_graph_encoder
from recsys.encoder.graph.cm3 import CM3
from recsys.encoder.graph.propagation import interaction_matrix
from recsys.encoder.graph.sampling import Batch
from recsys.encoder.modalities import Modality
from recsys.errors import ArtifactError, ConfigError, DataError

SMALL = {"dim": 16, "hidden_dim": 32, "batch_size": 256, "layers": 2, "steps": 90, "learning_rate": 0.01}


def config(**changes: object) -> CM3Config:
    return CM3Config.model_validate(SMALL | changes)


def fitted(*modalities: Modality, shuffled: bool = False, **changes: object) -> GraphEmbeddings:
    return fit_graph_encoder(modalities, behaviour(shuffled=shuffled)[0], NUM_ITEMS, config(**changes))


def model(*modalities: Modality, **changes: object) -> CM3:
    torch.manual_seed(0)
    made = CM3(config(**changes), modalities, NUM_USERS)
    made.set_interactions(interaction_matrix(behaviour()[0], NUM_ITEMS)[0])
    return made


def batch() -> Batch:
    users, items = np.arange(50), np.concatenate([history[:1] for history in behaviour()[0]])[:50]
    return Batch(users=users, items=items, negatives=np.arange(50) + 60)


@pytest.fixture(scope="module")
def embeddings() -> GraphEmbeddings:
    return fitted(content(), content("image", dim=8, seed=3))


def off_diagonal(matrix: np.ndarray) -> np.ndarray:
    return matrix[np.triu_indices(len(matrix), 1)]


def test_shapes_are_a_block_for_each_modality_and_one_for_the_mix(embeddings: GraphEmbeddings) -> None:
    assert embeddings.item_vectors.shape == (NUM_ITEMS, 3 * 16)
    assert embeddings.user_table.shape == (NUM_USERS, 3 * 16)
    assert embeddings.item_vectors.dtype == embeddings.user_table.dtype == np.float32
    assert fitted(content(), steps=2).item_vectors.shape == (NUM_ITEMS, 2 * 16)


def test_representations_follow_the_formulas() -> None:
    text = content()
    made = model(text, neighbours=3)
    matrix = interaction_matrix(behaviour()[0], NUM_ITEMS)[0].toarray()
    with torch.no_grad():
        users, items = made.representations()
        blocks, mix = made.content(made._inputs, torch.full((NUM_ITEMS,), 0.5))
        torch.testing.assert_close(blocks[:, 16:], mix)
        torch.testing.assert_close(blocks[:, :16].norm(dim=1), torch.ones(NUM_ITEMS))
        torch.testing.assert_close(mix.norm(dim=1), torch.ones(NUM_ITEMS))
        scale = np.sqrt(np.outer(matrix.sum(axis=1), np.maximum(matrix.sum(axis=0), 1)))
        adjacency = torch.from_numpy(matrix / scale).float()
        preferences = torch.nn.functional.normalize(made.preferences, dim=2).flatten(1)
        first = adjacency @ blocks, adjacency.T @ preferences
        second = adjacency @ first[1], adjacency.T @ first[0]
        base = blocks + first[1] + second[1]
        torch.testing.assert_close(users, (preferences + first[0] + second[0]) / 2)  # even shares of two blocks
        nearest = np.argsort(-cosines(text.vectors), axis=1)[:, :3]
        torch.testing.assert_close(items, base + base[torch.from_numpy(nearest)].mean(dim=1), atol=1e-5, rtol=1e-5)


def test_evaluation_is_free_of_chance_and_training_is_not() -> None:
    made = model(content(), content("image", seed=3))
    with torch.no_grad():
        first, second = made.representations(), made.representations()
        losses = {float(made.loss(batch())) for _ in range(3)}
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert len(losses) == 3


def test_similarity_is_detached_unless_asked_for() -> None:
    gradients = []
    for detach in (True, False):
        made = model(content(), content("image", seed=3), detach_similarity=detach, uniformity_weight=1e6)
        torch.manual_seed(1)
        made.loss(batch()).backward()
        gradients.append(made.content.fusion_maps[0].weight.grad)
    assert not torch.allclose(*gradients)


def test_calibration_keeps_similar_items_closer_than_plain_uniformity() -> None:
    random = np.random.default_rng(3)
    # Content without groups, in 4 directions, and behaviour that knows nothing of it: the repulsion alone decides.
    smooth = random.normal(size=(NUM_ITEMS, 4)) @ random.normal(size=(4, 64))
    text = Modality.from_vectors("text", smooth + 0.3 * random.normal(size=(NUM_ITEMS, 64)))
    train = behaviour(shuffled=True)[0]
    with_mix = {}
    for uniformity in ("calibrated", "plain"):
        made = model(text, uniformity=uniformity, uniformity_weight=1.0, max_similarity=1.0, layers=0, neighbours=1)
        optimizer = torch.optim.Adam(made.parameters(), lr=0.01)
        draws = np.random.default_rng(0)
        for _ in range(120):
            rows, negatives = draws.integers(0, len(train.items), 128), draws.integers(0, NUM_ITEMS, 128)
            loss = made.loss(Batch(users=rows // 4, items=train.items[rows], negatives=negatives))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            close = off_diagonal(cosines(made.representations()[1].numpy()))
            with_mix[uniformity] = spearmanr(close, off_diagonal(made.similarities().numpy())).statistic
    assert with_mix["calibrated"] > with_mix["plain"] + 0.1


def test_planted_content_is_found_and_shuffled_behaviour_loses_it(embeddings: GraphEmbeddings) -> None:
    found = recall(embeddings, behaviour()[1])
    lost = recall(fitted(content(), content("image", dim=8, seed=3), shuffled=True), behaviour(shuffled=True)[1])
    assert found > 0.3
    assert lost < 0.5 * found


@pytest.mark.parametrize("fusion", ["spherical", "mean"])
def test_items_may_lack_a_modality(fusion: str) -> None:
    image = content("image", dim=8, seed=3)
    present = np.arange(NUM_ITEMS) % 3 > 0
    gaps = Modality.from_vectors("image", image.vectors, present)
    made = model(content(), gaps, fusion=fusion)
    made.loss(batch()).backward()
    assert all(parameter.grad is None or torch.isfinite(parameter.grad).all() for parameter in made.parameters())
    with torch.no_grad():
        _, mix = made.content(made._inputs, torch.full((NUM_ITEMS,), 0.5))
        text = torch.nn.functional.normalize(made.content.fusion_maps[0](made._inputs.vectors[0]), dim=1)
    torch.testing.assert_close(mix[~torch.from_numpy(present)], text[~torch.from_numpy(present)])
    vectors = fitted(content(), gaps, fusion=fusion, steps=20).item_vectors
    assert np.isfinite(vectors).all()
    assert (np.linalg.norm(vectors, axis=1) > 0).all()


def test_new_items_join_their_group(embeddings: GraphEmbeddings) -> None:
    groups = np.arange(GROUPS)
    new = [content(groups=groups, seed=5), content("image", dim=8, seed=6, groups=groups)]
    vectors = embeddings.embed_new(new)
    assert vectors.dtype == np.float32
    assert vectors.shape == (GROUPS, embeddings.dim)
    similar = cosines(np.concatenate([embeddings.item_vectors, vectors]))[NUM_ITEMS:, :NUM_ITEMS]
    nearest = np.argsort(-similar, axis=1)[:, :10]
    assert (OF_GROUP[nearest] == groups[:, None]).mean() > 0.8
    # Users of the group score it above users of the others.
    scores = embeddings.user_table @ vectors.T
    of_user = np.arange(NUM_USERS) % GROUPS
    assert (scores.argmax(axis=1) == of_user).mean() > 0.6


def test_new_item_with_the_content_of_a_cold_one_lies_where_it_lies(embeddings: GraphEmbeddings) -> None:
    copies = [Modality.from_vectors(modality.name, modality.vectors[COLD]) for modality in embeddings.modalities]
    vectors = embeddings.embed_new(copies)
    both = cosines(np.concatenate([vectors, embeddings.item_vectors[COLD]]))
    assert np.diag(both[:GROUPS, GROUPS:]).min() > 0.98


def test_new_items_do_not_depend_on_those_beside_them_and_may_lack_a_modality(embeddings: GraphEmbeddings) -> None:
    text = content(groups=np.arange(GROUPS), seed=5)
    together = embeddings.embed_new([text])
    alone = embeddings.embed_new([Modality.from_vectors("text", text.vectors[2:3])])
    np.testing.assert_array_equal(together[2:3], alone)
    assert np.isfinite(together).all()


def test_wrong_new_items_are_errors(embeddings: GraphEmbeddings) -> None:
    with pytest.raises(DataError, match="new items need modalities out of text, image; found sound"):
        embeddings.embed_new([content("sound")])
    with pytest.raises(DataError, match=r"modality 'text' of the new items must be \[120, 16\], found \[120, 4\]"):
        embeddings.embed_new([content(dim=4)])
    hole = Modality.from_vectors("text", np.array([[1.0] * 16, [0.0] * 16]))
    with pytest.raises(DataError, match=r"1 of 2 new items have no modality, e.g. row 1"):
        embeddings.embed_new([hole])


def test_known_users_have_their_vector_and_others_the_mean_of_their_items(embeddings: GraphEmbeddings) -> None:
    histories = Sequences.from_lists([[3, 4], [3, 4], []], users=[1001, 7, 8])
    vectors = embeddings.user_vectors(histories)
    np.testing.assert_array_equal(vectors[0], embeddings.user_table[1])
    np.testing.assert_allclose(vectors[1], embeddings.item_vectors[[3, 4]].mean(axis=0), rtol=1e-5, atol=1e-6)
    assert (vectors[2] == 0).all()
    np.testing.assert_array_equal(embeddings.user_vectors(histories, from_history=True)[0], vectors[1])


def test_normalised_vectors_have_unit_norm() -> None:
    made = fitted(content(), steps=5, normalise=True)
    histories = Sequences.from_lists([[3, 4], [3, 4]], users=[1001, 7])
    new = made.embed_new([content(groups=np.arange(3))])
    for vectors in (made.item_vectors, made.user_vectors(histories), new):
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)


def test_same_seed_same_vectors_and_global_random_state_is_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = fitted(content(), steps=20, evaluate_every=5)
    assert torch.equal(torch.rand(3), expected)
    second = fitted(content(), steps=20, evaluate_every=5)
    np.testing.assert_array_equal(first.item_vectors, second.item_vectors)
    np.testing.assert_array_equal(first.user_table, second.user_table)
    other = fitted(content(), steps=20, evaluate_every=5, seed=1)
    assert not np.array_equal(first.item_vectors, other.item_vectors)


def test_loaded_embeddings_are_the_saved_ones_bit_for_bit(embeddings: GraphEmbeddings, tmp_path: Path) -> None:
    embeddings.save(tmp_path / "a")
    state = torch.get_rng_state()
    loaded = GraphEmbeddings.load(tmp_path / "a")
    assert torch.equal(torch.get_rng_state(), state)
    assert loaded.config == embeddings.config
    np.testing.assert_array_equal(loaded.item_vectors, embeddings.item_vectors)
    np.testing.assert_array_equal(loaded.user_ids, embeddings.user_ids)
    np.testing.assert_array_equal(loaded.user_table, embeddings.user_table)
    new = [content(groups=np.arange(GROUPS), seed=5), content("image", dim=8, seed=6, groups=np.arange(GROUPS))]
    np.testing.assert_array_equal(loaded.embed_new(new), embeddings.embed_new(new))
    loaded.save(tmp_path / "b")
    name = "graph_embeddings.safetensors"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_damaged_artifacts_are_errors(embeddings: GraphEmbeddings, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot read graph embeddings"):
        GraphEmbeddings.load(tmp_path / "none")
    embeddings.save(tmp_path / "a")
    file = tmp_path / "a" / "graph_embeddings.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match="cannot read graph embeddings"):
        GraphEmbeddings.load(tmp_path / "a")


def test_settings_must_fit_the_modalities() -> None:
    train = behaviour()[0]
    with pytest.raises(DataError, match=r"CM3 needs at least one modality, found none"):
        fit_graph_encoder([], train, NUM_ITEMS, config())
    with pytest.raises(ConfigError, match=r"graph_weights is .* must give each of text a weight"):
        fit_graph_encoder([content()], train, NUM_ITEMS, config(graph_weights={"image": 1.0}))
    with pytest.raises(DataError, match="modality 'text' has 120 rows, but the catalogue has 121 items"):
        fit_graph_encoder([content()], train, NUM_ITEMS + 1, config())


def test_too_few_items_and_a_diverging_loss_are_errors() -> None:
    with pytest.raises(DataError, match="interactions with at least 2 items, found 1"):
        fit_graph_encoder([content()], Sequences.from_lists([[3], [3]]), NUM_ITEMS, config())
    with pytest.raises(ConfigError, match=r"the loss is (nan|inf) at step 2; lower learning_rate"):
        fit_graph_encoder([], behaviour()[0], NUM_ITEMS, LightGCNConfig(learning_rate=1e25, steps=5))


def test_graph_weights_choose_whose_neighbours_count() -> None:
    image = content("image", dim=8, seed=3)
    by_text = model(content(), image, graph_weights={"text": 2.0, "image": 0.0})
    alone = model(content())
    np.testing.assert_allclose(by_text._item_graph.matrix.toarray(), alone._item_graph.matrix.toarray())


def test_lightgcn_learns_behaviour_without_content_and_fills_in_cold_items_with_it(tmp_path: Path) -> None:
    train, cases = behaviour()
    control = LightGCNConfig(dim=16, batch_size=256, layers=2, steps=150, learning_rate=0.02)
    bare = fit_graph_encoder([], train, NUM_ITEMS, control)
    assert recall(bare, cases) > 0.3
    assert (bare.item_vectors[COLD] == 0).all()
    with pytest.raises(DataError, match="new items need modalities out of none"):
        bare.embed_new([content(groups=np.arange(2))])
    filled = fit_graph_encoder([content()], train, NUM_ITEMS, control)
    similar = cosines(filled.item_vectors)[COLD]
    similar[:, COLD] = -1
    assert (OF_GROUP[similar.argmax(axis=1)] == np.arange(GROUPS)).mean() > 0.8
    filled.save(tmp_path / "a")
    new = [content(groups=np.arange(GROUPS), seed=5)]
    np.testing.assert_array_equal(GraphEmbeddings.load(tmp_path / "a").embed_new(new), filled.embed_new(new))


def test_training_stops_early_and_keeps_the_best(capsys: pytest.CaptureFixture[str]) -> None:
    train, _ = behaviour()
    settings = LightGCNConfig(dim=16, batch_size=256, steps=2000, learning_rate=0.05, evaluate_every=5, patience=2)
    stopped = fit_graph_encoder([], train, NUM_ITEMS, settings)
    said = re.search(r"best of (\d+) steps was (\d+) ", capsys.readouterr().err.replace("\n", " "))
    assert said is not None
    taken, best = int(said[1]), int(said[2])
    assert best + 10 == taken < 2000
    # Patience until the end, and an end where the best was: the same parameters.
    exact = fit_graph_encoder([], train, NUM_ITEMS, settings.model_copy(update={"steps": best}))
    np.testing.assert_array_equal(stopped.item_vectors, exact.item_vectors)
