"""Checks of what users feed a tokenizer, with messages that say what to change."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recsys.data import IntArray
from recsys.errors import ArtifactError, DataError
from recsys.progress import console
from recsys.tokenizer.config import ResidualConfig
from recsys.tokenizer.residual import FloatArray, row_blocks
from recsys.tokenizer.semantic_ids import check_codes, num_distinct, row_numbers

# A level that uses fewer of its codes, although there are items enough, or uses them this unevenly, is not well.
_USED_SHARE = 0.95
_ITEMS_PER_CODE = 20
_PERPLEXITY_SHARE = 0.4


def check_embeddings(embeddings: FloatArray, dim: int | None = None) -> None:
    """Raise DataError unless `embeddings` is a finite float [n, dim] with n >= 1 (n >= 2 when fitting: dim None)."""
    if embeddings.ndim != 2 or embeddings.shape[1] == 0:
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
    finite = np.empty(len(embeddings), dtype=bool)
    for part in row_blocks(*embeddings.shape):
        finite[part] = np.isfinite(embeddings[part]).all(axis=1)
    broken = np.flatnonzero(~finite)
    if len(broken):
        raise DataError(
            f"embeddings: {len(broken)} of {len(embeddings)} rows hold NaN or infinity, e.g. rows "
            f"{broken[:3].tolist()}; encode these items again"
        )


def check_taken(taken: IntArray, codebook_sizes: tuple[int, ...]) -> None:
    """Raise DataError unless `taken` is int64 [m, L] of unique codes of this tokenizer."""
    check_codes(taken, codebook_sizes, "taken")
    distinct = num_distinct(row_numbers(taken))
    if distinct != len(taken):
        raise DataError(f"taken: {len(taken)} rows hold {distinct} distinct codes; must be unique")


def check_shape(array: np.ndarray[Any, Any], shape: tuple[int, ...], name: str, directory: Path) -> None:
    """Raise ArtifactError unless the array `name` of the tokenizer in `directory` is finite and of this shape."""
    if array.shape != shape:
        raise ArtifactError(
            f"{directory}: {name} has shape {list(array.shape)}, but its config needs {list(shape)}; "
            "fit the tokenizer again"
        )
    if not np.isfinite(array).all():
        raise ArtifactError(f"{directory}: {name} holds NaN or infinity; fit the tokenizer again")


def check_codebooks(
    codebooks: Sequence[FloatArray], config: ResidualConfig, code_dim: int, directory: Path, prefix: str = ""
) -> None:
    """Raise ArtifactError unless there are `config.levels` codebooks [K, code_dim] of one K <= `codebook_size`.

    With `collisions: extra_level` there is one more, of any size. `prefix` stands before their names in messages.
    """
    levels = config.levels + (config.collisions == "extra_level")
    if len(codebooks) != levels:
        raise ArtifactError(
            f"{directory}: {len(codebooks)} {prefix}codebooks, but its config needs {levels}; fit the tokenizer again"
        )
    # A catalogue smaller than the codebook had cut it.
    size = min(num_codes(codebooks[0]), config.codebook_size)
    for level, codebook in enumerate(codebooks):
        rows = size if level < config.levels else num_codes(codebook)
        check_shape(codebook, (rows, code_dim), f"{prefix}codebook.{level}", directory)


def num_codes(codebook: FloatArray) -> int:
    """K of a codebook that may be damaged: at least 1, so that an empty array has another shape than it should."""
    rows: int = codebook.shape[0] if codebook.ndim else 0
    return max(1, rows)


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


def warn_about_usage(codes: IntArray, codebook_size: int, fix: str) -> None:
    """Say in one line which levels leave codes unused or use them unevenly, if any.

    Args:
        codes: int64 [n, L] of the whole catalogue, before collisions are resolved.
        codebook_size: codes of each level.
        fix: what to do about it.
    """
    complaints = []
    for level, column in enumerate(codes.T, start=1):
        counts = np.bincount(column, minlength=codebook_size)
        shares = counts[counts > 0] / len(codes)
        perplexity = float(np.exp(-(shares * np.log(shares)).sum()))
        starved = len(shares) < _USED_SHARE * codebook_size and len(codes) >= _ITEMS_PER_CODE * codebook_size
        if starved or perplexity < _PERPLEXITY_SHARE * codebook_size:
            complaints.append(f"level {level} uses {len(shares)} (perplexity {perplexity:.0f})")
    if complaints:
        console.print(
            f"warning: of {codebook_size} codes {', '.join(complaints)}; {fix}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
