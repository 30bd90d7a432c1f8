"""RQ-VAE: an autoencoder whose bottleneck is quantized level by level (TIGER, arXiv 2305.05065).

The codebooks are `ResidualQuantizer`, which also makes the gradients; here are the networks and the training:

    loss = ||x - Dec(z_hat)||^2 + L_quantizer [ + alpha L_cf + beta L_div ]

Every term is a sum over dimensions and a mean over the batch, so that settings carry over between embedding widths; the
terms in brackets are LETTER's (`recsys.tokenizer.letter`). Once fitted, everything is arrays: `encode` needs no
quantizer and no randomness.

Several processes share a batch: each encodes and decodes its own rows, and all quantize the whole batch, whose
statistics move the codebooks. What they learn is what one process does, up to rounding.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from recsys.data import IntArray, Sequences
from recsys.errors import ConfigError
from recsys.progress import console, progress_bar
from recsys.ranks import ALONE, Ranks
from recsys.tokenizer.artifact import load_tensors, save_tokenizer
from recsys.tokenizer.autoencoder import AutoencoderTokenizer
from recsys.tokenizer.config import RQVAEConfig
from recsys.tokenizer.letter import Letter, behaviour_vectors
from recsys.tokenizer.networks import cosine_factor, endless_batches, squared_error
from recsys.tokenizer.quantizer import DEAD_CODE_SHARE, REVIVAL_SHARE, Quantized, ResidualQuantizer
from recsys.tokenizer.residual import FloatArray, row_blocks
from recsys.tokenizer.semantic_ids import SemanticIds
from recsys.tokenizer.validation import check_embeddings, effective_codebook_size, warn_about_usage

# Passes over the catalogue between two looks for dead codes and new groups of codewords; a catalogue so large that
# the steps make few passes gets `_MIN_REFRESHES` all the same.
_REFRESH_PASSES = 5
_MIN_REFRESHES = 20
_HEALTHY_THRESHOLD_SHARE = 0.5


class RQVAETokenizer(AutoencoderTokenizer):
    """Autoencoder warm-up, k-means on the latents of the whole catalogue, then joint training.

    Implements `SemanticIdTokenizer`.
    """

    def __init__(self, config: RQVAEConfig) -> None:
        super().__init__(config)
        self.config: RQVAEConfig = config

    def fit(self, embeddings: FloatArray, train: Sequences | None = None, ranks: Ranks = ALONE) -> SemanticIds:
        """Train on float32 [n, dim] and name these items. Leaves torch's global random state as it was.

        `ranks` are the processes that train together; all make this very call.

        Raises:
            ConfigError: `collaborative_weight` is above 0 and `train` is None.
        """
        self.learn(embeddings, train, ranks)
        return self.name(embeddings)

    def learn(self, embeddings: FloatArray, train: Sequences | None = None, ranks: Ranks = ALONE) -> None:
        """The first half of `fit`: networks and codebooks."""
        check_embeddings(embeddings)
        letter = self._letter(train, *embeddings.shape)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            self._train(torch.from_numpy(self._standardise(embeddings)), letter, ranks)

    def name(self, embeddings: FloatArray, *, raw_codes: IntArray | None = None) -> SemanticIds:
        """The second half of `fit`: the semantic IDs of the items that `learn` has learned from, float32 [n, dim].

        `raw_codes`, int64 [n, config.levels], are what `encode_raw` gives, where it is known already.
        """
        ids = self._name_items(self.latents(embeddings), raw_codes=raw_codes)
        other = "" if self.config.codebook == "simvq" else "set tokenizer.codebook to simvq, or "
        warn_about_usage(
            ids.raw_codes[:, : self.config.levels],
            len(self._codebooks[0]),
            f"{other}lower tokenizer.codebook_size or tokenizer.learning_rate",
        )
        return ids

    def save(self, directory: Path) -> None:
        """Write the directory, whole or not at all."""
        save_tokenizer(directory, self.config, self._codebooks, self.learned_tensors())

    @classmethod
    def load(cls, directory: Path, config: RQVAEConfig) -> RQVAETokenizer:
        """Read what `save` wrote; `load_tokenizer` finds the config.

        Raises:
            ArtifactError: an array is missing, or its shape is not what the config says.
        """
        tokenizer = cls(config)
        codebooks, tensors = load_tensors(directory, {"mean", "scale"})
        tokenizer.restore(codebooks, tensors, directory)
        return tokenizer

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

    def _train(self, inputs: Tensor, letter: Letter | None, ranks: Ranks) -> None:
        """Fit networks and codebooks to float32 [n, dim] inputs of unit mean square norm."""
        config = self.config
        num_items, dim = inputs.shape
        batch_size = min(config.batch_size, num_items)
        if batch_size < ranks.size:
            raise ConfigError(
                f"tokenizer.batch_size: {ranks.size} processes share a batch of {batch_size} items; lower "
                "engine.processes, or raise it"
            )
        self._build(dim)
        networks = [*self.encoder.parameters(), *self.decoder.parameters()]
        parameters = list(networks)
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
                    if progress >= REVIVAL_SHARE:
                        quantizer.stop_reviving()
                    if quantized_step % refresh_steps == 0:
                        if config.codebook == "gradient" and 0 < progress < REVIVAL_SHARE:
                            quantizer.restart_dead_codes(self._encoded(inputs), optimizer)
                        if letter is not None:
                            letter.regroup(quantizer)
                for group in optimizer.param_groups:
                    group["lr"] = config.learning_rate * cosine_factor(progress)
                loss = self._loss(inputs, rows, quantizer, letter, ranks)
                optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward(loss)
                # Codebooks have the gradient of the whole batch already, in every process.
                ranks.add_gradients(networks)
                nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                advance(1, f"loss {loss.item():.4f}")

        assert quantizer is not None, "config.steps is at least 1"
        self.finish(quantizer)

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
            return torch.cat([self.encoder(inputs[part]) for part in row_blocks(*inputs.shape)])

    def _loss(
        self,
        inputs: Tensor,
        rows: Tensor,
        quantizer: ResidualQuantizer | None,
        letter: Letter | None = None,
        ranks: Ranks = ALONE,
    ) -> Tensor:
        """Scalar, of the batch `rows` (int64 [B]) of float [n, dim] inputs; of the error, this process's share."""
        own = ranks.part(len(rows))
        batch = inputs[rows[own]]
        share = len(batch) / len(rows)
        latent = ranks.with_others(self.encoder(batch), len(rows))
        if quantizer is None:
            return share * squared_error(self.decoder(latent[own]), batch)
        quantized: Quantized = quantizer(latent)
        loss = share * squared_error(self.decoder(quantized.vector[own]), batch) + quantized.loss
        return loss if letter is None else loss + letter.loss(rows, quantized, quantizer)


def _dead_code_threshold(threshold: float | None, batch_size: int, codebook_size: int) -> float:
    """The threshold that applies. Warns of one that throws away living codes."""
    even_count = batch_size / codebook_size
    if threshold is None:
        return DEAD_CODE_SHARE * even_count
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
