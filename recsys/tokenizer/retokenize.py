"""Semantic IDs for a changed catalogue, with as few changed names as can be. Knows codes, vectors and a tokenizer.

A generator has learned the old names: every name that changes is forgotten, and histories in a log turn into others.
An item keeps its name as long as the nearest codes of its vector are the ones they were. All others, new items among
them, get the codes that are left, as any new item would.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from recsys.data import IntArray
from recsys.errors import DataError
from recsys.tokenizer.agreement import agreement
from recsys.tokenizer.interface import SemanticIdTokenizer
from recsys.tokenizer.nearest import NearestCodeTokenizer
from recsys.tokenizer.residual import FloatArray
from recsys.tokenizer.semantic_ids import SemanticIds

# Encoding the same text again differs by rounding, up to some 1e-6 of the norm.
_SAME_VECTOR = 1e-4


@dataclass(frozen=True, kw_only=True, eq=False)
class Retokenization:
    """What `retokenize` makes of a catalogue."""

    ids: SemanticIds
    """Names of the items of the new catalogue."""
    tokenizer: SemanticIdTokenizer
    """Encodes items that come later: the one given, or, fitted again, the same under the old numbers."""
    report: dict[str, Any]
    """See `retokenize`."""


def retokenize(
    old_ids: SemanticIds,
    old_embeddings: FloatArray,
    tokenizer: SemanticIdTokenizer,
    new_embeddings: FloatArray,
    old_rows: IntArray,
    *,
    refitted: bool,
) -> Retokenization:
    """Name the items of a new catalogue, keeping old names.

    With the old codebooks, an item changes its name only when its vector moved to other codewords. Codebooks that were
    fitted again number their codewords at random: they get the numbers of the old ones first, level by level, so that
    as many items as can be keep their code of that level (Hungarian assignment on how many items two codewords share;
    that needs no common space of the two tokenizers). Little of it reaches the whole name: k-means on 10 % more items
    (Amazon Scientific texts, 3 x 256 codes) left 53 % of the old items their first code, 13 % two and 5 % all, and
    without the old numbers none. Fit again when the codebooks do not serve the catalogue any more, not to tidy up.

    Args:
        old_ids: names of the old catalogue.
        old_embeddings: float32 [n_old, dim_old], its vectors.
        tokenizer: the one that made `old_ids`, or one fitted again with as many levels and codes; a level that
            counts may have any size. Left as it is.
        new_embeddings: float32 [n, dim], the new catalogue in the space of `tokenizer`.
        old_rows: int64 [n], the row of the same item in the old catalogue, each at most once; -1 = a new item.
        refitted: whether `tokenizer` was fitted again. Only tokenizers with ordered codes can be.

    Returns:
        The names, the tokenizer to go on with, and a report: `refitted`, `removed_items`: old items that are no more;
        `unchanged_items`, `changed_items` and `new_items`: `count`, and of the first two (the items with the same
        vector as before, up to rounding, and the others) `renamed`: how many changed any code; `kept_share`: share of
        old items still there whose first 1, 2, ... codes stayed; of parallel codes, 1, 2, ... or more. Refitted,
        also `kept_share_without_relabelling`, of the nearest codes before and after, beside
        `kept_share_with_relabelling`.

    Raises:
        DataError: `old_rows` that do not fit the catalogues, another tokenizer than the one that made `old_ids`
            although `refitted` is False, codebooks of other sizes, or a level that counts on one side only.
    """
    _check_rows(old_rows, len(new_embeddings), old_ids.num_items)
    if len(old_embeddings) != old_ids.num_items:
        raise DataError(f"{len(old_embeddings)} old vectors, but names for {old_ids.num_items} items")
    _check_sizes(old_ids, tokenizer, refitted)
    kept = np.flatnonzero(old_rows >= 0)
    before = old_rows[kept]
    raw_codes = tokenizer.encode_raw(new_embeddings)
    report: dict[str, Any] = {"refitted": refitted, "removed_items": old_ids.num_items - len(kept)}
    if refitted:
        if not isinstance(tokenizer, NearestCodeTokenizer):
            raise DataError(
                f"{type(tokenizer).__name__} cannot take over old numbers once it is fitted again; "
                "keep the old one, with refitted=False"
            )
        if (tokenizer.config.collisions == "extra_level") != old_ids.ordinal:
            raise DataError(
                "of the old names and the tokenizer only one has a level that counts (collisions extra_level); fit it "
                "with the same tokenizer.collisions"
            )
        report["kept_share_without_relabelling"] = _kept_share(old_ids, raw_codes[kept], before, raw=True)
        labels = _matching_labels(raw_codes[kept], old_ids, before)
        if old_ids.ordinal:
            labels.append(np.arange(tokenizer.codebook_sizes[-1]))
        tokenizer = tokenizer.relabelled(labels)
        raw_codes = np.stack([numbers[column] for numbers, column in zip(labels, raw_codes.T, strict=True)], axis=1)
        report["kept_share_with_relabelling"] = _kept_share(old_ids, raw_codes[kept], before, raw=True)
    elif (tokenizer.encode_raw(old_embeddings) != old_ids.raw_codes).any():
        raise DataError("the old names were made by another tokenizer; pass the one that made them, or refitted=True")

    stays = (raw_codes[kept] == old_ids.raw_codes[before]).all(axis=1)
    # A counting level that is smaller than it was has no room for the last of the old names.
    stays &= (old_ids.codes[before] < np.asarray(tokenizer.codebook_sizes)).all(axis=1)
    codes = np.empty_like(raw_codes)
    codes[kept[stays]] = old_ids.codes[before[stays]]
    named = np.zeros(len(codes), dtype=bool)
    named[kept[stays]] = True
    if not named.all():
        codes[~named] = tokenizer.encode(new_embeddings[~named], codes[named])
    ids = SemanticIds(
        codes=codes,
        raw_codes=raw_codes,
        codebook_sizes=tokenizer.codebook_sizes,
        ordered=old_ids.ordered,
        ordinal=old_ids.ordinal,
    )
    renamed = (codes[kept] != old_ids.codes[before]).any(axis=1)
    same = _same_vectors(old_embeddings, new_embeddings, before, kept)
    report |= {
        "unchanged_items": {"count": int(same.sum()), "renamed": int(renamed[same].sum())},
        "changed_items": {"count": int((~same).sum()), "renamed": int(renamed[~same].sum())},
        "new_items": {"count": int((old_rows < 0).sum())},
        "kept_share": _kept_share(old_ids, codes[kept], before, raw=False),
    }
    return Retokenization(ids=ids, tokenizer=tokenizer, report=report)


def _check_rows(old_rows: IntArray, num_new: int, num_old: int) -> None:
    if old_rows.shape != (num_new,):
        raise DataError(f"old_rows must be int64 [{num_new}], a row for each new vector, found {list(old_rows.shape)}")
    outside = (old_rows < -1) | (old_rows >= num_old)
    if outside.any():
        raise DataError(f"old_rows: {old_rows[outside][0]} is no row of the {num_old} old items, and not -1")
    rows, counts = np.unique(old_rows[old_rows >= 0], return_counts=True)
    if (counts > 1).any():
        raise DataError(f"old_rows: old item {rows[counts > 1][0]} occurs {counts.max()} times; at most once")


def _check_sizes(old_ids: SemanticIds, tokenizer: SemanticIdTokenizer, refitted: bool) -> None:
    old, new = old_ids.codebook_sizes, tokenizer.codebook_sizes
    if refitted and old_ids.ordinal:
        # The counting level has the room that the largest group of its own fit needs, which no setting fixes.
        old, new = old[:-1], new[:-1]
    if old != new:
        raise DataError(
            f"the old names have codebooks of {list(old)}, the tokenizer of {list(new)}; fit it with the same levels "
            "and codebook_size"
        )


def _matching_labels(new_codes: IntArray, old_ids: SemanticIds, before: IntArray) -> list[IntArray]:
    """Per level int64 [K]: for each new code the old number under which most items keep their code.

    A level that counts is left out. `new_codes` are int64 [n, L] of the items whose old rows are `before` (int64 [n]);
    items that have kept all codes so far count most, since only they can keep
    the whole name.
    """
    old_codes = old_ids.raw_codes[before]
    labels: list[IntArray] = []
    kept = np.ones(len(new_codes), dtype=bool)
    for level in range(old_ids.levels - old_ids.ordinal):
        new, old, size = new_codes[:, level], old_codes[:, level], old_ids.codebook_sizes[level]
        pairs = new * size + old
        shared = np.bincount(pairs[kept], minlength=size * size) * (len(pairs) + 1.0)
        shared += np.bincount(pairs, minlength=size * size)
        # Among codes that share no item, the own number is as good as any.
        table = shared.reshape(size, size) + np.eye(size) / (size + 1)
        labels.append(np.asarray(linear_sum_assignment(table, maximize=True)[1], dtype=np.int64))
        kept &= labels[-1][new] == old
    return labels


def _kept_share(old_ids: SemanticIds, codes: IntArray, before: IntArray, *, raw: bool) -> list[float]:
    """Per depth, how many items have the codes that their old row has."""
    if len(before) == 0:
        return []
    old_codes = old_ids.raw_codes if raw else old_ids.codes
    values: list[float] = agreement(codes, old_codes[before], ordered=old_ids.ordered).tolist()
    return values


def _same_vectors(old: FloatArray, new: FloatArray, before: IntArray, kept: IntArray) -> np.ndarray[Any, Any]:
    """bool [k]: whether the items' vectors are equal up to rounding."""
    if old.shape[1] != new.shape[1]:
        return np.zeros(len(kept), dtype=bool)
    distance = np.linalg.norm(new[kept] - old[before], axis=1)
    return np.asarray(distance <= _SAME_VECTOR * np.linalg.norm(old[before], axis=1))
