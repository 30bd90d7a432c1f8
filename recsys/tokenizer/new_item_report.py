"""Whether a frozen tokenizer serves items it was not fitted on, in numbers. Compares them with the items of the fit."""

from __future__ import annotations

from typing import Any

import numpy as np

from recsys.data import IntArray
from recsys.errors import DataError
from recsys.tokenizer.agreement import agreement
from recsys.tokenizer.interface import SemanticIdTokenizer
from recsys.tokenizer.residual import FloatArray, row_blocks, unit_rows
from recsys.tokenizer.semantic_ids import SemanticIds, row_numbers

_NEIGHBOURS = 10
_MAX_QUERIES = 2000
# Queries times existing items: fewer queries of a catalogue above 2 million items.
_MAX_CELLS = 1 << 32
_BLOCK_ROWS = 256


def new_item_report(
    ids: SemanticIds, tokenizer: SemanticIdTokenizer, embeddings: FloatArray, new_items: IntArray
) -> dict[str, Any]:
    """New items beside existing ones.

    Args:
        ids: codes of the whole catalogue, of new items as `encode_raw` and `encode` gave them.
        tokenizer: that made them, fitted on the other items; only `reconstruct` is called.
        embeddings: float32 [num_items, dim].
        new_items: int64 [k], the rows that the tokenizer was not fitted on, each once.

    Returns:
        num_new, num_existing, and
        dup_rate_before, max_group_before: of the new items among themselves, by nearest codes.
        on_existing_rate: share of new items whose nearest codes are an existing item's name already.
        moved_rate: `new` and `existing`, share of items that got other codes than the nearest.
        rel_recon: `new` and `existing`, squared error of the nearest codes' reconstruction over the squared distance
        to the existing items' mean.
        neighbour_recall: `new`, `existing` and `chance`: how many of an item's 10 nearest existing items by embedding
        (cosine, itself left out) share its first 1, 2, ... final codes; of parallel codes, 1, 2, ... codes or more.
        Chance is the same with existing items drawn at random; all codes of ordered ones are never shared. If `new` is
        near `existing`, new items stand where the generator expects their like.

    Raises:
        DataError: no new item, or fewer than 12 existing ones.
    """
    is_new = np.zeros(ids.num_items, dtype=bool)
    is_new[new_items] = True
    existing = np.flatnonzero(~is_new)
    if len(new_items) == 0 or len(existing) < _NEIGHBOURS + 2:
        raise DataError(
            f"a report on new items needs one at least, and {_NEIGHBOURS + 2} existing ones; "
            f"found {len(new_items)} and {len(existing)}"
        )
    counts = np.unique(row_numbers(ids.raw_codes[new_items]), return_counts=True)[1]
    names = row_numbers(np.concatenate([ids.codes[existing], ids.raw_codes[new_items]]))
    moved = (ids.codes != ids.raw_codes).any(axis=1)
    blocks = list(row_blocks(*embeddings.shape))
    centre = sum(embeddings[part][~is_new[part]].sum(axis=0, dtype=np.float64) for part in blocks) / len(existing)
    error, spread = np.empty(ids.num_items), np.empty(ids.num_items)
    for part in blocks:
        difference = embeddings[part] - tokenizer.reconstruct(ids.raw_codes[part])
        error[part] = np.square(difference, dtype=np.float64).sum(axis=1)
        spread[part] = np.square(embeddings[part] - centre).sum(axis=1)
    num_queries = min(_MAX_QUERIES, max(1, _MAX_CELLS // len(existing)))
    rng = np.random.default_rng(0)
    groups = {"new": new_items, "existing": existing}
    recall: dict[str, list[float]] = {}
    for name, items in groups.items():
        queries = np.sort(rng.permutation(items)[:num_queries])
        nearest = _nearest_existing(embeddings, queries, existing)
        recall[name] = agreement(ids.codes[queries][:, None], ids.codes[nearest], ordered=ids.ordered).tolist()
    queries = np.sort(rng.permutation(new_items)[:num_queries])
    drawn = rng.choice(existing, size=(len(queries), 10 * _NEIGHBOURS))
    recall["chance"] = agreement(ids.codes[queries][:, None], ids.codes[drawn], ordered=ids.ordered).tolist()
    return {
        "num_new": len(new_items),
        "num_existing": len(existing),
        "dup_rate_before": 1 - len(counts) / len(new_items),
        "max_group_before": int(counts.max()),
        "on_existing_rate": float(np.isin(names[len(existing) :], names[: len(existing)]).mean()),
        "moved_rate": {name: float(moved[items].mean()) for name, items in groups.items()},
        "rel_recon": {
            name: float(error[items].sum() / max(spread[items].sum(), 1e-12)) for name, items in groups.items()
        },
        "neighbour_recall": recall,
    }


def _nearest_existing(embeddings: FloatArray, queries: IntArray, existing: IntArray) -> IntArray:
    """int64 [q, 10]: the nearest existing items by cosine of float32 [num_items, dim], not the query."""
    sources = unit_rows(embeddings[queries])
    items = np.empty((len(queries), 0), dtype=np.int64)
    cosines = np.empty((len(queries), 0), dtype=np.float32)
    for block in row_blocks(len(existing), _BLOCK_ROWS):
        compared = existing[block]
        unit = unit_rows(embeddings[compared])
        near = []
        for start in range(0, len(queries), _BLOCK_ROWS):
            part = slice(start, start + _BLOCK_ROWS)
            cosine = sources[part] @ unit.T
            cosine[queries[part, None] == compared] = -np.inf
            near.append(_best(np.broadcast_to(compared, cosine.shape), cosine))
        found, found_cosines = (np.concatenate(parts) for parts in zip(*near, strict=True))
        items, cosines = _best(np.concatenate([items, found], axis=1), np.concatenate([cosines, found_cosines], axis=1))
    return items


def _best(items: IntArray, cosines: FloatArray) -> tuple[IntArray, FloatArray]:
    """Of [q, k] items and their cosines those of the 10 largest, in any order; all of 10 or fewer."""
    if items.shape[1] <= _NEIGHBOURS:
        return items, cosines
    best = np.argpartition(-cosines, _NEIGHBOURS - 1, axis=1)[:, :_NEIGHBOURS]
    return np.take_along_axis(items, best, axis=1), np.take_along_axis(cosines, best, axis=1)
