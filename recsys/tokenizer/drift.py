"""Has the catalogue drifted away from the codebooks? Compares the items of the fit with those of today.

Knows a fitted tokenizer and two sets of vectors in its space; not why a catalogue changed, nor what to do about it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from recsys.data import IntArray
from recsys.errors import DataError
from recsys.tokenizer.interface import SemanticIdTokenizer
from recsys.tokenizer.residual import DoubleArray, FloatArray, row_blocks

TAIL_QUANTILE = 0.99
"""An item is badly quantized when its error is above this quantile of the reference's."""
BOOTSTRAP_SAMPLES = 200
"""Pairs of samples of the reference against itself."""
BOOTSTRAP_QUANTILE = 0.99
"""Of the bootstrapped statistics; what lies above is not chance."""
UNSEEN_ERROR_MARGIN = 0.25
"""By how much the mean error may grow when all current items are unseen. Codebooks fit their own items better than
others of the same kind: on random halves that k-means on three levels had not seen, the error was 4 % to 16 % above
that of its own (Amazon Scientific and Beauty texts, 64 and 256 codes, 8 to 95 items a code)."""
UNSEEN_TAIL_MARGIN = 0.10
"""The same for the share of badly quantized items; on unseen halves it went from 1 % to between 2 % and 8 %."""
USAGE_FACTOR = 1.25
"""By how much the divergence of code usage may exceed the bootstrap's; unseen halves stayed below it by themselves."""


def drift_report(
    tokenizer: SemanticIdTokenizer,
    reference_embeddings: FloatArray,
    current_embeddings: FloatArray,
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """How much worse the codebooks serve the current items than those they were fitted on.

    Args:
        tokenizer: fitted on the reference; `encode_raw`, `reconstruct` and `codebook_sizes` are used.
        reference_embeddings: float32 [n, dim], the items of the fit.
        current_embeddings: float32 [m, dim], by the same encoder. Items of the reference may be among them.
        seed: of the bootstrap.

    Returns:
        num_reference, num_current, unseen_share: share of current items whose vector is not in the reference.
        rel_recon: `reference` and `current`, squared error of the nearest codes' reconstruction over the reference's
        variance.
        error_ratio: current mean error over the reference's.
        tail_share: share of current items with an error above the reference's 99th percentile.
        usage_divergence: per level, Jensen-Shannon divergence (in bits, 0 to 1) of the code usage.
        perplexity: `reference` and `current`, per level.
        thresholds: `error_ratio`, `tail_share` and, per level, `usage_divergence`: the 99th percentile of the statistic
        between two bootstrap samples of the reference, of n and m items, widened by this module's margins; those for
        the error, in proportion to `unseen_share`.
        drifted: whether any statistic is above its threshold; reasons: which are, in words.

    Raises:
        DataError: NaN, no item, or another width than the tokenizer's.
    """
    if len(reference_embeddings) == 0 or len(current_embeddings) == 0:
        raise DataError(
            f"drift is between two sets of at least one item, found {len(reference_embeddings)} reference and "
            f"{len(current_embeddings)} current ones"
        )
    sizes = tokenizer.codebook_sizes
    reference_codes = tokenizer.encode_raw(reference_embeddings)
    current_codes = tokenizer.encode_raw(current_embeddings)
    reference_error = _errors(tokenizer, reference_codes, reference_embeddings)
    current_error = _errors(tokenizer, current_codes, current_embeddings)
    unseen = _unseen_share(reference_embeddings, current_embeddings)
    variance = np.square(reference_embeddings - reference_embeddings.mean(axis=0), dtype=np.float64).sum(axis=1).mean()

    observed = _statistics(reference_error, current_error, reference_codes, current_codes, sizes)
    rng = np.random.default_rng(seed)
    num_reference, num_current = len(reference_error), len(current_error)
    null = []
    for _ in range(BOOTSTRAP_SAMPLES):
        first = rng.integers(0, num_reference, size=num_reference)
        second = rng.integers(0, num_reference, size=num_current)
        null.append(
            _statistics(
                reference_error[first],
                reference_error[second],
                reference_codes[first],
                reference_codes[second],
                sizes,
            )
        )
    limits = np.quantile(null, BOOTSTRAP_QUANTILE, axis=0)
    limits[0] *= 1 + UNSEEN_ERROR_MARGIN * unseen
    limits[1] += UNSEEN_TAIL_MARGIN * unseen
    limits[2:] *= USAGE_FACTOR
    names = ["error_ratio", "tail_share", *(f"usage_divergence of level {level + 1}" for level in range(len(sizes)))]
    reasons = [
        f"{name} {value:.3g} is above {limit:.3g}"
        for name, value, limit in zip(names, observed, limits, strict=True)
        if value > limit
    ]
    scale = max(float(variance), 1e-12)
    return {
        "num_reference": num_reference,
        "num_current": num_current,
        "unseen_share": unseen,
        "rel_recon": {
            "reference": float(reference_error.mean() / scale),
            "current": float(current_error.mean() / scale),
        },
        "error_ratio": float(observed[0]),
        "tail_share": float(observed[1]),
        "usage_divergence": observed[2:].tolist(),
        "perplexity": {
            "reference": [float(2 ** _entropy(usage)) for usage in _usages(reference_codes, sizes)],
            "current": [float(2 ** _entropy(usage)) for usage in _usages(current_codes, sizes)],
        },
        "thresholds": {
            "error_ratio": float(limits[0]),
            "tail_share": float(limits[1]),
            "usage_divergence": limits[2:].tolist(),
        },
        "drifted": bool(reasons),
        "reasons": reasons,
    }


def _errors(tokenizer: SemanticIdTokenizer, codes: IntArray, embeddings: FloatArray) -> DoubleArray:
    """float64 [n]: squared error of each item's reconstruction."""
    errors = np.empty(len(codes))
    for part in row_blocks(*embeddings.shape):
        errors[part] = np.square(embeddings[part] - tokenizer.reconstruct(codes[part]), dtype=np.float64).sum(axis=1)
    return errors


def _unseen_share(reference: FloatArray, current: FloatArray) -> float:
    known = {row.tobytes() for row in reference}
    return sum(row.tobytes() not in known for row in current) / len(current)


def _statistics(
    reference_error: DoubleArray,
    current_error: DoubleArray,
    reference_codes: IntArray,
    current_codes: IntArray,
    sizes: tuple[int, ...],
) -> DoubleArray:
    """float64 [2 + L]: ratio of mean errors, share above the reference's tail, divergence of usage per level."""
    ratio = current_error.mean() / max(reference_error.mean(), 1e-12)
    tail = (current_error > np.quantile(reference_error, TAIL_QUANTILE)).mean()
    divergences = [
        _entropy((first + second) / 2) - (_entropy(first) + _entropy(second)) / 2
        for first, second in zip(_usages(reference_codes, sizes), _usages(current_codes, sizes), strict=True)
    ]
    return np.asarray([ratio, tail, *divergences])


def _usages(codes: IntArray, sizes: tuple[int, ...]) -> list[DoubleArray]:
    return [np.bincount(column, minlength=size) / len(codes) for column, size in zip(codes.T, sizes, strict=True)]


def _entropy(shares: DoubleArray) -> float:
    """In bits."""
    used = shares[shares > 0]
    return float(-(used * np.log2(used)).sum())
