"""Residual k-means on PCA-reduced embeddings: the cheap baseline that a trained tokenizer has to beat."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from recsys.data import IntArray, Sequences
from recsys.tokenizer.artifact import load_tensors, save_tokenizer
from recsys.tokenizer.config import RKMeansConfig
from recsys.tokenizer.nearest import NearestCodeTokenizer
from recsys.tokenizer.residual import DoubleArray, FloatArray, fit_codebooks, summed_codes
from recsys.tokenizer.semantic_ids import SemanticIds, check_codes
from recsys.tokenizer.validation import check_embeddings, effective_codebook_size


class RKMeansTokenizer(NearestCodeTokenizer):
    """Centre, project on the leading principal axes, quantize the residuals level by level with k-means.

    Implements `SemanticIdTokenizer`.
    """

    def __init__(self, config: RKMeansConfig) -> None:
        super().__init__()
        self.config = config
        self._axes: DoubleArray = np.zeros((0, 0))

    def fit(self, embeddings: FloatArray, train: Sequences | None = None) -> SemanticIds:
        """Learn the codebooks from float32 [n, dim] and name these items."""
        check_embeddings(embeddings)
        config = self.config
        self._mean = embeddings.mean(axis=0, dtype=np.float64)
        self._axes = _principal_axes(embeddings - self._mean, config.code_dim)
        latents = self.latents(embeddings)
        self._codebooks = fit_codebooks(
            latents.astype(np.float32),
            levels=config.levels,
            codebook_size=effective_codebook_size(config.codebook_size, len(embeddings)),
            iterations=config.kmeans_iterations,
            seed=config.seed,
        )
        return self._name_items(latents)

    def latents(self, embeddings: FloatArray) -> DoubleArray:
        """float64 [n, code_dim]: the coordinates on the principal axes."""
        return (embeddings - self._mean) @ self._axes

    def reconstruct(self, codes: IntArray) -> FloatArray:
        """float32 [n, dim]: the embeddings that int64 [n, depth <= L] codes stand for."""
        check_codes(codes, self.codebook_sizes[: codes.shape[1]], "reconstruct")
        return (summed_codes(codes, self._codebooks) @ self._axes.T + self._mean).astype(np.float32)

    def save(self, directory: Path) -> None:
        """Write the directory, whole or not at all."""
        save_tokenizer(directory, self.config, self._codebooks, {"mean": self._mean, "axes": self._axes})

    @classmethod
    def load(cls, directory: Path, config: RKMeansConfig) -> RKMeansTokenizer:
        """Read what `save` wrote; `load_tokenizer` finds the config."""
        tokenizer = cls(config)
        tokenizer._codebooks, tensors = load_tensors(directory, {"mean", "axes"})
        tokenizer._mean, tokenizer._axes = tensors["mean"], tensors["axes"]
        return tokenizer


def _principal_axes(centred: DoubleArray, num_axes: int) -> DoubleArray:
    """float64 [dim, min(num_axes, dim)]: orthonormal columns, most variance first."""
    _, vectors = np.linalg.eigh(centred.T @ centred)
    axes = vectors[:, ::-1][:, :num_axes]
    # An eigenvector's sign is arbitrary and differs between libraries; this pins it.
    largest = np.abs(axes).argmax(axis=0)
    return np.ascontiguousarray(axes * np.sign(axes[largest, np.arange(axes.shape[1])]))
