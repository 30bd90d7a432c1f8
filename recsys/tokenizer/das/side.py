"""One side of DAS, items or users: an autoencoder with residual codes between its halves. Knows no behaviour."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recsys.data import IntArray
from recsys.tokenizer.das.config import DASConfig
from recsys.tokenizer.nearest import NearestCodeTokenizer
from recsys.tokenizer.networks import mlp
from recsys.tokenizer.quantizer import ResidualQuantizer
from recsys.tokenizer.residual import DoubleArray, FloatArray, summed_codes
from recsys.tokenizer.semantic_ids import SemanticIds, check_codes
from recsys.tokenizer.validation import effective_codebook_size

_DEAD_CODE_SHARE = 0.25


class SemanticSide(NearestCodeTokenizer):
    """Encoder, codebooks, decoder. Between `prepare` and `finish` they can be trained; then all is frozen."""

    def __init__(self, config: DASConfig) -> None:
        super().__init__()
        self.config: DASConfig = config
        self._scale = 1.0
        self.encoder = nn.Sequential()
        """float [n, dim] standardised inputs to latents [n, code_dim]."""
        self.decoder = nn.Sequential()
        """The way back."""

    def prepare(self, embeddings: FloatArray) -> tuple[Tensor, ResidualQuantizer]:
        """Start anew for float32 [n, dim] embeddings.

        Returns:
            float32 [n, dim], centred and with a mean square norm of 1, so that losses do not depend on the scale of
            the embeddings; and the quantizer to train with the networks.
        """
        self._mean = embeddings.mean(axis=0, dtype=np.float64)
        centred = embeddings - self._mean
        self._scale = float(np.sqrt((centred**2).sum(axis=1).mean())) or 1.0
        num_rows, dim = embeddings.shape
        self._build(dim)
        codebook_size = effective_codebook_size(self.config.codebook_size, num_rows)
        quantizer = ResidualQuantizer(
            dim=min(self.config.code_dim, dim),
            levels=self.config.levels,
            codebook_size=codebook_size,
            commitment_weight=self.config.commitment_weight,
            decay=self.config.codebook_decay,
            dead_code_threshold=_DEAD_CODE_SHARE * min(self.config.batch_size, num_rows) / codebook_size,
            kmeans_iterations=self.config.kmeans_iterations,
        )
        return torch.from_numpy((centred / self._scale).astype(np.float32)), quantizer

    def finish(self, quantizer: ResidualQuantizer) -> None:
        """Keep the trained codebooks and freeze the networks, in double precision; see `nearest_code` for why."""
        self._codebooks = [quantizer.codebook(level).detach().clone().numpy() for level in range(self.config.levels)]
        self.encoder.double().requires_grad_(False)
        self.decoder.double().requires_grad_(False)

    def name_rows(self, embeddings: FloatArray) -> SemanticIds:
        """The semantic IDs of the rows of `fit`, float32 [n, dim], after `finish`."""
        return self._name_items(self.latents(embeddings))

    def latents(self, embeddings: FloatArray) -> DoubleArray:
        """float64 [n, code_dim]: the encoder's outputs."""
        inputs = torch.from_numpy((embeddings - self._mean) / self._scale)
        with torch.no_grad():
            return np.asarray(self.encoder(inputs).numpy(), dtype=np.float64)

    def reconstruct(self, codes: IntArray) -> FloatArray:
        """float32 [n, dim]: the embeddings that int64 [n, depth <= L] codes stand for."""
        check_codes(codes, self.codebook_sizes[: codes.shape[1]], "reconstruct")
        with torch.no_grad():
            decoded = self.decoder(torch.from_numpy(summed_codes(codes, self._codebooks))).numpy()
        return np.asarray(decoded * self._scale + self._mean, dtype=np.float32)

    def side_tensors(self) -> dict[str, np.ndarray[Any, Any]]:
        """Everything learned but the codebooks, by name."""
        tensors: dict[str, np.ndarray[Any, Any]] = {"mean": self._mean, "scale": np.asarray([self._scale])}
        for part, network in (("encoder", self.encoder), ("decoder", self.decoder)):
            tensors |= {f"{part}.{name}": value.numpy() for name, value in network.state_dict().items()}
        return tensors

    def restore(self, codebooks: list[FloatArray], tensors: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Take what `codebooks` and `side_tensors` gave."""
        self._codebooks = codebooks
        self._mean, self._scale = tensors["mean"], float(tensors["scale"][0])
        self._build(len(self._mean))
        for part, network in (("encoder", self.encoder), ("decoder", self.decoder)):
            state = {
                name.removeprefix(f"{part}."): torch.from_numpy(array)
                for name, array in tensors.items()
                if name.startswith(f"{part}.")
            }
            network.double().requires_grad_(False).load_state_dict(state)

    def _build(self, dim: int) -> None:
        widths = [dim, *self.config.hidden, min(self.config.code_dim, dim)]
        self.encoder, self.decoder = mlp(widths), mlp(widths[::-1])
