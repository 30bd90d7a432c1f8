"""Quality of semantic IDs in numbers. Judges codes and reconstructions; knows nothing of how they were learned.

Read `share` together with `lift`: few used codes give a high share for free, very fine prefixes a high lift. The
numbers say what the codes are like, not how well a generator learns them; only its own evaluation does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from recsys.data import IntArray
from recsys.tokenizer.interface import SemanticIdTokenizer
from recsys.tokenizer.residual import DoubleArray, FloatArray, squared_distances, summed_codes
from recsys.tokenizer.semantic_ids import SemanticIds

_ROUNDING_DECIMALS = 6
_RETRIEVAL_DEPTH = 50
_MAX_RETRIEVAL_PAIRS = 2000
_BLOCK_ROWS = 256


def tokenizer_report(
    ids: SemanticIds, tokenizer: SemanticIdTokenizer, embeddings: FloatArray, pairs: IntArray | None = None
) -> dict[str, Any]:
    """Everything worth knowing about a tokenization, as one JSON document.

    Args:
        ids: the codes of the catalogue.
        tokenizer: the fitted tokenizer that made them.
        embeddings: float32 [num_items, dim], what it was fitted on.
        pairs: int64 [m, 2], consecutive items of users; those of an item with itself do not count. Pass
            transitions that neither the embeddings nor the codes were fitted on, else `share`, `lift` and
            `i2i_recall@50` flatter fused embeddings. None = left out, as when no pair counts.

    Returns:
        num_items, levels, codebook_sizes, and
        dup_rate_before, dup_rate: 1 - distinct tuples / items, by nearest codes and after resolving collisions.
        in_group_rate_before, in_group_rate: share of items that share their tuple with another.
        max_group_before, max_group: most items on one tuple.
        exact_dup_rate: the same rate among embeddings rounded to 1e-6, the floor for nearest codes.
        perplexity, used_codes, dead_codes: per level over the whole catalogue, of the final codes;
        perplexity_before, dead_codes_before: of the nearest codes.
        rel_recon: per depth, squared error of the nearest codes' reconstruction over the embeddings' variance;
        rel_recon_resolved: the same of the final codes, at full depth.
        moved_items: how many changed any code to become unique; moved_above_last: how many of them a code before
        the last; moved_mean_rank: how many last codes were nearer than the chosen one, on average (None when
        nothing moved).
        share, chance, lift: per depth, how often a pair shares the prefix, how often two items drawn at random
        (with replacement) do, and their quotient.
        i2i_recall@50: how often b is among the 50 nearest items of a, for pairs (a, b), by quantized vectors, by
        the embeddings themselves, and by quantized vectors handed out at random.
    """
    report: dict[str, Any] = {
        "num_items": ids.num_items,
        "levels": ids.levels,
        "codebook_sizes": list(ids.codebook_sizes),
    }
    for suffix, codes in (("_before", ids.raw_codes), ("", ids.codes)):
        groups = _group_sizes(codes)
        report[f"dup_rate{suffix}"] = 1 - len(groups) / ids.num_items
        report[f"in_group_rate{suffix}"] = float(groups[groups > 1].sum() / ids.num_items)
        report[f"max_group{suffix}"] = int(groups.max())
        usage = [
            np.bincount(codes[:, level], minlength=size) / ids.num_items
            for level, size in enumerate(ids.codebook_sizes)
        ]
        report[f"perplexity{suffix}"] = [_perplexity(shares) for shares in usage]
        report[f"used_codes{suffix}"] = [int((shares > 0).sum()) for shares in usage]
        report[f"dead_codes{suffix}"] = [int((shares == 0).sum()) for shares in usage]
    rounded = np.round(embeddings, _ROUNDING_DECIMALS) + 0.0  # + 0.0 makes one zero of the two
    report["exact_dup_rate"] = 1 - len(_group_sizes(rounded)) / ids.num_items

    report["rel_recon"] = [
        _relative_error(embeddings, tokenizer.reconstruct(ids.raw_codes[:, :depth]))
        for depth in range(1, ids.levels + 1)
    ]
    quantized = tokenizer.reconstruct(ids.codes)
    report["rel_recon_resolved"] = _relative_error(embeddings, quantized)
    report |= _moves(ids, tokenizer, embeddings)
    if pairs is not None:
        # An item shares every prefix with itself and is never among its own neighbours: no news either way.
        pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    if pairs is not None and len(pairs):
        report |= _prefix_sharing(ids.codes, pairs)
        report[f"i2i_recall@{_RETRIEVAL_DEPTH}"] = _item_to_item_recall(quantized, embeddings, pairs)
    return report


def _group_sizes(rows: npt.NDArray[Any]) -> IntArray:
    """How often each distinct row occurs."""
    return np.asarray(np.unique(rows, axis=0, return_counts=True)[1], dtype=np.int64)


def _perplexity(shares: DoubleArray) -> float:
    """exp of the entropy: the number of codes that would be as diverse when used evenly."""
    used = shares[shares > 0]
    return float(np.exp(-(used * np.log(used)).sum()))


def _relative_error(embeddings: FloatArray, reconstruction: FloatArray) -> float:
    error = np.square(embeddings - reconstruction, dtype=np.float64).sum()
    variance = np.square(embeddings - embeddings.mean(axis=0), dtype=np.float64).sum()
    return float(error / variance) if variance > 0 else 0.0


def _moves(ids: SemanticIds, tokenizer: SemanticIdTokenizer, embeddings: FloatArray) -> dict[str, Any]:
    changed = ids.codes != ids.raw_codes
    moved = np.flatnonzero(changed.any(axis=1))
    mean_rank = None
    if len(moved):
        codes = ids.codes[moved]
        residual = tokenizer.latents(embeddings[moved]) - summed_codes(codes[:, :-1], tokenizer.codebooks)
        distances = squared_distances(residual, tokenizer.codebooks[-1])
        chosen = np.take_along_axis(distances, codes[:, -1:], axis=1)
        mean_rank = float((distances < chosen).sum(axis=1).mean())
    return {
        "moved_items": len(moved),
        "moved_above_last": int(changed[:, :-1].any(axis=1).sum()),
        "moved_mean_rank": mean_rank,
    }


def _prefix_sharing(codes: IntArray, pairs: IntArray) -> dict[str, list[float]]:
    prefix = np.zeros(len(codes), dtype=np.int64)
    share, chance = [], []
    for level in range(codes.shape[1]):
        keys = prefix * (codes[:, level].max() + 1) + codes[:, level]
        prefix = np.unique(keys, return_inverse=True)[1].astype(np.int64)
        share.append(float((prefix[pairs[:, 0]] == prefix[pairs[:, 1]]).mean()))
        chance.append(float(np.square(np.bincount(prefix) / len(codes)).sum()))
    return {"share": share, "chance": chance, "lift": [s / c for s, c in zip(share, chance, strict=True)]}


def _item_to_item_recall(quantized: FloatArray, embeddings: FloatArray, pairs: IntArray) -> dict[str, float]:
    picked = pairs[np.linspace(0, len(pairs) - 1, min(len(pairs), _MAX_RETRIEVAL_PAIRS)).astype(np.int64)]
    shuffled = quantized[np.random.default_rng(0).permutation(len(quantized))]
    vectors = {"quantized": quantized, "embeddings": embeddings, "random": shuffled}
    return {name: _recall(matrix, picked) for name, matrix in vectors.items()}


def _recall(vectors: FloatArray, pairs: IntArray) -> float:
    """Share of pairs (a, b) with b among the nearest items of a by cosine, a itself left out."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    hits = 0
    for start in range(0, len(pairs), _BLOCK_ROWS):
        source, target = pairs[start : start + _BLOCK_ROWS].T
        cosine = unit[source] @ unit.T
        rows = np.arange(len(source))
        cosine[rows, source] = -np.inf
        hits += int(((cosine > cosine[rows, target][:, None]).sum(axis=1) < _RETRIEVAL_DEPTH).sum())
    return hits / len(pairs)
