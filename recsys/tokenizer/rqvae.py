"""RQ-VAE: an autoencoder whose bottleneck is quantized level by level (TIGER, arXiv 2305.05065).

The codebooks are `ResidualVQ` of vector-quantize-pytorch: moving-average codewords (van den Oord et al., arXiv
1711.00937), k-means initialization and the revival of dead codes. Of its classes this one fits best, but not its
gradients: it takes a straight-through step per level, so the encoder would get the reconstruction gradient L times.
Here the quantizer sees a detached latent and therefore only keeps its codebooks; the gradients are made by hand:

    z_hat = z + sg(sum_l q_l - z)                     one straight-through step, on the sum
    loss  = ||x - x_hat||^2 + w sum_l ||r_l - sg(q_l)||^2,   r_l = z - sg(q_1 + ... + q_(l-1))

Both terms are sums over dimensions and means over the batch, so that settings carry over between embedding widths.
Once fitted, everything is arrays: `encode` needs no library and no randomness.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from vector_quantize_pytorch import ResidualVQ

from recsys.data import IntArray, Sequences
from recsys.progress import console, progress_bar
from recsys.tokenizer.artifact import load_tensors, save_tokenizer
from recsys.tokenizer.config import RQVAEConfig
from recsys.tokenizer.nearest import NearestCodeTokenizer
from recsys.tokenizer.residual import DoubleArray, FloatArray, summed_codes
from recsys.tokenizer.semantic_ids import SemanticIds, check_codes
from recsys.tokenizer.validation import check_embeddings, effective_codebook_size

# Revived codes need time to find their place, so none is moved in the last fifth of the steps.
_REVIVAL_SHARE = 0.8
# A larger catalogue starts from a sample of this size: the library's k-means holds all distances at once.
_KMEANS_ROWS = 1 << 17
_HEALTHY_THRESHOLD_SHARE = 0.5
_DEFAULT_THRESHOLD_SHARE = 0.25


class RQVAETokenizer(NearestCodeTokenizer):
    """Autoencoder warm-up, k-means on the latents of the whole catalogue, then joint training.

    Implements `SemanticIdTokenizer`.
    """

    def __init__(self, config: RQVAEConfig) -> None:
        super().__init__()
        self.config = config
        self._scale = 1.0
        self._encoder = nn.Sequential()
        self._decoder = nn.Sequential()

    def fit(self, embeddings: FloatArray, train: Sequences | None = None) -> SemanticIds:
        """Train on float32 [n, dim] and name these items. Leaves torch's global random state as it was."""
        check_embeddings(embeddings)
        self._mean = embeddings.mean(axis=0, dtype=np.float64)
        centred = embeddings - self._mean
        # Unit mean square norm: the losses, and so the settings, do not depend on the encoder's scale.
        self._scale = float(np.sqrt((centred**2).sum(axis=1).mean())) or 1.0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            self._train(torch.from_numpy((centred / self._scale).astype(np.float32)))
        return self._name_items(self.latents(embeddings))

    def latents(self, embeddings: FloatArray) -> DoubleArray:
        """float64 [n, code_dim]: the encoder's outputs."""
        inputs = torch.from_numpy((embeddings - self._mean) / self._scale)
        with torch.no_grad():
            return np.asarray(self._encoder(inputs).numpy(), dtype=np.float64)

    def reconstruct(self, codes: IntArray) -> FloatArray:
        """float32 [n, dim]: the embeddings that int64 [n, depth <= L] codes stand for."""
        check_codes(codes, self.codebook_sizes[: codes.shape[1]], "reconstruct")
        with torch.no_grad():
            decoded = self._decoder(torch.from_numpy(summed_codes(codes, self._codebooks))).numpy()
        return np.asarray(decoded * self._scale + self._mean, dtype=np.float32)

    def save(self, directory: Path) -> None:
        """Write the directory, whole or not at all."""
        tensors = {"mean": self._mean, "scale": np.asarray([self._scale])}
        for part, network in (("encoder", self._encoder), ("decoder", self._decoder)):
            tensors |= {f"{part}.{name}": value.numpy() for name, value in network.state_dict().items()}
        save_tokenizer(directory, self.config, self._codebooks, tensors)

    @classmethod
    def load(cls, directory: Path, config: RQVAEConfig) -> RQVAETokenizer:
        """Read what `save` wrote; `load_tokenizer` finds the config."""
        tokenizer = cls(config)
        tokenizer._codebooks, tensors = load_tensors(directory, {"mean", "scale", "encoder.0.weight"})
        tokenizer._mean, tokenizer._scale = tensors["mean"], float(tensors["scale"][0])
        tokenizer._build(len(tokenizer._mean))
        for part, network in (("encoder", tokenizer._encoder), ("decoder", tokenizer._decoder)):
            prefix = f"{part}."
            state = {
                name.removeprefix(prefix): torch.from_numpy(array)
                for name, array in tensors.items()
                if name.startswith(prefix)
            }
            network.double().load_state_dict(state)
        return tokenizer

    def _build(self, dim: int) -> None:
        widths = [dim, *self.config.hidden, min(self.config.code_dim, dim)]
        self._encoder, self._decoder = _mlp(widths), _mlp(widths[::-1])

    def _train(self, inputs: Tensor) -> None:
        """Fit networks and codebooks to float32 [n, dim] inputs of unit mean square norm."""
        config = self.config
        num_items, dim = inputs.shape
        batch_size = min(config.batch_size, num_items)
        codebook_size = effective_codebook_size(config.codebook_size, num_items)
        self._build(dim)
        parameters = [*self._encoder.parameters(), *self._decoder.parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)

        quantizer: ResidualVQ | None = None
        total_steps = config.warmup_steps + config.steps
        with progress_bar("tokenizer: RQ-VAE steps", total_steps) as advance:
            for step, rows in zip(range(total_steps), _batches(num_items, batch_size), strict=False):
                progress = (step - config.warmup_steps) / config.steps  # below 0 in the warm-up
                if step == config.warmup_steps:
                    quantizer = self._new_quantizer(inputs, codebook_size, batch_size)
                if quantizer is not None and progress >= _REVIVAL_SHARE:
                    for layer in quantizer.layers:
                        layer._codebook.threshold_ema_dead_code = 0.0
                for group in optimizer.param_groups:
                    group["lr"] = config.learning_rate * 0.5 * (1 + math.cos(math.pi * max(progress, 0.0)))
                loss = self._loss(inputs[rows], quantizer)
                optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward(loss)
                nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                advance(1, f"loss {loss.item():.4f}")

        assert quantizer is not None, "config.steps is at least 1"
        self._codebooks = [layer.codebook.detach().clone().numpy() for layer in quantizer.layers]
        self._encoder.double().requires_grad_(False)
        self._decoder.double().requires_grad_(False)

    def _new_quantizer(self, inputs: Tensor, codebook_size: int, batch_size: int) -> ResidualVQ:
        """Moving-average codebooks that start from k-means of the latents."""
        config = self.config
        even_count = batch_size / codebook_size
        threshold = config.dead_code_threshold
        if threshold is None:
            threshold = _DEFAULT_THRESHOLD_SHARE * even_count
        elif threshold > _HEALTHY_THRESHOLD_SHARE * even_count:
            console.print(
                f"warning: tokenizer.dead_code_threshold {threshold:g} is above half of the even count {even_count:g} "
                f"(batch {batch_size} / codebook {codebook_size}): living codes will be replaced at every step; "
                f"use at most {_HEALTHY_THRESHOLD_SHARE * even_count:g} or a larger batch_size",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
        quantizer = ResidualVQ(
            dim=min(config.code_dim, inputs.shape[1]),
            num_quantizers=config.levels,
            codebook_size=codebook_size,
            decay=config.codebook_decay,
            threshold_ema_dead_code=threshold,
            kmeans_init=True,
            kmeans_iters=config.kmeans_iterations,
            rotation_trick=False,
        )
        # The library runs k-means once, on the first batch it sees in training mode: here the whole catalogue.
        with torch.no_grad():
            quantizer(self._encoder(inputs[torch.randperm(len(inputs))[:_KMEANS_ROWS]]))
        return quantizer

    def _loss(self, batch: Tensor, quantizer: ResidualVQ | None) -> Tensor:
        """Scalar: sums over dimensions, mean over the batch."""
        latent = self._encoder(batch)
        if quantizer is None:
            return _squared_error(self._decoder(latent), batch)
        _, _, _, levels = quantizer(latent.detach(), return_all_codes=True)  # [L, B, d]
        before = levels.cumsum(dim=0) - levels
        commitment = torch.stack(
            [_squared_error(latent - start, codes) for start, codes in zip(before, levels, strict=True)]
        ).sum()
        quantized = latent + (levels.sum(dim=0) - latent).detach()
        return _squared_error(self._decoder(quantized), batch) + self.config.commitment_weight * commitment


def _squared_error(predicted: Tensor, target: Tensor) -> Tensor:
    """Scalar: the sum over dimensions of [B, d], the mean over the batch."""
    return (predicted - target).square().sum(dim=1).mean()


def _mlp(widths: list[int]) -> nn.Sequential:
    """Linear layers with ReLU between them, none after the last."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _batches(num_items: int, batch_size: int) -> Iterator[Tensor]:
    """Endless int64 [batch_size] rows; each pass is a new order, without its incomplete last batch."""
    while True:
        order = torch.randperm(num_items)[: num_items - num_items % batch_size]
        yield from torch.split(order, batch_size)
