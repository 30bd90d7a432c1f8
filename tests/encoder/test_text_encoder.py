from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import sentence_transformers
from safetensors import safe_open
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, StaticEmbedding
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from recsys.assets import ASSETS, Asset
from recsys.data import Catalog, Sequences
from recsys.encoder import EncoderConfig, ItemEmbeddings, TextEncoder, encode_catalog
from recsys.encoder import encoder as encoder_module
from recsys.encoder.cache import encode_cached
from recsys.errors import ArtifactError, AssetError, ConfigError, DataError

TEXTS = ["red polish", "blue lipstick", "a", "red polish", "b c d e f g h i j k l m n o p q r s t u v w x y z"]


@pytest.fixture
def config(model_directory: Path) -> EncoderConfig:
    return EncoderConfig(model=str(model_directory), max_tokens=16, batch_size=2)


@pytest.fixture
def catalog() -> Catalog:
    return Catalog(
        frame=pl.DataFrame(
            {"item_id": list("abcde"), "title": TEXTS, "categories": [[]] * 5},
            schema_overrides={"categories": pl.List(pl.String)},
        )
    )


@pytest.fixture
def train() -> Sequences:
    return Sequences.from_lists([[0, 1, 2], [0, 1, 2], [2, 1, 0]])


def test_vectors_come_in_the_order_of_the_texts(config: EncoderConfig) -> None:
    encoder = TextEncoder(config)
    vectors = encoder.encode(TEXTS)
    assert vectors.shape == (5, 16)
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors[0], vectors[3])
    for row, text in enumerate(TEXTS):
        np.testing.assert_allclose(vectors[row], encoder.encode([text])[0], atol=1e-6)
    assert encoder.encode([]).shape == (0, 16)


def test_texts_are_cut_at_the_token_limit(config: EncoderConfig) -> None:
    encoder = TextEncoder(config)
    longer = TEXTS[-1] + " red blue red blue"
    np.testing.assert_allclose(encoder.encode([TEXTS[-1]]), encoder.encode([longer]), atol=1e-6)
    wide = TextEncoder(config.model_copy(update={"max_tokens": 1000}))
    assert np.abs(wide.encode([TEXTS[-1]]) - wide.encode([longer])).max() > 1e-4


def test_a_table_of_word_vectors_reads_texts_of_any_length(tmp_path: Path) -> None:
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0, "red": 1, "blue": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    weights = np.array([[0, 0], [1, 0], [0, 1]], dtype=np.float32)
    table = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=weights)], device="cpu")
    table.save(str(tmp_path / "words"), create_model_card=False)
    encoder = TextEncoder(EncoderConfig(model=str(tmp_path / "words"), max_tokens=8))
    vectors = encoder.encode(["red", "red blue " * 20])
    np.testing.assert_allclose(vectors, [[1, 0], [0.5, 0.5]], atol=1e-6)


def test_each_text_is_encoded_once_per_model_and_limit(
    config: EncoderConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    original = TextEncoder.stream

    def counting(self, texts):
        encoded.append(len(texts))
        return original(self, texts)

    monkeypatch.setattr(TextEncoder, "stream", counting)
    expected = TextEncoder(config).encode(TEXTS)
    encoded.clear()
    for texts in (TEXTS, TEXTS[::-1], [*TEXTS, "new"]):
        vectors = encode_cached(TextEncoder(config), texts, tmp_path)
        assert vectors.shape == (len(texts), 16)
    np.testing.assert_allclose(vectors[:5], expected, atol=1e-6)
    assert encoded == [4, 1]
    encode_cached(TextEncoder(config.model_copy(update={"max_tokens": 8})), TEXTS, tmp_path)
    assert encoded == [4, 1, 4]


def repooled(source: Path, target: Path) -> Path:
    """The same weights with another pooling."""
    model = SentenceTransformer(str(source), device="cpu")
    modules = [model[0], Pooling(16, pooling_mode="cls"), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save(str(target))
    return target


def fingerprint(model: Path | str, cache_dir: Path | None = None) -> str:
    return TextEncoder(EncoderConfig(model=str(model), max_tokens=16), cache_dir).fingerprint


def test_fingerprint_of_a_directory_tells_pooling_and_tokenizer_apart(model_directory: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(model_directory, tmp_path / "copy")
    assert fingerprint(copy) == fingerprint(model_directory)
    other = repooled(model_directory, tmp_path / "cls")
    assert fingerprint(other) != fingerprint(model_directory)
    tokenizer = copy / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"[CLS]"', '"[BEGIN]"'))
    assert fingerprint(copy) != fingerprint(model_directory)


def test_fingerprint_of_an_asset_tells_pooling_apart(
    model_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ASSETS, "toy", Asset(name="toy", kind="model", description="a toy"))
    folders = {"mean": model_directory, "cls": repooled(model_directory, tmp_path / "cls")}
    for name, folder in folders.items():
        directory = shutil.copytree(folder, tmp_path / name / "assets" / "toy")
        (directory / "asset.json").write_text('{"bytes": {}}')
    assert fingerprint("toy", tmp_path / "mean") != fingerprint("toy", tmp_path / "cls")


def test_fingerprint_of_a_hub_model_tells_pooling_apart(
    model_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = {"some/mean": model_directory, "some/cls": repooled(model_directory, tmp_path / "cls")}
    monkeypatch.setattr(
        sentence_transformers, "SentenceTransformer", lambda name: SentenceTransformer(str(hub[name]), device="cpu")
    )
    assert fingerprint("some/mean") == fingerprint("some/mean")
    assert fingerprint("some/mean") != fingerprint("some/cls")


def test_killed_run_keeps_its_finished_shards(
    config: EncoderConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recsys.encoder.cache._SHARD_TEXTS", 2)
    monkeypatch.setattr(encoder_module, "_CHUNK_TEXTS", 1)
    texts = ["a", "b b", "c c c", "d d d d", "e e e e e"]
    original = TextEncoder.stream

    def killed_after_three(self, texts):
        for count, part in enumerate(original(self, texts)):
            if count == 3:
                raise KeyboardInterrupt
            yield part

    with monkeypatch.context() as patch:
        patch.setattr(TextEncoder, "stream", killed_after_three)
        with pytest.raises(KeyboardInterrupt):
            encode_cached(TextEncoder(config), texts, tmp_path)
    left: list[str] = []

    def recording(self, texts):
        left.extend(texts)
        return original(self, texts)

    monkeypatch.setattr(TextEncoder, "stream", recording)
    encode_cached(TextEncoder(config), texts, tmp_path)
    assert left == ["a", "b b", "c c c"]


def test_large_jobs_write_larger_shards_and_twins_share_a_vector(
    config: EncoderConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recsys.encoder.cache._SHARD_TEXTS", 1)
    monkeypatch.setattr("recsys.encoder.cache._SHARDS_A_JOB", 2)
    monkeypatch.setattr(encoder_module, "_CHUNK_TEXTS", 1)
    texts = ["a", "b b", "a", "c c c", "d d d d", "b b"]
    vectors = encode_cached(TextEncoder(config), texts, tmp_path)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2
    np.testing.assert_array_equal(vectors[[0, 1]], vectors[[2, 5]])
    np.testing.assert_array_equal(encode_cached(TextEncoder(config), texts[::-1], tmp_path), vectors[::-1])


def test_of_a_large_cache_only_shards_with_wanted_texts_are_read(
    config: EncoderConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for text in ("a", "b b", "c c c"):
        encode_cached(TextEncoder(config), [text], tmp_path)
    read: list[str] = []

    class Recording:
        def __init__(self, path: Path, framework: str) -> None:
            self._file = safe_open(path, framework=framework)

        def __enter__(self):
            return self

        def __exit__(self, *_: object) -> None:
            return None

        def get_tensor(self, name: str) -> np.ndarray:
            read.append(name)
            return self._file.get_tensor(name)

    monkeypatch.setattr("recsys.encoder.cache.safe_open", Recording)
    encode_cached(TextEncoder(config), ["b b"], tmp_path)
    assert (read.count("hashes"), read.count("vectors")) == (3, 1)


def test_no_texts_are_no_vectors(config: EncoderConfig, tmp_path: Path) -> None:
    assert encode_cached(TextEncoder(config), [], tmp_path).shape == (0, 16)


def test_damaged_shard_is_made_again(config: EncoderConfig, tmp_path: Path, capsys) -> None:
    first = encode_cached(TextEncoder(config), TEXTS, tmp_path)
    (shard,) = tmp_path.rglob("*.safetensors")
    shard.write_bytes(b"damaged")
    np.testing.assert_array_equal(encode_cached(TextEncoder(config), TEXTS, tmp_path), first)
    assert "is damaged" in capsys.readouterr().err


def test_unknown_model_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(AssetError, match=r"encoder\.model '.*nothing-here' is no asset, no model directory"):
        TextEncoder(EncoderConfig(model=str(tmp_path / "nothing-here"))).encode(["a"])
    with pytest.raises(AssetError, match="holds data, not a model"):
        TextEncoder(EncoderConfig(model="ml-100k")).encode(["a"])


def test_catalogue_becomes_one_vector_an_item(config: EncoderConfig, catalog: Catalog, tmp_path: Path) -> None:
    embeddings = encode_catalog(catalog, config, tmp_path)
    assert (embeddings.num_items, embeddings.dim, embeddings.text_dim) == (5, 16, 16)
    new = TextEncoder(config).encode(["blue lipstick"])
    np.testing.assert_allclose(embeddings.match(new)[0], embeddings.vectors[1], atol=1e-6)


def test_fused_vectors_hold_text_and_neighbours(
    config: EncoderConfig, catalog: Catalog, train: Sequences, tmp_path: Path
) -> None:
    fused_config = config.model_copy(update={"collaborative_weight": 0.5})
    text = encode_catalog(catalog, config, tmp_path)
    fused = encode_catalog(catalog, fused_config, tmp_path, train)
    # 5 items leave room for 4 collaborative dimensions, whatever the config asks for.
    assert (fused.dim, fused.text_dim) == (20, 16)
    np.testing.assert_allclose(fused.vectors[:, :16], text.vectors, atol=1e-6)
    norms = np.linalg.norm(fused.vectors[:, 16:], axis=1)
    np.testing.assert_allclose(norms, [0.5, 0.5, 0.5, 0.0, 0.0], atol=1e-6)
    new = fused.match(text.vectors[3:])
    np.testing.assert_allclose(new, fused.vectors[3:], atol=1e-6)
    with pytest.raises(DataError, match=r"must be \[k, 16\], found \[5, 20\]"):
        fused.match(fused.vectors)
    with pytest.raises(ConfigError, match="need the training sequences"):
        encode_catalog(catalog, fused_config, tmp_path)


def test_catalogue_of_one_item_cannot_be_fused(config: EncoderConfig, catalog: Catalog, tmp_path: Path) -> None:
    fused = config.model_copy(update={"collaborative_weight": 0.5})
    one = Catalog(frame=catalog.frame.head(1))
    with pytest.raises(ConfigError, match="above 0, which needs at least 2 items, found 1; set"):
        encode_catalog(one, fused, tmp_path, Sequences.from_lists([[0]]))


def test_embeddings_survive_the_disk(config: EncoderConfig, catalog: Catalog, tmp_path: Path) -> None:
    embeddings = encode_catalog(catalog, config, tmp_path)
    embeddings.save(tmp_path / "embeddings-artifact")
    loaded = ItemEmbeddings.load(tmp_path / "embeddings-artifact")
    np.testing.assert_array_equal(loaded.vectors, embeddings.vectors)
    assert loaded.encoder == config
    assert loaded.text_dim == 16
    with pytest.raises(ArtifactError, match="cannot read item embeddings"):
        ItemEmbeddings.load(tmp_path / "missing")


@pytest.mark.slow
def test_default_model_brings_similar_items_together() -> None:
    """Fetches the real weights when they are not cached."""
    vectors = TextEncoder(EncoderConfig()).encode(["OPI red nail polish", "nail lacquer in crimson", "garden hose"])
    assert vectors.shape == (3, 384)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2
