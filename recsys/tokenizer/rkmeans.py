"""Residual k-means on PCA-reduced embeddings: the cheap baseline that a trained tokenizer has to beat."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from recsys.data import IntArray, Sequences
from recsys.tokenizer.artifact import load_tensors, save_tokenizer
from recsys.tokenizer.balanced import fit_balanced_codebooks
from recsys.tokenizer.config import RKMeansConfig
from recsys.tokenizer.nearest import NearestCodeTokenizer
from recsys.tokenizer.residual import DoubleArray, FloatArray, fit_codebooks, fitted_rows, row_blocks, summed_codes
from recsys.tokenizer.semantic_ids import SemanticIds, check_codes
from recsys.tokenizer.validation import (
    check_codebooks,
    check_embeddings,
    check_shape,
    effective_codebook_size,
    warn_about_usage,
)


class RKMeansTokenizer(NearestCodeTokenizer):
    """Centre, project on the leading principal axes, quantize the residuals level by level with k-means.

    With `balanced`, the items of `fit` keep the codes that balanced k-means assigned (as far as they are unique), while
    `raw_codes` and new items are nearest codes: a capacity says nothing about an item that was not there.

    Implements `SemanticIdTokenizer`.
    """

    def __init__(self, config: RKMeansConfig) -> None:
        super().__init__()
        self.config: RKMeansConfig = config
        self._axes: DoubleArray = np.zeros((0, 0))

    def fit(self, embeddings: FloatArray, train: Sequences | None = None) -> SemanticIds:
        """Learn the codebooks from float32 [n, dim] and name these items. `train` is not read.

        Beside the embeddings it needs one float64 [n, code_dim], or two with `balanced`, and some codes: ten million
        items of 64 dimensions fit into 8 GiB. Codebooks of more than 2 million items are fitted to a sample of them.
        """
        return self.name(embeddings, assigned=self.learn(embeddings))

    def learn(self, embeddings: FloatArray) -> IntArray | None:
        """The first half of `fit`: the codebooks. With `balanced` also the codes that their clusters give to the items,
        int64 [n, config.levels]."""
        check_embeddings(embeddings)
        config = self.config
        self._mean = embeddings.mean(axis=0, dtype=np.float64)
        self._axes = _principal_axes(embeddings, self._mean, config.code_dim)
        codebook_size = effective_codebook_size(config.codebook_size, len(embeddings))
        if config.balanced == "none":
            self._codebooks = fit_codebooks(
                self.latents(embeddings[fitted_rows(len(embeddings), codebook_size, config.seed)]),
                levels=config.levels,
                codebook_size=codebook_size,
                iterations=config.kmeans_iterations,
                seed=config.seed,
            )
            return None
        self._codebooks, assigned = fit_balanced_codebooks(
            self.latents(embeddings),
            levels=config.levels,
            codebook_size=codebook_size,
            iterations=config.kmeans_iterations,
            seed=config.seed,
            balance_first=config.balanced == "all",
        )
        return assigned

    def name(
        self, embeddings: FloatArray, *, assigned: IntArray | None = None, raw_codes: IntArray | None = None
    ) -> SemanticIds:
        """The second half of `fit`: the semantic IDs of the items that `learn` has learned from.

        Args:
            embeddings: float32 [n, dim], theirs.
            assigned: what `learn` gave.
            raw_codes: int64 [n, config.levels], what `encode_raw` gives, where it is known already.
        """
        ids = self._name_items(self.latents(embeddings), assigned, raw_codes)
        warn_about_usage(
            ids.raw_codes[:, : self.config.levels] if assigned is None else assigned,
            len(self._codebooks[0]),
            "set tokenizer.balanced or lower tokenizer.code_dim",
        )
        return ids

    def latents(self, embeddings: FloatArray) -> DoubleArray:
        """float64 [n, code_dim]: the coordinates on the principal axes."""
        latents = np.empty((len(embeddings), self._axes.shape[1]))
        for part in row_blocks(len(embeddings), embeddings.shape[1]):
            latents[part] = (embeddings[part] - self._mean) @ self._axes
        return latents

    def reconstruct(self, codes: IntArray) -> FloatArray:
        """float32 [n, dim]: the embeddings that int64 [n, depth <= L] codes stand for."""
        check_codes(codes, self.codebook_sizes[: codes.shape[1]], "reconstruct")
        embeddings = np.empty((len(codes), len(self._mean)), dtype=np.float32)
        for part in row_blocks(len(codes), len(self._mean)):
            embeddings[part] = summed_codes(codes[part], self._codebooks) @ self._axes.T + self._mean
        return embeddings

    def save(self, directory: Path) -> None:
        """Write the directory, whole or not at all."""
        save_tokenizer(directory, self.config, self._codebooks, {"mean": self._mean, "axes": self._axes})

    @classmethod
    def load(cls, directory: Path, config: RKMeansConfig) -> RKMeansTokenizer:
        """Read what `save` wrote; `load_tokenizer` finds the config.

        Raises:
            ArtifactError: an array is missing, or its shape is not what the config says.
        """
        tokenizer = cls(config)
        tokenizer._codebooks, tensors = load_tensors(directory, {"mean", "axes"})
        tokenizer._mean, tokenizer._axes = tensors["mean"], tensors["axes"]
        dim = tokenizer._mean.size
        code_dim = min(config.code_dim, dim)
        check_shape(tokenizer._mean, (dim,), "mean", directory)
        check_shape(tokenizer._axes, (dim, code_dim), "axes", directory)
        check_codebooks(tokenizer._codebooks, config, code_dim, directory)
        return tokenizer


def _principal_axes(embeddings: FloatArray, mean: DoubleArray, num_axes: int) -> DoubleArray:
    """float64 [dim, min(num_axes, dim)]: orthonormal columns, most variance first."""
    scatter = np.zeros((len(mean), len(mean)))
    for part in row_blocks(*embeddings.shape):
        centred = embeddings[part] - mean
        scatter += centred.T @ centred
    _, vectors = np.linalg.eigh(scatter)
    axes = vectors[:, ::-1][:, :num_axes]
    # An eigenvector's sign is arbitrary and differs between libraries; this pins it.
    largest = np.abs(axes).argmax(axis=0)
    return np.ascontiguousarray(axes * np.sign(axes[largest, np.arange(axes.shape[1])]))
