"""Parallel codebooks: promises of every tokenizer, and that the codes of an item say different things."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.numpy import load_file, save_file
from sklearn.metrics import adjusted_mutual_info_score

from recsys.errors import ArtifactError, DataError
from recsys.tokenizer.mpq import MPQTokenizer, decorrelation, imbalance, orthogonality
from recsys.tokenizer.mpq_config import MPQConfig
from recsys.tokenizer.quantizer import Quantized

SMALL = MPQConfig(
    num_experts=3,
    codebook_size=12,
    code_dim=4,
    hidden=(24,),
    decoder_hidden=(24,),
    warmup_steps=40,
    steps=120,
    batch_size=200,
    learning_rate=3e-3,
    codebook_decay=0.9,
)


@pytest.fixture(scope="module")
def factors() -> np.ndarray:
    """float32 [600, 24]: three independent groups of 6 clusters each, mixed into all dimensions; 0-1 and 2-4 equal."""
    rng = np.random.default_rng(0)
    mixing = np.linalg.qr(rng.normal(size=(24, 24)))[0]
    parts = [rng.normal(size=(6, 4))[rng.integers(6, size=600)] for _ in range(3)]
    vectors = np.concatenate([*parts, np.zeros((600, 12))], axis=1) + 0.15 * rng.normal(size=(600, 24))
    vectors = (vectors @ mixing).astype(np.float32)
    vectors[1] = vectors[0]
    vectors[3:5] = vectors[2]
    return vectors


@pytest.fixture(scope="module")
def fitted(factors):
    tokenizer = MPQTokenizer(SMALL)
    return tokenizer, tokenizer.fit(factors)


def redundancy(raw_codes: np.ndarray) -> float:
    """Mean adjusted mutual information between the codes of two experts: 0 for independent ones, 1 for equal ones."""
    pairs = itertools.combinations(raw_codes.T, 2)
    return float(np.mean([adjusted_mutual_info_score(a, b) for a, b in pairs]))


def perplexity(codes: np.ndarray) -> float:
    shares = np.bincount(codes) / len(codes)
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def relative_error(tokenizer: MPQTokenizer, vectors: np.ndarray, codes: np.ndarray, experts: tuple[int, ...]) -> float:
    error = np.square(vectors - tokenizer.reconstruct_from(codes[:, experts], experts)).sum()
    return float(error / np.square(vectors - vectors.mean(axis=0)).sum())


def test_every_item_has_its_own_set_even_exact_duplicates(fitted) -> None:
    _, ids = fitted
    assert ids.codes.shape == (600, 3)
    assert ids.codes.dtype == np.int64
    assert not ids.ordered
    assert len(np.unique(ids.codes, axis=0)) == 600
    assert (ids.raw_codes[0] == ids.raw_codes[1]).all()
    assert (ids.raw_codes[2] == ids.raw_codes[[3, 4]]).all()


def test_items_that_collide_change_few_codes_and_the_others_none(fitted) -> None:
    _, ids = fitted
    changes = (ids.codes != ids.raw_codes).sum(axis=1)
    _, inverse, sizes = np.unique(ids.raw_codes, axis=0, return_inverse=True, return_counts=True)
    assert (changes[sizes[inverse] == 1] == 0).all()
    assert (changes > 0).any()
    assert changes.mean() < 1


def test_same_seed_same_codes_other_seed_other_codes_and_global_randomness_is_left_alone(factors) -> None:
    quick = SMALL.model_copy(update={"warmup_steps": 5, "steps": 15})
    before = torch.random.get_rng_state()
    codes = MPQTokenizer(quick).fit(factors).codes
    assert (torch.random.get_rng_state() == before).all()
    torch.rand(3)
    np.testing.assert_array_equal(MPQTokenizer(quick).fit(factors).codes, codes)
    other = MPQTokenizer(quick.model_copy(update={"seed": 1})).fit(factors)
    assert (other.codes != codes).any()


def test_encoding_items_alone_repeats_their_raw_codes(fitted, factors) -> None:
    tokenizer, ids = fitted
    np.testing.assert_array_equal(tokenizer.encode_raw(factors), ids.raw_codes)
    alone = np.concatenate([tokenizer.encode_raw(factors[[item]]) for item in range(600)])
    np.testing.assert_array_equal(alone, ids.raw_codes)


def test_new_items_get_free_sets_near_their_own(fitted, factors) -> None:
    tokenizer, ids = fitted
    new = tokenizer.encode(np.repeat(factors[:3], 2, axis=0), ids.codes)
    assert len(np.unique(np.concatenate([ids.codes, new]), axis=0)) == 606
    free = tokenizer.encode(factors[:1], np.zeros((0, 3), dtype=np.int64))
    np.testing.assert_array_equal(free, ids.raw_codes[:1])


def test_every_expert_adds_something_that_the_others_do_not_say(fitted, factors) -> None:
    tokenizer, ids = fitted
    full = relative_error(tokenizer, factors, ids.raw_codes, (0, 1, 2))
    assert full < 0.5
    for dropped in range(3):
        rest = tuple(expert for expert in range(3) if expert != dropped)
        assert relative_error(tokenizer, factors, ids.raw_codes, rest) >= 1.3 * full


def test_codes_are_used_and_not_redundant(fitted) -> None:
    _, ids = fitted
    assert redundancy(ids.raw_codes) <= 0.5
    assert all(perplexity(codes) >= 0.4 * 12 for codes in ids.raw_codes.T)


def test_decorrelation_over_the_batch_makes_codes_less_redundant_than_orthogonality_per_item(fitted, factors) -> None:
    """Orthogonality can reach zero while experts carve the same partition."""
    weights = {"decorrelation_weight": 0.0, "orthogonality_weight": 1.0}
    tokenizer = MPQTokenizer(SMALL.model_copy(update=weights))
    orthogonal = tokenizer.fit(factors).raw_codes
    outputs = list(torch.from_numpy(tokenizer.latents(factors)).unbind(1))
    assert orthogonality(outputs) < 0.1
    assert redundancy(fitted[1].raw_codes) < 0.7 * redundancy(orthogonal)


def test_split_views_read_their_own_part_only() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(300, 10)).astype(np.float32)
    config = SMALL.model_copy(update={"views": "split", "view_widths": (6, 4), "steps": 20, "warmup_steps": 5})
    tokenizer = MPQTokenizer(config)
    raw_codes = tokenizer.fit(vectors).raw_codes
    other = vectors.copy()
    other[:, 6:] = rng.normal(size=(300, 4))
    changed = (tokenizer.encode_raw(other) != raw_codes).any(axis=0)
    # Experts take the two parts in turn: the first and the third read the part that stayed.
    assert changed.tolist() == [False, True, False]


def test_saved_tokenizer_does_the_same(fitted, factors, tmp_path: Path) -> None:
    tokenizer, ids = fitted
    tokenizer.save(tmp_path / "tokenizer")
    loaded = MPQTokenizer.load(tmp_path / "tokenizer", SMALL)
    np.testing.assert_array_equal(loaded.latents(factors), tokenizer.latents(factors))
    np.testing.assert_array_equal(loaded.encode(factors[:5], ids.codes), tokenizer.encode(factors[:5], ids.codes))
    np.testing.assert_array_equal(loaded.reconstruct(ids.codes), tokenizer.reconstruct(ids.codes))
    for ours, theirs in zip(tokenizer.codebooks, loaded.codebooks, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_arrays_that_do_not_fit_the_config_are_refused(fitted, tmp_path: Path) -> None:
    tokenizer, _ = fitted
    tokenizer.save(tmp_path)
    file = tmp_path / "tokenizer.safetensors"
    arrays = load_file(file)
    for change, message in (
        ({"codebook.2": None}, "2 codebooks, but its config needs 3"),
        ({"codebook.1": np.zeros((12, 9), dtype=np.float32)}, "codebook.1 has shape"),
        ({"router.weight": None}, "lacks router.weight"),
        ({"experts.0.0.weight": np.zeros((3, 3))}, "experts.0.0.weight has shape"),
        ({"gate": np.full(3, np.nan)}, "gate holds NaN"),
        ({"codebook.1": None}, "lacks codebook.1"),
        ({"codebook.0": np.zeros((), dtype=np.float32)}, "codebook.0 has shape"),
        ({"decoder.0.bias": np.full(24, np.nan)}, "decoder.0.bias holds NaN"),
    ):
        save_file({name: array for name, array in (arrays | change).items() if array is not None}, file)
        with pytest.raises(ArtifactError, match=message):
            MPQTokenizer.load(tmp_path, SMALL)
    file.write_bytes(b"damaged")
    with pytest.raises(ArtifactError, match="cannot read the tokenizer's arrays"):
        MPQTokenizer.load(tmp_path, SMALL)


def test_equal_items_and_catalogues_smaller_than_the_codebooks_work(capsys) -> None:
    quick = SMALL.model_copy(update={"steps": 5, "warmup_steps": 2, "codebook_size": 64})
    few = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
    assert MPQTokenizer(quick).fit(few).codebook_sizes == (20, 20, 20)
    assert "exceeds the 20 items" in capsys.readouterr().err
    ids = MPQTokenizer(quick).fit(np.ones((20, 6), dtype=np.float32))
    assert len(np.unique(ids.codes, axis=0)) == 20


def test_broken_embeddings_are_named(fitted, factors) -> None:
    tokenizer, ids = fitted
    broken = factors.copy()
    broken[7, 3] = np.nan
    with pytest.raises(DataError, match=r"1 of 600 rows hold NaN.*\[7\]"):
        MPQTokenizer(SMALL).fit(broken)
    with pytest.raises(DataError, match="embeddings have 5 dimensions, but the tokenizer was fitted on 24"):
        tokenizer.encode_raw(factors[:, :5])
    with pytest.raises(DataError, match="must be unique"):
        tokenizer.encode(factors[:1], np.repeat(ids.codes[:1], 2, axis=0))
    with pytest.raises(DataError, match="has not been fitted"):
        MPQTokenizer(SMALL).encode_raw(factors)


def test_views_that_do_not_fit_the_embeddings_are_refused(factors) -> None:
    with pytest.raises(DataError, match="the widths must add up to 24"):
        MPQTokenizer(SMALL.model_copy(update={"views": "split", "view_widths": (6, 4)})).fit(factors)
    with pytest.raises(ValidationError, match="view_widths needs views=split"):
        MPQConfig(view_widths=(6, 4))
    with pytest.raises(ValidationError, match="must hold 1 to num_experts=2 positive widths"):
        MPQConfig(num_experts=2, views="split", view_widths=(1, 2, 3))


def test_penalties_by_hand() -> None:
    first = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    turned = torch.stack([-first[:, 1], first[:, 0]], dim=1)
    # Turned by 90 degrees outputs carry the same information: decorrelation sees it, cosines of items do not.
    assert decorrelation([first, turned]).item() == pytest.approx(1.0, abs=1e-3)
    assert orthogonality([first, turned]).item() == pytest.approx(0.0, abs=1e-6)
    assert orthogonality([first, -first]).item() == pytest.approx(1.0, abs=1e-6)
    product = (first[:, :1] * first[:, 1:]).expand(-1, 2)
    assert decorrelation([first, product]).item() == pytest.approx(0.0, abs=1e-6)
    assert imbalance(torch.zeros(5, 4)).item() == pytest.approx(1.0)
    assert imbalance(torch.tensor([[50.0, 0.0, 0.0, 0.0]])).item() == pytest.approx(4.0)


class _FixedCode:
    """A quantizer with a single codeword for each row of the batch."""

    def __init__(self, codeword: torch.Tensor) -> None:
        self.codeword = codeword

    def __call__(self, latent: torch.Tensor) -> Quantized:
        vector = latent + (self.codeword - latent).detach()
        codes = torch.zeros(len(latent), 1, dtype=torch.int64)
        return Quantized(codes=codes, vector=vector, levels=self.codeword[None], loss=torch.zeros(()))


def test_reconstruction_passes_straight_through_each_expert(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient at an expert's output is the one at its codeword, times the router's weight, here 1."""
    tokenizer = MPQTokenizer(SMALL.model_copy(update={"decorrelation_weight": 0.0}))
    torch.manual_seed(0)
    tokenizer._build(6)
    batch = torch.randn(8, 6)
    outputs = [torch.randn(8, 4, requires_grad=True) for _ in range(3)]
    codewords = [torch.randn(8, 4, requires_grad=True) for _ in range(3)]
    monkeypatch.setattr(tokenizer, "_outputs", lambda inputs: outputs)
    loss = tokenizer._loss(batch, [_FixedCode(codeword.detach()) for codeword in codewords])
    error = (tokenizer._decoder(sum(codewords)) - batch).square().sum(1).mean()
    for ours, theirs in zip(torch.autograd.grad(loss, outputs), torch.autograd.grad(error, codewords), strict=True):
        torch.testing.assert_close(ours, theirs)
