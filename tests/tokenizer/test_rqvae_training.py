from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from recsys.tokenizer import RQVAEConfig, build_tokenizer, tokenizer_report
from recsys.tokenizer.config import CodebookKind
from recsys.tokenizer.quantizer import ResidualQuantizer
from recsys.tokenizer.rqvae import RQVAETokenizer


def small_quantizer(kind: CodebookKind, levels: int = 3) -> ResidualQuantizer:
    torch.manual_seed(0)
    made = ResidualQuantizer(dim=4, levels=levels, codebook_size=8, kind=kind, commitment_weight=0)
    made.initialise(torch.randn(64, 4), seed=0)
    return made


@pytest.mark.parametrize("kind", ["ema", "gradient", "simvq"])
def test_reconstruction_reaches_the_encoder_once_whatever_the_number_of_levels(kind: CodebookKind) -> None:
    tokenizer = RQVAETokenizer(RQVAEConfig(levels=3, codebook=kind))
    tokenizer.encoder, tokenizer.decoder = nn.Sequential(), nn.Sequential()
    inputs = torch.randn(64, 4, requires_grad=True)
    # With identities around it the loss is ||q(z) - z||^2: the gradient through q cancels the other exactly when it
    # is 1, and a step per level would leave (levels - 1) times it.
    loss = tokenizer._loss(inputs, torch.arange(64), small_quantizer(kind))
    (gradient,) = torch.autograd.grad(loss, inputs)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("kind", ["gradient", "simvq"])
def test_codebooks_learn_by_gradient(kind: CodebookKind, embeddings: np.ndarray) -> None:
    config = RQVAEConfig(levels=2, codebook_size=32, code_dim=8, hidden=(16,), warmup_steps=20, steps=60, codebook=kind)
    start = config.model_copy(update={"learning_rate": 1e-9})
    books = [build_tokenizer(settings) for settings in (start, config)]
    for tokenizer in books:
        tokenizer.fit(embeddings)
    errors = [np.square(t.reconstruct(t.encode_raw(embeddings)) - embeddings).sum() for t in books]
    assert errors[1] < 0.7 * errors[0]


def test_threshold_that_would_replace_living_codes_is_warned_about(embeddings, capsys) -> None:
    bad = RQVAEConfig(codebook_size=16, batch_size=64, dead_code_threshold=3, warmup_steps=1, steps=1, hidden=(8,))
    build_tokenizer(bad).fit(embeddings)
    assert "dead_code_threshold 3 is above half of the even count 4" in capsys.readouterr().err
    build_tokenizer(bad.model_copy(update={"dead_code_threshold": 2.0})).fit(embeddings)
    assert "dead_code_threshold" not in capsys.readouterr().err


@pytest.mark.parametrize("threshold", [None, 0.0])
def test_dead_codes_come_back_to_life(threshold: float | None) -> None:
    rng = np.random.default_rng(0)
    # Half of the items are one point: k-means from random items starts with many centroids on it.
    vectors = np.concatenate([np.zeros((2000, 8)), rng.normal(size=(2000, 8))]).astype(np.float32)
    config = RQVAEConfig(
        levels=1,
        codebook_size=64,
        code_dim=8,
        hidden=(16,),
        kmeans_iterations=1,
        warmup_steps=20,
        steps=150,
        codebook_decay=0.9,
        dead_code_threshold=threshold,
    )
    tokenizer = build_tokenizer(config)
    with pytest.raises(Exception, match="do not fit"):
        tokenizer.fit(vectors)
    used = len(np.unique(tokenizer.encode_raw(vectors)))
    assert used >= 60 if threshold is None else used < 50


def test_codes_that_stay_unused_are_warned_about_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    vectors = np.concatenate([1e-3 * rng.normal(size=(1300, 8)), rng.normal(size=(20, 8))]).astype(np.float32)
    config = RQVAEConfig(levels=2, codebook_size=64, code_dim=8, hidden=(16,), warmup_steps=20, steps=20)
    build_tokenizer(config).fit(vectors)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert len(lines) == 1
    assert lines[0].startswith("warning: of 64 codes level 1 uses")
    assert "set tokenizer.codebook to simvq" in lines[0]
    build_tokenizer(config).fit(rng.normal(size=(1300, 8)).astype(np.float32))
    assert "warning" not in capsys.readouterr().err


def test_restart_keeps_free_codewords_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    # Codebooks that start on a twentieth of the space the items take.
    vectors = np.random.default_rng(0).normal(size=(1500, 8)).astype(np.float32)
    config = RQVAEConfig(
        levels=2, codebook_size=64, code_dim=8, hidden=(16,), warmup_steps=0, steps=150, codebook="gradient"
    )
    initialise = ResidualQuantizer.initialise

    def badly(self: ResidualQuantizer, latents: torch.Tensor, seed: int) -> None:
        initialise(self, latents, seed)
        with torch.no_grad():
            self.codewords += 5

    monkeypatch.setattr(ResidualQuantizer, "initialise", badly)

    def unused() -> int:
        tokenizer = build_tokenizer(config)
        tokenizer.fit(vectors)
        return sum(64 - len(np.unique(level)) for level in tokenizer.encode_raw(vectors).T)

    restarted = unused()
    monkeypatch.setattr(ResidualQuantizer, "restart_dead_codes", lambda *_: 0)
    assert restarted <= 3
    assert unused() >= 40


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"uniform_last_level": True}, "uniform_last_level is true, which needs codebook gradient or simvq, not ema"),
        ({"diversity_weight": 0.1}, "diversity_weight is above 0, which needs codebook gradient, not ema"),
        ({"diversity_weight": 0.1, "codebook": "simvq"}, "needs codebook gradient, not simvq"),
        ({"dead_code_threshold": 1.0, "codebook": "gradient"}, "dead_code_threshold is for codebook ema, not gradient"),
    ],
)
def test_options_that_do_not_fit_together_are_named(settings: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RQVAEConfig(**settings)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ema", "gradient", "simvq"])
def test_codebooks_of_a_catalogue_of_thousands_are_healthy(kind: CodebookKind) -> None:
    rng = np.random.default_rng(0)
    factors = rng.normal(size=(300, 24))[rng.integers(0, 300, size=6000)] + 0.6 * rng.normal(size=(6000, 24))
    vectors = (factors @ rng.normal(size=(24, 64))).astype(np.float32)
    vectors[:60] = vectors[60:120]
    tokenizer = build_tokenizer(RQVAEConfig(levels=4, codebook=kind, hidden=(64,), warmup_steps=100, steps=500))
    report = tokenizer_report(tokenizer.fit(vectors), tokenizer, vectors)
    assert (report["dup_rate"], report["max_group"]) == (0.0, 1)
    assert report["dup_rate_before"] >= report["exact_dup_rate"] == pytest.approx(0.01)
    assert min(report["perplexity_before"]) >= 100
    assert min(report["used_codes_before"]) >= 0.95 * 256
    assert report["moved_mean_rank"] <= 5
    assert (np.diff(report["rel_recon"]) < 0).all()
