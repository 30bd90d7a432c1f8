from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from vector_quantize_pytorch import ResidualVQ

from recsys.tokenizer import RQVAEConfig, build_tokenizer
from recsys.tokenizer.rqvae import RQVAETokenizer


def quantizer(levels: int = 3) -> ResidualVQ:
    torch.manual_seed(0)
    return ResidualVQ(dim=4, num_quantizers=levels, codebook_size=8, kmeans_init=True, rotation_trick=False)


def test_reconstruction_passes_straight_through_once_whatever_the_number_of_levels() -> None:
    tokenizer = RQVAETokenizer(RQVAEConfig(levels=3, commitment_weight=0))
    tokenizer._encoder, tokenizer._decoder = nn.Sequential(), nn.Sequential()
    batch = torch.randn(64, 4, requires_grad=True)
    # With identities around it the loss is ||q(z) - z||^2: the gradient through q cancels the other exactly when it
    # is 1, and a step per level would leave (levels - 1) times it.
    (gradient,) = torch.autograd.grad(tokenizer._loss(batch, quantizer()), batch)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient))


def test_commitment_pulls_the_latent_from_every_level() -> None:
    tokenizer = RQVAETokenizer(RQVAEConfig(levels=2, commitment_weight=1))
    tokenizer._encoder, tokenizer._decoder = nn.Sequential(), nn.Sequential()
    batch = torch.randn(64, 4, requires_grad=True)
    vq = quantizer(levels=2).eval()
    vq.train()
    with torch.no_grad():
        vq(batch)  # k-means happens here, so that the codebooks below are those of the loss
    books = [layer.codebook.clone() for layer in vq.layers]
    (gradient,) = torch.autograd.grad(tokenizer._loss(batch, vq), batch)
    residual, expected = batch.detach(), torch.zeros_like(batch)
    for book in books:
        residual = residual - book[torch.cdist(residual, book).argmin(dim=1)]
        expected += 2 * residual / len(batch)
    torch.testing.assert_close(gradient, expected)


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
