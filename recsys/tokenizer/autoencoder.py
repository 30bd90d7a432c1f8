"""What tokenizers share that quantize the latents of an autoencoder: inputs, networks, arrays. Knows no training.

Inputs are centred and have a mean square norm of 1. Networks are trained in single precision; once fitted they are
frozen in double precision, so that an item gets the same codes alone and in company (see `nearest_code`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from recsys.data import IntArray
from recsys.tokenizer.artifact import load_network
from recsys.tokenizer.config import RQVAEConfig
from recsys.tokenizer.das.config import DASConfig
from recsys.tokenizer.nearest import NearestCodeTokenizer
from recsys.tokenizer.networks import mlp
from recsys.tokenizer.quantizer import ResidualQuantizer
from recsys.tokenizer.residual import DoubleArray, FloatArray, row_blocks, summed_codes
from recsys.tokenizer.semantic_ids import check_codes
from recsys.tokenizer.validation import check_codebooks, check_shape


class AutoencoderTokenizer(NearestCodeTokenizer):
    """Encoder, codebooks, decoder."""

    def __init__(self, config: RQVAEConfig | DASConfig) -> None:
        super().__init__()
        self.config: RQVAEConfig | DASConfig = config
        self._scale = 1.0
        self.encoder = nn.Sequential()
        """float [n, dim] standardised inputs to latents [n, code_dim]."""
        self.decoder = nn.Sequential()
        """The way back."""

    def latents(self, embeddings: FloatArray) -> DoubleArray:
        """float64 [n, code_dim]: the encoder's outputs."""
        latents = np.empty((len(embeddings), self._code_dim(embeddings.shape[1])))
        with torch.no_grad():
            for part in row_blocks(*embeddings.shape):
                inputs = torch.from_numpy((embeddings[part] - self._mean) / self._scale)
                latents[part] = self.encoder(inputs).numpy()
        return latents

    def reconstruct(self, codes: IntArray) -> FloatArray:
        """float32 [n, dim]: the embeddings that int64 [n, depth <= L] codes stand for."""
        check_codes(codes, self.codebook_sizes[: codes.shape[1]], "reconstruct")
        embeddings = np.empty((len(codes), len(self._mean)), dtype=np.float32)
        with torch.no_grad():
            for part in row_blocks(*embeddings.shape):
                decoded = self.decoder(torch.from_numpy(summed_codes(codes[part], self._codebooks))).numpy()
                embeddings[part] = decoded * self._scale + self._mean
        return embeddings

    def finish(self, quantizer: ResidualQuantizer) -> None:
        """Keep the trained codebooks and freeze the networks."""
        self._codebooks = [quantizer.codebook(level).detach().clone().numpy() for level in range(self.config.levels)]
        self.encoder.double().requires_grad_(False)
        self.decoder.double().requires_grad_(False)

    def learned_tensors(self, prefix: str = "") -> dict[str, np.ndarray[Any, Any]]:
        """Everything learned but the codebooks, by name; `prefix` stands before every name."""
        tensors: dict[str, np.ndarray[Any, Any]] = {
            f"{prefix}mean": self._mean,
            f"{prefix}scale": np.asarray([self._scale]),
        }
        for part, network in (("encoder", self.encoder), ("decoder", self.decoder)):
            tensors |= {f"{prefix}{part}.{name}": value.numpy() for name, value in network.state_dict().items()}
        return tensors

    def restore(
        self,
        codebooks: list[FloatArray],
        tensors: Mapping[str, np.ndarray[Any, Any]],
        directory: Path,
        prefix: str = "",
    ) -> None:
        """Take `codebooks` and what `learned_tensors` gave, read from `directory`; mean and scale must be there.

        Raises:
            ArtifactError: an array is missing, is not of the shape that the config says, or holds NaN or infinity.
        """
        mean, scale = tensors[f"{prefix}mean"], tensors[f"{prefix}scale"]
        dim = mean.size
        check_shape(mean, (dim,), f"{prefix}mean", directory)
        check_shape(scale, (1,), f"{prefix}scale", directory)
        check_codebooks(codebooks, self.config, self._code_dim(dim), directory, prefix)
        self._codebooks = codebooks
        self._mean, self._scale = mean, float(scale[0])
        self._build(dim)
        for part, network in (("encoder", self.encoder), ("decoder", self.decoder)):
            load_network(network, tensors, f"{prefix}{part}", directory)

    def _code_dim(self, dim: int) -> int:
        return min(self.config.code_dim, dim)

    def _build(self, dim: int) -> None:
        """New networks for embeddings of this width."""
        widths = [dim, *self.config.hidden, self._code_dim(dim)]
        self.encoder, self.decoder = mlp(widths), mlp(widths[::-1])

    def _standardise(self, embeddings: FloatArray) -> FloatArray:
        """Learn the mean and the scale of float32 [n, dim]; the inputs, of the same shape."""
        self._mean = embeddings.mean(axis=0, dtype=np.float64)
        square_norms = np.empty(len(embeddings))
        for part in row_blocks(*embeddings.shape):
            square_norms[part] = ((embeddings[part] - self._mean) ** 2).sum(axis=1)
        # Unit mean square norm: the losses, and so the settings, do not depend on the encoder's scale.
        self._scale = float(np.sqrt(square_norms.mean())) or 1.0
        inputs = np.empty(embeddings.shape, dtype=np.float32)
        for part in row_blocks(*embeddings.shape):
            inputs[part] = (embeddings[part] - self._mean) / self._scale
        return inputs
