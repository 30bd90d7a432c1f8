"""RQ-VAE: an autoencoder whose bottleneck is quantized level by level (TIGER, arXiv 2305.05065).

The codebooks are `ResidualQuantizer`, which also makes the gradients; here are the networks and the training:

    loss = ||x - Dec(z_hat)||^2 + L_quantizer [ + alpha L_cf + beta L_div ]

Every term is a sum over dimensions and a mean over the batch, so that settings carry over between embedding widths; the
terms in brackets are LETTER's (`recsys.tokenizer.letter`). Once fitted, everything is arrays: `encode` needs no
quantizer and no randomness.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from recsys.data import IntArray, Sequences
from recsys.errors import ArtifactError, ConfigError
from recsys.progress import console, progress_bar
from recsys.tokenizer.artifact import load_tensors, save_tokenizer
from recsys.tokenizer.config import RQVAEConfig
from recsys.tokenizer.letter import Letter, behaviour_vectors
from recsys.tokenizer.nearest import NearestCodeTokenizer
from recsys.tokenizer.networks import cosine_factor, endless_batches, mlp, squared_error
from recsys.tokenizer.quantizer import Quantized, ResidualQuantizer
from recsys.tokenizer.residual import DoubleArray, FloatArray, row_blocks, summed_codes
from recsys.tokenizer.semantic_ids import SemanticIds, check_codes
from recsys.tokenizer.validation import (
    check_codebooks,
    check_embeddings,
    check_shape,
    effective_codebook_size,
    warn_about_usage,
)

# Restarted codes need time to find their place, so none is moved in the last fifth of the steps.
_REVIVAL_SHARE = 0.8
# Passes over the catalogue between two looks for dead codes and new groups of codewords; a catalogue so large that
# the steps make few passes gets `_MIN_REFRESHES` all the same.
_REFRESH_PASSES = 5
_MIN_REFRESHES = 20
_HEALTHY_THRESHOLD_SHARE = 0.5
_DEFAULT_THRESHOLD_SHARE = 0.25


class RQVAETokenizer(NearestCodeTokenizer):
    """Autoencoder warm-up, k-means on the latents of the whole catalogue, then joint training.

    Implements `SemanticIdTokenizer`.
    """

    def __init__(self, config: RQVAEConfig) -> None:
        super().__init__()
        self.config: RQVAEConfig = config
        self._scale = 1.0
        self._encoder = nn.Sequential()
        self._decoder = nn.Sequential()

    def fit(self, embeddings: FloatArray, train: Sequences | None = None) -> SemanticIds:
        """Train on float32 [n, dim] and name these items. Leaves torch's global random state as it was.

        Raises:
            ConfigError: `collaborative_weight` is above 0 and `train` is None.
        """
        check_embeddings(embeddings)
        letter = self._letter(train, *embeddings.shape)
        self._mean = embeddings.mean(axis=0, dtype=np.float64)
        square_norms = np.empty(len(embeddings))
        for part in row_blocks(*embeddings.shape):
            square_norms[part] = ((embeddings[part] - self._mean) ** 2).sum(axis=1)
        # Unit mean square norm: the losses, and so the settings, do not depend on the encoder's scale.
        self._scale = float(np.sqrt(square_norms.mean())) or 1.0
        inputs = np.empty(embeddings.shape, dtype=np.float32)
        for part in row_blocks(*embeddings.shape):
            inputs[part] = (embeddings[part] - self._mean) / self._scale
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            self._train(torch.from_numpy(inputs), letter)
        ids = self._name_items(self.latents(embeddings))
        other = "" if self.config.codebook == "simvq" else "set tokenizer.codebook to simvq, or "
        warn_about_usage(
            ids.raw_codes[:, : self.config.levels],
            len(self._codebooks[0]),
            f"{other}lower tokenizer.codebook_size or tokenizer.learning_rate",
        )
        return ids

    def latents(self, embeddings: FloatArray) -> DoubleArray:
        """float64 [n, code_dim]: the encoder's outputs."""
        latents = np.empty((len(embeddings), self._code_dim(embeddings.shape[1])))
        with torch.no_grad():
            for part in row_blocks(*embeddings.shape):
                inputs = torch.from_numpy((embeddings[part] - self._mean) / self._scale)
                latents[part] = self._encoder(inputs).numpy()
        return latents

    def reconstruct(self, codes: IntArray) -> FloatArray:
        """float32 [n, dim]: the embeddings that int64 [n, depth <= L] codes stand for."""
        check_codes(codes, self.codebook_sizes[: codes.shape[1]], "reconstruct")
        embeddings = np.empty((len(codes), len(self._mean)), dtype=np.float32)
        with torch.no_grad():
            for part in row_blocks(*embeddings.shape):
                decoded = self._decoder(torch.from_numpy(summed_codes(codes[part], self._codebooks))).numpy()
                embeddings[part] = decoded * self._scale + self._mean
        return embeddings

    def save(self, directory: Path) -> None:
        """Write the directory, whole or not at all."""
        tensors = {"mean": self._mean, "scale": np.asarray([self._scale])}
        for part, network in (("encoder", self._encoder), ("decoder", self._decoder)):
            tensors |= {f"{part}.{name}": value.numpy() for name, value in network.state_dict().items()}
        save_tokenizer(directory, self.config, self._codebooks, tensors)

    @classmethod
    def load(cls, directory: Path, config: RQVAEConfig) -> RQVAETokenizer:
        """Read what `save` wrote; `load_tokenizer` finds the config.

        Raises:
            ArtifactError: an array is missing, or its shape is not what the config says.
        """
        tokenizer = cls(config)
        tokenizer._codebooks, tensors = load_tensors(directory, {"mean", "scale"})
        dim = tensors["mean"].size
        check_shape(tensors["mean"], (dim,), "mean", directory)
        check_shape(tensors["scale"], (1,), "scale", directory)
        code_dim = tokenizer._code_dim(dim)
        check_codebooks(tokenizer._codebooks, config, code_dim, directory)
        tokenizer._mean, tokenizer._scale = tensors["mean"], float(tensors["scale"][0])
        tokenizer._build(dim)
        for part, network in (("encoder", tokenizer._encoder), ("decoder", tokenizer._decoder)):
            state = {}
            for name, value in network.state_dict().items():
                if (array := tensors.get(f"{part}.{name}")) is None:
                    raise ArtifactError(f"{directory} lacks {part}.{name}; fit the tokenizer again")
                check_shape(array, tuple(value.shape), f"{part}.{name}", directory)
                state[name] = torch.from_numpy(array)
            network.double().requires_grad_(False).load_state_dict(state)
        return tokenizer

    def _code_dim(self, dim: int) -> int:
        return min(self.config.code_dim, dim)

    def _build(self, dim: int) -> None:
        widths = [dim, *self.config.hidden, self._code_dim(dim)]
        self._encoder, self._decoder = mlp(widths), mlp(widths[::-1])

    def _letter(self, train: Sequences | None, num_items: int, dim: int) -> Letter | None:
        config = self.config
        if config.collaborative_weight == config.diversity_weight == 0:
            return None
        behaviour = None
        if config.collaborative_weight > 0:
            if train is None:
                raise ConfigError(
                    "tokenizer.collaborative_weight is above 0, which needs the training sequences; pass train, or set "
                    "it to 0"
                )
            behaviour = behaviour_vectors(train, num_items, self._code_dim(dim))
        return Letter(config.collaborative_weight, config.diversity_weight, behaviour, config.seed)

    def _train(self, inputs: Tensor, letter: Letter | None) -> None:
        """Fit networks and codebooks to float32 [n, dim] inputs of unit mean square norm."""
        config = self.config
        num_items, dim = inputs.shape
        batch_size = min(config.batch_size, num_items)
        self._build(dim)
        parameters = [*self._encoder.parameters(), *self._decoder.parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)

        quantizer: ResidualQuantizer | None = None
        refresh_steps = max(1, min(_REFRESH_PASSES * num_items // batch_size, config.steps // _MIN_REFRESHES))
        total_steps = config.warmup_steps + config.steps
        with progress_bar("tokenizer: RQ-VAE steps", total_steps) as advance:
            for step, rows in zip(range(total_steps), endless_batches(num_items, batch_size), strict=False):
                quantized_step = step - config.warmup_steps  # below 0 in the warm-up
                progress = quantized_step / config.steps
                if quantized_step == 0:
                    quantizer = self._new_quantizer(inputs, batch_size)
                    if trained := list(quantizer.parameters()):
                        parameters += trained
                        optimizer.add_param_group({"params": trained})
                if quantizer is not None:
                    if progress >= _REVIVAL_SHARE:
                        quantizer.stop_reviving()
                    if quantized_step % refresh_steps == 0:
                        if config.codebook == "gradient" and 0 < progress < _REVIVAL_SHARE:
                            quantizer.restart_dead_codes(self._encoded(inputs), optimizer)
                        if letter is not None:
                            letter.regroup(quantizer)
                for group in optimizer.param_groups:
                    group["lr"] = config.learning_rate * cosine_factor(progress)
                loss = self._loss(inputs, rows, quantizer, letter)
                optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward(loss)
                nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                advance(1, f"loss {loss.item():.4f}")

        assert quantizer is not None, "config.steps is at least 1"
        self._codebooks = [quantizer.codebook(level).detach().clone().numpy() for level in range(config.levels)]
        self._encoder.double().requires_grad_(False)
        self._decoder.double().requires_grad_(False)

    def _new_quantizer(self, inputs: Tensor, batch_size: int) -> ResidualQuantizer:
        """Codebooks that start from k-means of the latents."""
        config = self.config
        codebook_size = effective_codebook_size(config.codebook_size, len(inputs))
        quantizer = ResidualQuantizer(
            dim=self._code_dim(inputs.shape[1]),
            levels=config.levels,
            codebook_size=codebook_size,
            kind=config.codebook,
            estimator=config.estimator,
            commitment_weight=config.commitment_weight,
            decay=config.codebook_decay,
            dead_code_threshold=_dead_code_threshold(config.dead_code_threshold, batch_size, codebook_size),
            kmeans_iterations=config.kmeans_iterations,
            uniform_last_level=config.uniform_last_level,
        )
        quantizer.initialise(self._encoded(inputs), config.seed)
        return quantizer

    def _encoded(self, inputs: Tensor) -> Tensor:
        """float32 [n, d], without gradient, of float32 [n, dim]."""
        with torch.no_grad():
            return torch.cat([self._encoder(inputs[part]) for part in row_blocks(*inputs.shape)])

    def _loss(
        self, inputs: Tensor, rows: Tensor, quantizer: ResidualQuantizer | None, letter: Letter | None = None
    ) -> Tensor:
        """Scalar, of the batch `rows` (int64 [B]) of float [n, dim] inputs."""
        batch = inputs[rows]
        latent = self._encoder(batch)
        if quantizer is None:
            return squared_error(self._decoder(latent), batch)
        quantized: Quantized = quantizer(latent)
        loss = squared_error(self._decoder(quantized.vector), batch) + quantized.loss
        return loss if letter is None else loss + letter.loss(rows, quantized, quantizer)


def _dead_code_threshold(threshold: float | None, batch_size: int, codebook_size: int) -> float:
    """The threshold that applies. Warns of one that throws away living codes."""
    even_count = batch_size / codebook_size
    if threshold is None:
        return _DEFAULT_THRESHOLD_SHARE * even_count
    if threshold > _HEALTHY_THRESHOLD_SHARE * even_count:
        console.print(
            f"warning: tokenizer.dead_code_threshold {threshold:g} is above half of the even count {even_count:g} "
            f"(batch {batch_size} / codebook {codebook_size}): living codes will be replaced at every step; "
            f"use at most {_HEALTHY_THRESHOLD_SHARE * even_count:g} or a larger batch_size",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    return threshold
