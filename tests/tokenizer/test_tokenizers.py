"""What every semantic-ID tokenizer promises, tested for each of them.

Tests with `config` or `fitted` run for tokenizers of ordered codes; parallel codes (`mpq`) take part where the order
of codes plays no part, and have their own file for the rest.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors.numpy import load_file, save_file

from recsys.data import Sequences
from recsys.errors import ArtifactError, DataError
from recsys.tokenizer import (
    DASConfig,
    MPQConfig,
    RKMeansConfig,
    RQVAEConfig,
    SemanticIds,
    TokenizerConfig,
    build_tokenizer,
    load_tokenizer,
    residual,
)

CONFIGS = {
    "rkmeans": RKMeansConfig(levels=3, codebook_size=16, code_dim=8),
    "rqvae": RQVAEConfig(
        levels=3, codebook_size=16, code_dim=8, hidden=(32,), warmup_steps=100, steps=300, codebook_decay=0.9
    ),
    "das": DASConfig(
        levels=3,
        codebook_size=16,
        code_dim=8,
        hidden=(32,),
        warmup_steps=100,
        steps=300,
        batch_size=256,
        behaviour_dim=8,
        codebook_decay=0.9,
    ),
}
_GRADIENT = CONFIGS["rqvae"].model_copy(update={"codebook": "gradient"})
OPTIONS = CONFIGS | {
    "rkmeans lower": CONFIGS["rkmeans"].model_copy(update={"balanced": "lower"}),
    "rkmeans all": CONFIGS["rkmeans"].model_copy(update={"balanced": "all"}),
    "gradient": _GRADIENT,
    "simvq": _GRADIENT.model_copy(update={"codebook": "simvq"}),
    "rotation": _GRADIENT.model_copy(update={"estimator": "rotation"}),
    "uniform": _GRADIENT.model_copy(update={"uniform_last_level": True}),
    "letter": _GRADIENT.model_copy(update={"collaborative_weight": 0.1, "diversity_weight": 0.01}),
    "extra level": CONFIGS["rkmeans"].model_copy(update={"collisions": "extra_level"}),
    "das with extra_level": CONFIGS["das"].model_copy(update={"collisions": "extra_level"}),
    "mpq": MPQConfig(num_experts=3, codebook_size=16, code_dim=8, hidden=(32,), decoder_hidden=(32,)),
}


def quick(config: TokenizerConfig, **changes: object) -> TokenizerConfig:
    """The same tokenizer, hardly trained: for tests in which good codes play no part."""
    steps = {} if isinstance(config, RKMeansConfig) else {"warmup_steps": 5, "steps": 20}
    return config.model_copy(update=steps | changes)


def clicks(num_items: int) -> Sequences:
    """Toy behaviour: 100 users with 8 clicks each, in one of 8 equal parts of the catalogue (of 400, its clusters)."""
    rng = np.random.default_rng(0)
    part = num_items // 8
    return Sequences.from_lists([part * (user % 8) + rng.integers(0, part, 8) for user in range(100)])


@pytest.fixture(scope="module", params=CONFIGS)
def config(request: pytest.FixtureRequest) -> TokenizerConfig:
    return CONFIGS[request.param]


@pytest.fixture(scope="module")
def fitted(config, embeddings):
    tokenizer = build_tokenizer(config)
    return tokenizer, tokenizer.fit(embeddings, clicks(400))


def test_every_item_has_its_own_code_even_exact_duplicates(fitted, embeddings) -> None:
    _, ids = fitted
    assert ids.codes.shape == (400, 3)
    assert ids.codes.dtype == np.int64
    assert len(np.unique(ids.codes, axis=0)) == 400
    assert (ids.raw_codes[0] == ids.raw_codes[1]).all()


def test_same_seed_same_codes_other_seed_other_codes(config, embeddings) -> None:
    codes = [build_tokenizer(quick(config, seed=seed)).fit(embeddings, clicks(400)).codes for seed in (0, 0, 1)]
    np.testing.assert_array_equal(codes[0], codes[1])
    assert (codes[0] != codes[2]).any()


def test_encoding_items_alone_repeats_their_raw_codes(fitted, embeddings) -> None:
    tokenizer, ids = fitted
    np.testing.assert_array_equal(tokenizer.encode_raw(embeddings), ids.raw_codes)
    alone = np.concatenate([tokenizer.encode_raw(embeddings[[item]]) for item in range(400)])
    np.testing.assert_array_equal(alone, ids.raw_codes)


def test_new_items_get_free_codes_below_the_same_prefix(fitted, embeddings) -> None:
    tokenizer, ids = fitted
    new = tokenizer.encode(np.repeat(embeddings[:3], 2, axis=0), ids.codes)
    assert len(np.unique(np.concatenate([ids.codes, new]), axis=0)) == 406
    np.testing.assert_array_equal(new[:, :2], np.repeat(ids.raw_codes[:3, :2], 2, axis=0))
    nearest = tokenizer.encode(embeddings[:1], np.zeros((0, 3), dtype=np.int64))
    np.testing.assert_array_equal(nearest, ids.raw_codes[:1])


def test_first_codes_tell_the_clusters_apart(fitted) -> None:
    _, ids = fitted
    cluster = np.arange(400) // 50
    owners = {code: set(cluster[ids.codes[:, 0] == code]) for code in np.unique(ids.codes[:, 0])}
    assert all(len(owner) == 1 for owner in owners.values())


def test_reconstruction_improves_with_every_level(fitted, embeddings) -> None:
    tokenizer, ids = fitted
    errors = [float(np.square(embeddings.mean(axis=0) - embeddings).sum())]
    for depth in (1, 2, 3):
        errors.append(float(np.square(tokenizer.reconstruct(ids.raw_codes[:, :depth]) - embeddings).sum()))
    assert errors == sorted(errors, reverse=True)
    assert len(set(errors)) == 4


def test_every_code_is_used(fitted) -> None:
    _, ids = fitted
    assert [len(np.unique(level)) for level in ids.raw_codes.T] == [16, 16, 16]


def test_saved_tokenizer_does_the_same(fitted, embeddings, tmp_path: Path) -> None:
    tokenizer, ids = fitted
    tokenizer.save(tmp_path / "tokenizer")
    loaded = load_tokenizer(tmp_path / "tokenizer")
    assert loaded.codebook_sizes == (16, 16, 16)
    np.testing.assert_array_equal(loaded.encode(embeddings[:5], ids.codes), tokenizer.encode(embeddings[:5], ids.codes))
    np.testing.assert_array_equal(loaded.reconstruct(ids.codes), tokenizer.reconstruct(ids.codes))
    for ours, theirs in zip(tokenizer.codebooks, loaded.codebooks, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_is_the_same_again_and_bit_for_bit_after_loading(name: str, embeddings, tmp_path: Path) -> None:
    config = quick(OPTIONS[name])
    tokenizer = build_tokenizer(config)
    ids = tokenizer.fit(embeddings, clicks(400))
    assert len(np.unique(ids.codes, axis=0)) == 400
    np.testing.assert_array_equal(build_tokenizer(config).fit(embeddings, clicks(400)).codes, ids.codes)

    tokenizer.save(tmp_path / "tokenizer")
    loaded = load_tokenizer(tmp_path / "tokenizer")
    assert loaded.config == config
    assert loaded.codebook_sizes == ids.codebook_sizes
    for ours, theirs in zip(tokenizer.codebooks, loaded.codebooks, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(loaded.latents(embeddings), tokenizer.latents(embeddings))
    np.testing.assert_array_equal(loaded.encode_raw(embeddings), ids.raw_codes)
    np.testing.assert_array_equal(loaded.reconstruct(ids.codes), tokenizer.reconstruct(ids.codes))


@pytest.mark.parametrize("block_cells", [24 * 7, 24 * 400])
def test_size_of_the_blocks_does_not_matter(config, fitted, embeddings, block_cells: int, monkeypatch) -> None:
    tokenizer, ids = fitted
    monkeypatch.setattr(residual, "_BLOCK_CELLS", block_cells)
    np.testing.assert_array_equal(tokenizer.encode_raw(embeddings), ids.raw_codes)
    np.testing.assert_allclose(tokenizer.latents(embeddings[:100]), tokenizer.latents(embeddings)[:100], atol=1e-12)
    if isinstance(config, RKMeansConfig):
        np.testing.assert_array_equal(build_tokenizer(config).fit(embeddings, clicks(400)).raw_codes, ids.raw_codes)


def test_catalogue_smaller_than_the_codebook_works(config, capsys) -> None:
    few = np.random.default_rng(0).normal(size=(34, 6)).astype(np.float32)
    ids = build_tokenizer(quick(config, codebook_size=256)).fit(few, clicks(34))
    assert ids.codebook_sizes == (34, 34, 34)
    assert "exceeds the 34 items" in capsys.readouterr().err


def test_equal_embeddings_of_all_items_work(config) -> None:
    ids = build_tokenizer(quick(config)).fit(np.ones((20, 6), dtype=np.float32), clicks(20))
    assert len(np.unique(ids.codes, axis=0)) == 20


def test_broken_embeddings_are_named(config, embeddings) -> None:
    broken = embeddings.copy()
    broken[[7, 9], 3] = np.nan
    with pytest.raises(DataError, match=r"2 of 400 rows hold NaN or infinity, e\.g\. rows \[7, 9\]"):
        build_tokenizer(config).fit(broken, clicks(400))


def test_too_few_items_and_wrong_shapes_are_errors(config, fitted, embeddings) -> None:
    tokenizer, ids = fitted
    with pytest.raises(DataError, match="at least 2 items"):
        build_tokenizer(config).fit(embeddings[:1], clicks(400))
    with pytest.raises(DataError, match=r"\[num_items, dim\]"):
        build_tokenizer(config).fit(embeddings[0], clicks(400))
    with pytest.raises(DataError, match=r"\[num_items, dim\], found shape \[400, 0\]"):
        build_tokenizer(config).fit(embeddings[:, :0], clicks(400))
    with pytest.raises(DataError, match="12 dimensions, but the tokenizer was fitted on 24"):
        tokenizer.encode(embeddings[:, :12], ids.codes)
    with pytest.raises(DataError, match="not been fitted"):
        build_tokenizer(config).encode(embeddings, ids.codes)


def test_codes_of_another_tokenizer_are_refused(fitted, embeddings) -> None:
    tokenizer, ids = fitted
    with pytest.raises(DataError, match=r"400 of 400 rows have a code outside .* codebook has 16"):
        tokenizer.encode(embeddings[:1], ids.codes + 16)
    with pytest.raises(DataError, match=r"int64 \[n, 3\]"):
        tokenizer.encode(embeddings[:1], ids.codes[:, :2])
    with pytest.raises(DataError, match="400 distinct codes; must be unique"):
        tokenizer.encode(embeddings[:1], np.concatenate([ids.codes, ids.codes[:1]]))


def test_more_items_than_codes_is_an_error(config, embeddings) -> None:
    with pytest.raises(DataError, match="400 items do not fit into 16 codes"):
        build_tokenizer(quick(config, levels=1)).fit(embeddings, clicks(400))


def test_damaged_tokenizer_is_one_error(fitted, tmp_path: Path) -> None:
    tokenizer, _ = fitted
    tokenizer.save(tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "tokenizer.safetensors").write_bytes(b"damaged")
    with pytest.raises(ArtifactError, match="cannot read the tokenizer's arrays"):
        load_tokenizer(tmp_path / "tokenizer")
    content = json.loads((tmp_path / "tokenizer" / "tokenizer.json").read_text())
    (tmp_path / "tokenizer" / "tokenizer.json").write_text(json.dumps(content | {"format": 99}))
    with pytest.raises(ArtifactError, match="has format 99"):
        load_tokenizer(tmp_path / "tokenizer")
    with pytest.raises(ArtifactError, match="cannot read the tokenizer's config"):
        load_tokenizer(tmp_path / "missing")


def test_arrays_of_another_shape_than_the_config_says_are_one_error(fitted, tmp_path: Path) -> None:
    tokenizer, _ = fitted
    directory = tmp_path / "tokenizer"

    def spoil(change: dict[str, np.ndarray | None]) -> Path:
        tokenizer.save(directory)
        arrays = load_file(directory / "tokenizer.safetensors")
        kept = {name: array for name, array in (arrays | change).items() if array is not None}
        save_file(kept, directory / "tokenizer.safetensors")
        return directory

    books = tokenizer.codebooks
    other = "encoder.0.weight" if "encoder.0.weight" in load_file(spoil({}) / "tokenizer.safetensors") else "axes"
    nan = np.full_like(books[1], np.nan)
    for change, message in (
        ({"codebook.1": books[1][:9]}, r"codebook\.1 has shape \[9, 8\], but its config needs \[16, 8\]"),
        ({"codebook.0": books[0][:, :5].copy()}, r"codebook\.0 has shape \[16, 5\], but its config needs \[16, 8\]"),
        ({"codebook.0": np.concatenate(books)}, r"codebook\.0 has shape \[48, 8\], but its config needs \[16, 8\]"),
        ({"codebook.2": books[2][0]}, r"codebook\.2 has shape \[8\]"),
        ({"codebook.1": None}, r"lacks codebook\.1"),
        ({"codebook.2": None}, "2 codebooks, but its config needs 3"),
        ({"codebook.1": nan}, r"codebook\.1 holds NaN or infinity; fit the tokenizer again"),
        ({"mean": np.zeros(7)}, "has shape"),
        ({other: np.zeros((3, 3))}, f"{other} has shape"),
        ({other: None}, f"lacks {other}"),
    ):
        with pytest.raises(ArtifactError, match=message):
            load_tokenizer(spoil(change))


def test_semantic_ids_survive_the_disk(fitted, tmp_path: Path) -> None:
    _, ids = fitted
    ids.save(tmp_path / "ids")
    loaded = SemanticIds.load(tmp_path / "ids")
    np.testing.assert_array_equal(loaded.codes, ids.codes)
    np.testing.assert_array_equal(loaded.raw_codes, ids.raw_codes)
    assert loaded.codebook_sizes == ids.codebook_sizes
    (tmp_path / "ids" / "semantic_ids.safetensors").write_bytes(b"damaged")
    with pytest.raises(ArtifactError, match="cannot read semantic ids"):
        SemanticIds.load(tmp_path / "ids")


def test_semantic_ids_refuse_what_is_not_unique_or_legal(fitted) -> None:
    _, ids = fitted
    with pytest.raises(DataError, match="400 items share 399 distinct codes"):
        dataclasses.replace(ids, codes=np.concatenate([ids.codes[:1], ids.codes[:1], ids.codes[2:]]))
    with pytest.raises(DataError, match="outside of its codebook"):
        dataclasses.replace(ids, codebook_sizes=(16, 16, 4))
    with pytest.raises(DataError, match="2 codebook sizes"):
        dataclasses.replace(ids, codebook_sizes=(16, 16))
    with pytest.raises(DataError, match="must be equal"):
        dataclasses.replace(ids, raw_codes=ids.raw_codes[1:])


def test_config_is_chosen_by_method() -> None:
    adapter: TypeAdapter[TokenizerConfig] = TypeAdapter(TokenizerConfig)
    assert isinstance(adapter.validate_python({"method": "rqvae", "steps": 5}), RQVAEConfig)
    with pytest.raises(ValidationError, match="steps"):
        adapter.validate_python({"method": "rkmeans", "steps": 5})


def test_fitting_leaves_the_global_random_state_alone(config, embeddings) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    build_tokenizer(quick(config)).fit(embeddings, clicks(400))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("balanced", ["none", "all"])
def test_codebooks_of_many_items_are_fitted_to_a_sample(balanced: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residual, "_FITTED_VECTORS", 200)
    monkeypatch.setattr(residual, "_FITTED_A_CODE", 1)
    fitted: list[int] = []
    kmeans = residual.kmeans

    def counted(vectors: np.ndarray, *arguments: object) -> np.ndarray:
        fitted.append(len(vectors))
        return kmeans(vectors, *arguments)

    for module in ("residual", "balanced"):
        monkeypatch.setattr(f"recsys.tokenizer.{module}.kmeans", counted)
    embeddings = np.random.default_rng(0).normal(size=(500, 8)).astype(np.float32)
    config = RKMeansConfig(levels=2, codebook_size=32, code_dim=4, balanced=balanced)
    ids = build_tokenizer(config).fit(embeddings)
    assert fitted == [200, 200]
    assert len(np.unique(ids.codes, axis=0)) == 500
    np.testing.assert_array_equal(build_tokenizer(config).fit(embeddings).codes, ids.codes)
