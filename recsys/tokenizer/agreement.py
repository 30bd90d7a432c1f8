"""How much of their codes two items share. Knows codes only.

Ordered codes agree down to a depth: the first d are equal. Codes of parallel codebooks have no depth; what
counts is how many are equal, whichever they are.
"""

from __future__ import annotations

import math

import numpy as np

from recsys.data import IntArray
from recsys.tokenizer.residual import DoubleArray

_CELLS = 1 << 24


def agreement(first: IntArray, second: IntArray, *, ordered: bool) -> DoubleArray:
    """float64 [L]: share of pairs whose first 1..L codes are equal, or, unordered, that have 1..L equal codes or more.

    `first` and `second` are int64 [..., L] and broadcast against each other.
    """
    equal = first == second
    if ordered:
        prefixes = np.logical_and.accumulate(equal, axis=-1).reshape(-1, equal.shape[-1])
        return np.asarray(prefixes.mean(axis=0))
    counts = equal.sum(axis=-1).ravel()
    return np.asarray([(counts >= least).mean() for least in range(1, equal.shape[-1] + 1)])


def chance(codes: IntArray, *, ordered: bool) -> DoubleArray:
    """float64 [L]: `agreement` of two items drawn at random, with replacement, from int64 [n, L].

    Exact for ordered codes. Unordered codes of more than 4096 items are compared for a sample of items, each with all.
    """
    num_items, levels = codes.shape
    if ordered:
        prefix = np.zeros(num_items, dtype=np.int64)
        shares = []
        for level in range(levels):
            keys = prefix * (codes[:, level].max() + 1) + codes[:, level]
            prefix = np.unique(keys, return_inverse=True)[1].astype(np.int64)
            shares.append(np.square(np.bincount(prefix) / num_items).sum())
        return np.asarray(shares)
    sampled = min(num_items, math.ceil(_CELLS / num_items))
    rows = np.random.default_rng(0).permutation(num_items)[:sampled] if sampled < num_items else np.arange(num_items)
    total = np.zeros(levels)
    for row in rows:
        total += agreement(codes[row], codes, ordered=False)
    return total / len(rows)
