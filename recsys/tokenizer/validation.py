"""Checks of what users feed a tokenizer, with messages that say what to change."""

from __future__ import annotations

import numpy as np

from recsys.data import IntArray
from recsys.errors import DataError
from recsys.progress import console
from recsys.tokenizer.residual import FloatArray
from recsys.tokenizer.semantic_ids import check_codes


def check_embeddings(embeddings: FloatArray, dim: int | None = None) -> None:
    """Raise DataError unless `embeddings` is a finite float [n, dim] with n >= 1 (n >= 2 when fitting: dim None)."""
    if embeddings.ndim != 2:
        raise DataError(f"embeddings must be [num_items, dim], found shape {list(embeddings.shape)}")
    if dim is None and len(embeddings) < 2:
        raise DataError(f"a tokenizer needs at least 2 items to fit, found {len(embeddings)}")
    if dim == 0:
        raise DataError("this tokenizer has not been fitted; call fit() or load_tokenizer() first")
    if dim is not None and embeddings.shape[1] != dim:
        raise DataError(
            f"embeddings have {embeddings.shape[1]} dimensions, but the tokenizer was fitted on {dim}; "
            "use the encoder (and fusion) it was fitted with"
        )
    broken = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if len(broken):
        raise DataError(
            f"embeddings: {len(broken)} of {len(embeddings)} rows hold NaN or infinity, e.g. rows "
            f"{broken[:3].tolist()}; encode these items again"
        )


def check_taken(taken: IntArray, codebook_sizes: tuple[int, ...]) -> None:
    """Raise DataError unless `taken` is int64 [m, L] of unique codes of this tokenizer."""
    check_codes(taken, codebook_sizes, "taken")
    distinct = len(np.unique(taken, axis=0))
    if distinct != len(taken):
        raise DataError(f"taken: {len(taken)} rows hold {distinct} distinct codes; must be unique")


def effective_codebook_size(codebook_size: int, num_items: int) -> int:
    """min(codebook_size, num_items): more centroids than items cannot be learned. Says so when it cuts."""
    if codebook_size > num_items:
        console.print(
            f"tokenizer: codebook_size {codebook_size} exceeds the {num_items} items, so each level has {num_items}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    return min(codebook_size, num_items)
