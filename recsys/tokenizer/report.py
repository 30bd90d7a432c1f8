"""Quality of semantic IDs in numbers. Judges codes and reconstructions; knows nothing of how they were learned.

Read `share` together with `lift`: few used codes give a high share for free, very fine prefixes a high lift. The
numbers say what the codes are like, not how well a generator learns them; only its own evaluation does.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl

from recsys.data import IntArray
from recsys.tokenizer.agreement import agreement, chance
from recsys.tokenizer.interface import SemanticIdTokenizer
from recsys.tokenizer.residual import (
    DoubleArray,
    FloatArray,
    row_blocks,
    squared_distances,
    summed_codes,
    unit_rows,
)
from recsys.tokenizer.semantic_ids import SemanticIds, num_distinct, row_numbers

_ROUNDING_DECIMALS = 6
_RETRIEVAL_DEPTH = 50
_MAX_RETRIEVAL_PAIRS = 2000
# Pairs times items: fewer pairs of a catalogue above 2 million items.
_MAX_RETRIEVAL_CELLS = 1 << 32
_BLOCK_ROWS = 256


def tokenizer_report(
    ids: SemanticIds, tokenizer: SemanticIdTokenizer, embeddings: FloatArray, pairs: IntArray | None = None
) -> dict[str, Any]:
    """Everything worth knowing about a tokenization, as one JSON document.

    Args:
        ids: the codes of the catalogue.
        tokenizer: the fitted tokenizer that made them. Of one for parallel codes (`ids.ordered` is False) only
            `reconstruct`, of whole tuples, is called; of others `latents` and `codebooks` as well.
        embeddings: float32 [num_items, dim], what it was fitted on.
        pairs: int64 [m, 2], consecutive items of users; those of an item with itself do not count. Pass
            transitions that neither the embeddings nor the codes were fitted on, else `share`, `lift` and
            `i2i_recall@50` flatter fused embeddings. None = left out, as when no pair counts.

    Returns:
        num_items, levels, codebook_sizes, ordered, and
        dup_rate_before, dup_rate: 1 - distinct tuples / items, by nearest codes and after resolving collisions.
        in_group_rate_before, in_group_rate: share of items that share their tuple with another.
        max_group_before, max_group: most items on one tuple.
        exact_dup_rate: the same rate among embeddings rounded to 1e-6, the floor for nearest codes.
        perplexity, used_codes, dead_codes: per level over the whole catalogue, of the final codes;
        perplexity_before, used_codes_before, dead_codes_before: of the nearest codes.
        rel_recon: per depth, squared error of the nearest codes' reconstruction over the embeddings' variance; of
        parallel codes one number, for all of them;
        rel_recon_resolved: the same of the final codes, at full depth.
        moved_items: how many changed any code to become unique; moved_above_last: how many of them a code before
        the last (ordered codes only); moved_codes: how many codes such an item changed, on average.
        moved_mse_before, moved_mse_after: squared error (sum over dimensions) of the moved items' reconstruction, on
        average, by nearest and by final codes.
        moved_mean_rank, moved_median_rank: how many last codes were nearer to the item than the one it has now, given
        the codes before. None when nothing moved, and where a rank says nothing: for a last code that counts, and for
        parallel codes.
        share, chance, lift: per depth, how often a pair shares the prefix, how often two items drawn at random
        (with replacement) do, and their quotient. Of parallel codes: share_equal, chance_equal, lift_equal, for
        pairs with 1, 2, ... equal codes or more.
        adjusted_mutual_information: of parallel codes, [M, M] between codebooks: 0 = independent, 1 = the same
        partition of the items. Only the adjusted kind: of many small clusters, random ones share much information.
        i2i_recall@50: how often b is among the 50 nearest items of a, for pairs (a, b), by quantized vectors, by
        the embeddings themselves, and by quantized vectors handed out at random.
    """
    report: dict[str, Any] = {
        "num_items": ids.num_items,
        "levels": ids.levels,
        "codebook_sizes": list(ids.codebook_sizes),
        "ordered": ids.ordered,
    }
    for suffix, codes in (("_before", ids.raw_codes), ("", ids.codes)):
        report |= {f"{name}{suffix}": value for name, value in code_usage(codes, ids.codebook_sizes).items()}
    report["exact_dup_rate"] = 1 - _num_distinct(embeddings) / ids.num_items

    depths = range(1, ids.levels + 1) if ids.ordered else (ids.levels,)
    variance = _variance(embeddings)
    report["rel_recon"] = [
        _relative_error(embeddings, tokenizer, ids.raw_codes[:, :depth], variance) for depth in depths
    ]
    report["rel_recon_resolved"] = _relative_error(embeddings, tokenizer, ids.codes, variance)
    report |= _moves(ids, tokenizer, embeddings)
    if not ids.ordered:
        report["adjusted_mutual_information"] = _mutual_information(ids.codes)
    if pairs is not None:
        # An item shares every prefix with itself and is never among its own neighbours: no news either way.
        pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    if pairs is not None and len(pairs):
        report |= _sharing(ids, pairs)
        report[f"i2i_recall@{_RETRIEVAL_DEPTH}"] = _item_to_item_recall(ids.codes, tokenizer, embeddings, pairs)
    return report


def code_usage(codes: IntArray, codebook_sizes: tuple[int, ...]) -> dict[str, Any]:
    """Collisions of the whole tuples, and the use of each codebook."""
    num_items = len(codes)
    groups = np.unique(row_numbers(codes), return_counts=True)[1]
    shares = [
        np.bincount(column, minlength=size) / num_items for column, size in zip(codes.T, codebook_sizes, strict=True)
    ]
    return {
        "dup_rate": 1 - len(groups) / num_items,
        "in_group_rate": float(groups[groups > 1].sum() / num_items),
        "max_group": int(groups.max()),
        "perplexity": [_perplexity(share) for share in shares],
        "used_codes": [int((share > 0).sum()) for share in shares],
        "dead_codes": [int((share == 0).sum()) for share in shares],
    }


def _num_distinct(embeddings: FloatArray) -> int:
    """Distinct rows, once rounded. Told apart by hashes of 64 bits, which two of ten million share 3 times in 10^6."""
    hashes = np.empty(len(embeddings), dtype=np.uint64)
    for part in row_blocks(*embeddings.shape):
        rounded = np.round(embeddings[part], _ROUNDING_DECIMALS) + 0.0  # + 0.0 makes one zero of the two
        hashes[part] = pl.from_numpy(rounded).hash_rows().to_numpy()
    return num_distinct(hashes)


def _perplexity(shares: DoubleArray) -> float:
    """exp of the entropy: the number of codes that would be as diverse when used evenly."""
    used = shares[shares > 0]
    return float(np.exp(-(used * np.log(used)).sum()))


def _variance(embeddings: FloatArray) -> float:
    """The summed squared distances to the mean."""
    blocks = list(row_blocks(*embeddings.shape))
    sizes = [block.stop - block.start for block in blocks]
    mean = np.average([embeddings[block].mean(axis=0) for block in blocks], axis=0, weights=sizes).astype(np.float32)
    return sum(float(np.square(embeddings[block] - mean, dtype=np.float64).sum()) for block in blocks)


def _relative_error(embeddings: FloatArray, tokenizer: SemanticIdTokenizer, codes: IntArray, variance: float) -> float:
    """What the codes leave of `variance`."""
    error = sum(
        float(np.square(embeddings[part] - tokenizer.reconstruct(codes[part]), dtype=np.float64).sum())
        for part in row_blocks(*embeddings.shape)
    )
    return error / variance if variance > 0 else 0.0


def _moves(ids: SemanticIds, tokenizer: SemanticIdTokenizer, embeddings: FloatArray) -> dict[str, Any]:
    """What uniqueness cost."""
    changed = ids.codes != ids.raw_codes
    moved = np.flatnonzero(changed.any(axis=1))
    moves: dict[str, Any] = {"moved_items": len(moved)}
    if ids.ordered:
        moves["moved_above_last"] = int(changed[:, :-1].any(axis=1).sum())
    ranks: IntArray = np.zeros(0, dtype=np.int64)
    if ids.ordered and not ids.ordinal:
        ranks = _ranks(ids.codes, tokenizer, embeddings, moved)
    return moves | {
        "moved_codes": float(changed[moved].sum(axis=1).mean()) if len(moved) else None,
        "moved_mse_before": _mean_squared_error(embeddings, tokenizer, ids.raw_codes, moved),
        "moved_mse_after": _mean_squared_error(embeddings, tokenizer, ids.codes, moved),
        "moved_mean_rank": float(np.mean(ranks)) if len(ranks) else None,
        "moved_median_rank": float(np.median(ranks)) if len(ranks) else None,
    }


def _mean_squared_error(
    embeddings: FloatArray, tokenizer: SemanticIdTokenizer, codes: IntArray, rows: IntArray
) -> float | None:
    if len(rows) == 0:
        return None
    errors = np.empty(len(rows))
    for part in row_blocks(len(rows), embeddings.shape[1]):
        difference = embeddings[rows[part]] - tokenizer.reconstruct(codes[rows[part]])
        errors[part] = np.square(difference, dtype=np.float64).sum(axis=1)
    return float(errors.mean())


def _ranks(codes: IntArray, tokenizer: SemanticIdTokenizer, embeddings: FloatArray, rows: IntArray) -> IntArray:
    """int64 [r]: how many last codes were nearer to the item of each row than the chosen one."""
    ranks = np.empty(len(rows), dtype=np.int64)
    for part in row_blocks(len(rows), len(tokenizer.codebooks[-1])):
        own = codes[rows[part]]
        residual = tokenizer.latents(embeddings[rows[part]]) - summed_codes(own[:, :-1], tokenizer.codebooks)
        distances = squared_distances(residual, tokenizer.codebooks[-1])
        ranks[part] = (distances < np.take_along_axis(distances, own[:, -1:], axis=1)).sum(axis=1)
    return ranks


def _mutual_information(codes: IntArray) -> list[list[float]]:
    from sklearn.metrics import adjusted_mutual_info_score  # here, because importing it takes a second

    columns = codes.shape[1]
    table = np.eye(columns)
    for first, second in itertools.combinations(range(columns), 2):
        table[first, second] = adjusted_mutual_info_score(codes[:, first], codes[:, second])
        table[second, first] = table[first, second]
    values: list[list[float]] = table.tolist()
    return values


def _sharing(ids: SemanticIds, pairs: IntArray) -> dict[str, list[float]]:
    share = agreement(ids.codes[pairs[:, 0]], ids.codes[pairs[:, 1]], ordered=ids.ordered)
    by_chance = chance(ids.codes, ordered=ids.ordered)
    suffix = "" if ids.ordered else "_equal"
    return {
        f"share{suffix}": share.tolist(),
        f"chance{suffix}": by_chance.tolist(),
        f"lift{suffix}": (share / by_chance).tolist(),
    }


def _item_to_item_recall(
    codes: IntArray, tokenizer: SemanticIdTokenizer, embeddings: FloatArray, pairs: IntArray
) -> dict[str, float]:
    count = min(len(pairs), _MAX_RETRIEVAL_PAIRS, max(1, _MAX_RETRIEVAL_CELLS // len(codes)))
    picked = pairs[np.linspace(0, len(pairs) - 1, count).astype(np.int64)]
    shuffled = np.random.default_rng(0).permutation(len(codes))
    vectors: dict[str, Callable[[IntArray], FloatArray]] = {
        "quantized": lambda rows: tokenizer.reconstruct(codes[rows]),
        "embeddings": lambda rows: embeddings[rows],
        "random": lambda rows: tokenizer.reconstruct(codes[shuffled[rows]]),
    }
    return {name: _recall(vectors_of, len(codes), picked) for name, vectors_of in vectors.items()}


def _recall(vectors_of: Callable[[IntArray], FloatArray], num_items: int, pairs: IntArray) -> float:
    """Share of pairs (a, b) with b among the nearest items of a by cosine, a itself left out.

    `vectors_of` gives float32 [r, dim] for int64 [r] items.
    """
    batches = [pairs[start : start + _BLOCK_ROWS].T for start in range(0, len(pairs), _BLOCK_ROWS)]
    sources = [unit_rows(vectors_of(source)) for source, _ in batches]
    limits = [
        (source @ unit_rows(vectors_of(target)).T).diagonal()
        for source, (_, target) in zip(sources, batches, strict=True)
    ]
    nearer = [np.zeros(len(limit), dtype=np.int64) for limit in limits]
    for part in row_blocks(num_items, _BLOCK_ROWS):
        items = np.arange(part.start, part.stop)
        unit = unit_rows(vectors_of(items))
        for batch, source, limit, count in zip(batches, sources, limits, nearer, strict=True):
            cosine = source @ unit.T
            for own in batch:
                rows = np.flatnonzero((own >= part.start) & (own < part.stop))
                cosine[rows, own[rows] - part.start] = -np.inf
            count += (cosine > limit[:, None]).sum(axis=1)
    return float((np.concatenate(nearer) < _RETRIEVAL_DEPTH).mean())
