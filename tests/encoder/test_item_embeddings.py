"""Text, further modalities and behaviour in one vector, for the catalogue and for what joins it later."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from planted_topics import planted
from pydantic import ValidationError

from recsys.data import Catalog
from recsys.encoder import EncoderConfig, ItemEmbeddings, TextEncoder, encode_catalog, item_texts
from recsys.encoder.alignment.config import AlignmentConfig
from recsys.encoder.config import ModalityConfig, SpectralConfig
from recsys.encoder.graph import CM3Config, SIGERConfig
from recsys.encoder.modalities import Modality
from recsys.errors import ConfigError, DataError

GRAPHS = {
    "cm3": CM3Config(dim=4, hidden_dim=8, steps=10, batch_size=64, neighbours=3),
    "siger": SIGERConfig(dim=4, hidden_dim=8, steps=10, batch_size=64, neighbours=3),
}


@pytest.fixture
def config(word_model_directory: Path) -> EncoderConfig:
    return EncoderConfig(model=str(word_model_directory))


def with_images(catalog: Catalog, tmp_path: Path) -> tuple[ModalityConfig, np.ndarray]:
    """Every item but the last has an image vector of 3 numbers."""
    vectors = np.random.default_rng(0).normal(size=(catalog.num_items, 3)).astype(np.float32)
    frame = pl.DataFrame({"item_id": catalog.item_ids[:-1], "vector": vectors[:-1].tolist()})
    frame.write_parquet(tmp_path / "images.parquet")
    vectors[-1] = 0
    return ModalityConfig(name="image", file=tmp_path / "images.parquet", weight=0.5), vectors


def test_a_modality_is_a_weighted_block_and_items_without_it_have_zeros(config: EncoderConfig, tmp_path: Path) -> None:
    catalog, _ = planted(0)
    modality, images = with_images(catalog, tmp_path)
    text = encode_catalog(catalog, config, tmp_path)
    both = encode_catalog(catalog, config.model_copy(update={"modalities": (modality,)}), tmp_path)
    assert (both.dim, both.text_dim, both.modality_dims) == (35, 32, (3,))
    np.testing.assert_allclose(both.vectors[:, :32], text.vectors, atol=1e-6)
    unit = images[:-1] / np.linalg.norm(images[:-1], axis=1, keepdims=True)
    np.testing.assert_allclose(both.vectors[:-1, 32:], 0.5 * unit, atol=1e-6)
    assert not both.vectors[-1, 32:].any()
    image = Modality.from_vectors("image", images)
    np.testing.assert_allclose(both.match(text.vectors, [image]), both.vectors, atol=1e-6)
    assert not both.match(text.vectors)[:, 32:].any()
    with pytest.raises(DataError, match="no modality sound"):
        both.match(text.vectors, [Modality.from_vectors("sound", images)])


@pytest.mark.parametrize("graph", GRAPHS)
def test_a_graph_encoder_places_new_items_by_their_content(graph: str, config: EncoderConfig, tmp_path: Path) -> None:
    catalog, train = planted(0)
    modality, images = with_images(catalog, tmp_path)
    settings = {"collaborative": GRAPHS[graph], "collaborative_weight": 2.0, "modalities": (modality,)}
    held_out = np.array([3, 40])
    embeddings = encode_catalog(
        catalog,
        config.model_copy(update=settings),
        tmp_path,
        train.renumber(np.where(np.isin(np.arange(72), held_out), -1, np.arange(72))),
        held_out=held_out,
    )
    text = encode_catalog(catalog, config, tmp_path).vectors
    behaviour = embeddings.vectors[:, 35:]
    np.testing.assert_allclose(np.linalg.norm(behaviour, axis=1), 2.0, atol=1e-5)
    rows = Modality.from_vectors("image", images[held_out])
    placed = embeddings.match(text[held_out], [rows])
    np.testing.assert_allclose(placed, embeddings.vectors[held_out], atol=1e-6)
    embeddings.save(tmp_path / "saved")
    loaded = ItemEmbeddings.load(tmp_path / "saved")
    np.testing.assert_array_equal(loaded.vectors, embeddings.vectors)
    np.testing.assert_array_equal(loaded.match(text[held_out], [rows]), placed)


def test_a_tuned_encoder_reads_new_items_as_it_read_the_catalogue(config: EncoderConfig, tmp_path: Path) -> None:
    catalog, train = planted(0)
    alignment = AlignmentConfig(steps=40, batch_size=32, evaluate_every=20, holdout_users=20, holdout_candidates=72)
    tuned = tmp_path / "tuned"
    aligned = config.model_copy(update={"alignment": alignment})
    embeddings = encode_catalog(catalog, aligned, tmp_path, train, tuned_model=tuned)
    again = TextEncoder(config.model_copy(update={"model": str(tuned)})).encode(item_texts(catalog, config))
    np.testing.assert_allclose(embeddings.vectors, again, atol=1e-5)
    assert np.abs(embeddings.vectors - encode_catalog(catalog, config, tmp_path).vectors).max() > 0.05
    with pytest.raises(ConfigError, match="pass tuned_model"):
        encode_catalog(catalog, aligned, tmp_path, train)
    with pytest.raises(ConfigError, match="need the training sequences"):
        encode_catalog(catalog, aligned, tmp_path, tuned_model=tuned)


def test_a_missing_column_is_named(config: EncoderConfig, tmp_path: Path) -> None:
    catalog, _ = planted(0)
    settings = {"modalities": (ModalityConfig(name="image", column="pixels"),)}
    with pytest.raises(ConfigError, match=r"'image' names column 'pixels', but the catalogue has only item_id, title"):
        encode_catalog(catalog, config.model_copy(update=settings), tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"modalities": [{"name": "image"}]}, "either column or file"),
        ({"modalities": [{"name": "text", "column": "x"}]}, "cannot be called 'text'"),
        ({"modalities": [{"name": "a", "column": "x"}, {"name": "a", "column": "y"}]}, "different names, found a, a"),
        ({"pooling": "last", "alignment": {}}, "pooling is last; set pooling: model"),
    ],
)
def test_settings_that_do_not_fit_are_errors(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        EncoderConfig.model_validate(values)


def test_spectral_is_the_default_behaviour() -> None:
    assert EncoderConfig.model_validate({"collaborative_weight": 1}).collaborative == SpectralConfig()
