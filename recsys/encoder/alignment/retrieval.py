"""How well vectors of users find vectors of items, by cosine and exactly. Knows no model and no texts.

The measure by which encoders are compared with each other: the same call for tuned and untuned vectors, for users as
profile texts, as means of item vectors, or as bags of words, on the catalogue of the training or on another one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast, overload

import numpy as np
import numpy.typing as npt
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import normalize

from recsys.data import IntArray, Sequences
from recsys.errors import DataError

FloatArray = npt.NDArray[np.float32]
Vectors: TypeAlias = "FloatArray | sparse.csr_array"
"""Dense or sparse float [n, D]."""

_BLOCK_CELLS = 2**24


def target_ranks(
    user_vectors: Vectors, item_vectors: Vectors, targets: IntArray, seen: Sequences | None = None
) -> IntArray:
    """int64 [U]: how many items come before each user's target when all are ranked by cosine.

    Equal cosines are ordered by item index, so the result is that of a stable sort of all items.

    Args:
        user_vectors: float [U, D], of any norm.
        item_vectors: float [N, D].
        targets: int64 [U].
        seen: U histories whose items do not enter the list. A target that was seen has rank N.

    Raises:
        DataError: no user, widths or lengths differ, or a value is not finite.
    """
    _check(user_vectors, item_vectors, targets, seen)
    users, items = normalize(user_vectors), normalize(item_vectors)
    num_items = items.shape[0]
    ranks = np.empty(len(targets), dtype=np.int64)
    step = max(1, _BLOCK_CELLS // num_items)
    for start in range(0, len(targets), step):
        stop = min(start + step, len(targets))
        scores = _product(users[start:stop], items)
        wanted = targets[start:stop]
        score = scores[np.arange(stop - start), wanted]
        if seen is not None:
            part = seen.select(np.arange(start, stop))
            scores[np.repeat(np.arange(stop - start), part.lengths), part.items] = -np.inf
        before = np.arange(num_items) < wanted[:, None]
        ranks[start:stop] = (scores > score[:, None]).sum(axis=1) + ((scores == score[:, None]) & before).sum(axis=1)
        if seen is not None:
            missed = np.isneginf(scores[np.arange(stop - start), wanted])
            ranks[start:stop][missed] = num_items
    return ranks


def retrieval_recall(
    user_vectors: Vectors,
    item_vectors: Vectors,
    targets: IntArray,
    ks: Sequence[int],
    seen: Sequences | None = None,
) -> dict[int, float]:
    """Share of users whose target is among the k items of highest cosine, for each k; see `target_ranks`."""
    ranks = target_ranks(user_vectors, item_vectors, targets, seen)
    return {k: float((ranks < k).mean()) for k in ks}


@dataclass(frozen=True, kw_only=True)
class AlignmentGap:
    """How far users are from their own items, compared with other items."""

    gap: float
    """Mean cosine with positives minus mean cosine with negatives."""
    auc: float
    """Probability that a user's positive has the higher cosine of the two; ties count half."""


def alignment_gap(
    user_vectors: FloatArray, item_vectors: FloatArray, positives: IntArray, negatives: IntArray
) -> AlignmentGap:
    """Cosines of float [U, D] users with one positive and one negative item each (int64 [U], rows of [N, D])."""
    _check(user_vectors, item_vectors, positives, None)
    users, items = normalize(user_vectors), normalize(item_vectors)
    positive = (users * items[positives]).sum(axis=1)
    negative = (users * items[negatives]).sum(axis=1)
    wins = (positive > negative).mean() + 0.5 * (positive == negative).mean()
    return AlignmentGap(gap=float(positive.mean() - negative.mean()), auc=float(wins))


@overload
def mean_item_vectors(item_vectors: FloatArray, histories: Sequences) -> FloatArray: ...
@overload
def mean_item_vectors(item_vectors: sparse.csr_array, histories: Sequences) -> sparse.csr_array: ...
def mean_item_vectors(item_vectors: Vectors, histories: Sequences) -> Vectors:
    """float32 [U, D]: unit means of the unit vectors of each history's items; zero for an empty history."""
    rows = np.repeat(np.arange(len(histories)), histories.lengths)
    ones = np.ones(len(rows), dtype=np.float32)
    shape = (len(histories), item_vectors.shape[0])
    bags = sparse.coo_array((ones, (rows, histories.items)), shape=shape).tocsr()
    means = normalize(bags @ normalize(item_vectors))
    return cast(sparse.csr_array, means) if sparse.issparse(means) else np.asarray(means, dtype=np.float32)


def bag_of_words(user_texts: Sequence[str], item_texts: Sequence[str]) -> tuple[sparse.csr_array, sparse.csr_array]:
    """TF-IDF vectors of users and items, sparse: the baseline without any learning, a hard one.

    Words are weighted as in the items' texts; English stop words are out.
    """
    vectorizer = TfidfVectorizer(sublinear_tf=True, stop_words="english")
    items = vectorizer.fit_transform(item_texts)
    return sparse.csr_array(vectorizer.transform(user_texts)), sparse.csr_array(items)


def _product(users: Vectors, items: Vectors) -> npt.NDArray[np.floating]:
    scores = users @ items.T
    return scores.toarray() if sparse.issparse(scores) else np.asarray(scores)


def _check(users: Vectors, items: Vectors, targets: IntArray, seen: Sequences | None) -> None:
    if users.shape[1] != items.shape[1]:
        raise DataError(f"user vectors have width {users.shape[1]}, item vectors {items.shape[1]}; encode both alike")
    lengths = {"user vectors": users.shape[0], "targets": len(targets)}
    if seen is not None:
        lengths["seen histories"] = len(seen)
    if len(set(lengths.values())) != 1 or not len(targets):
        found = ", ".join(f"{count} {name}" for name, count in lengths.items())
        raise DataError(f"retrieval needs one of each per user, and a user at least; found {found}")
    for name, vectors in (("user", users), ("item", items)):
        values = vectors.data if sparse.issparse(vectors) else vectors
        if not np.isfinite(values).all():
            raise DataError(f"{name} vectors hold values that are not finite; encode them again")
