"""Residual quantization with given codebooks, and k-means to make them. Knows vectors, not items or text.

Shapes: n vectors, d dimensions, L levels, K_l codes on level l. Level l sees the residual
r_l = z - C_1[c_1] - ... - C_(l-1)[c_(l-1)] and takes c_l = argmin_k ||r_l - C_l[k]||^2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import faiss
import numpy as np
import numpy.typing as npt

from recsys.data import IntArray

FloatArray = npt.NDArray[np.float32]
DoubleArray = npt.NDArray[np.float64]

_BLOCK_CELLS = 1 << 24
# Vectors that codebooks are fitted to, at most, and for each code, if that is more: k-means on ten times as many moves
# centroids by less than another seed does.
_FITTED_VECTORS, _FITTED_A_CODE = 1 << 21, 256


def row_blocks(num_rows: int, cells_per_row: int) -> Iterator[slice]:
    """Consecutive slices that cover the rows, each of some 16 million cells (128 MiB in double precision) at most.

    What a catalogue of millions needs in double precision is made and dropped block by block.
    """
    rows = max(1, _BLOCK_CELLS // max(1, cells_per_row))
    for start in range(0, num_rows, rows):
        yield slice(start, min(start + rows, num_rows))


def unit_rows(vectors: FloatArray) -> FloatArray:
    """float32 [n, d] of unit norm; zero rows stay zero."""
    unit: FloatArray = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return unit


def squared_distances(vectors: DoubleArray, codebook: FloatArray) -> DoubleArray:
    """float64 [n, K]."""
    centroids = codebook.astype(np.float64)
    distances = vectors @ (-2.0 * centroids.T)
    distances += (centroids**2).sum(axis=1)
    distances += (vectors**2).sum(axis=1, keepdims=True)
    return np.maximum(distances, 0.0, out=distances)


def nearest_code(vectors: DoubleArray, codebook: FloatArray) -> IntArray:
    """int64 [n]: the nearest row of `codebook`.

    In float64: single precision rounds differently with the batch size, and an item near a border would get
    another code when it is encoded alone.
    """
    nearest = np.empty(len(vectors), dtype=np.int64)
    for part in row_blocks(len(vectors), len(codebook)):
        nearest[part] = squared_distances(vectors[part], codebook).argmin(axis=1)
    return nearest


def nearest_codes(latents: DoubleArray, codebooks: Sequence[FloatArray]) -> IntArray:
    """int64 [n, L]: greedy residual codes of float64 [n, d] vectors."""
    codes = np.empty((len(latents), len(codebooks)), dtype=np.int64)
    for part in row_blocks(len(latents), max(map(len, codebooks), default=1)):
        residual = latents[part].astype(np.float64)
        for level, codebook in enumerate(codebooks):
            codes[part, level] = nearest_code(residual, codebook)
            residual -= codebook[codes[part, level]]
    return codes


def summed_codes(codes: IntArray, codebooks: Sequence[FloatArray]) -> DoubleArray:
    """float64 [n, d]: the vectors that the first `codes.shape[1]` levels stand for."""
    total = np.zeros((len(codes), codebooks[0].shape[1]))
    for level in range(codes.shape[1]):
        total += codebooks[level][codes[:, level]]
    return total


def kmeans(vectors: DoubleArray, codebook_size: int, iterations: int, seed: int) -> FloatArray:
    """float32 [codebook_size, d]: Lloyd's centroids of all float64 [n, d] vectors; n >= codebook_size."""
    clustering = faiss.Kmeans(
        vectors.shape[1],
        codebook_size,
        niter=iterations,
        seed=seed,
        # By default Faiss trains on a sample of 256 points per centroid and warns below 39.
        max_points_per_centroid=-(-len(vectors) // codebook_size),
        min_points_per_centroid=1,
    )
    clustering.train(np.ascontiguousarray(vectors, dtype=np.float32))
    return np.array(clustering.centroids, dtype=np.float32)


def fitted_rows(num_vectors: int, codebook_size: int, seed: int) -> slice | IntArray:
    """The vectors that codebooks are fitted to: all, or int64 [2 million], ascending and drawn at random, of more."""
    most = max(_FITTED_VECTORS, _FITTED_A_CODE * codebook_size)
    if num_vectors <= most:
        return slice(None)
    return np.sort(np.random.default_rng(seed).choice(num_vectors, most, replace=False, shuffle=False))


def fit_codebooks(
    latents: FloatArray | DoubleArray, *, levels: int, codebook_size: int, iterations: int, seed: int
) -> list[FloatArray]:
    """Residual k-means on the `fitted_rows`, in single precision: `levels` codebooks, float32 [codebook_size, d] each.

    `codebook_size` must not exceed the number of vectors.
    """
    fitted = fitted_rows(len(latents), codebook_size, seed)
    residual = latents[fitted].astype(np.float32).astype(np.float64)
    codebooks: list[FloatArray] = []
    for level in range(levels):
        codebook = kmeans(residual, codebook_size, iterations, seed + level + 1)
        codebooks.append(codebook)
        residual -= codebook[nearest_code(residual, codebook)]
    return codebooks
