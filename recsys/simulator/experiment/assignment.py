"""The bucket and the arm of a unit: the same ones each time, with nothing stored. Knows nothing of what arms do.

Tang et al., "Overlapping experiment infrastructure", KDD 2010.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from recsys.data.sequences import IntArray

NUM_BUCKETS = 10_000
NOBODY = -1
"""The arm of buckets that belong to none."""


def bucket_of(salt: str, unit: str) -> int:
    """The bucket of a unit, 0 .. 9999: SHA-256 of `salt:unit`, modulo 10 000.

    The remainder favours no bucket by more than 1e-73, and nobody can guess a salt's split from another's.
    """
    digest = hashlib.sha256(f"{salt}:{unit}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest) % NUM_BUCKETS


def split_buckets(shares: Sequence[Mapping[str, int]]) -> tuple[list[str], IntArray]:
    """The arm of each bucket after a series of splits, each of which moves as few buckets as it can.

    A split of other shares takes buckets from the arms that shrink and gives them to those that grow: whoever is in
    an arm that grows stays in it, and no more users change than the shares demand.

    Args:
        shares: of each split in turn, buckets of each arm, together at most 10 000; the rest belongs to no arm.

    Returns:
        The arms, and int64 [10 000] their index, -1 for none.
    """
    arms = sorted({arm for split in shares for arm in split})
    owner = np.full(NUM_BUCKETS, NOBODY, dtype=np.int64)
    for split in shares:
        for index, arm in enumerate(arms):
            held = np.flatnonzero(owner == index)
            owner[held[split.get(arm, 0) :]] = NOBODY
        for index, arm in enumerate(arms):
            missing = split.get(arm, 0) - int((owner == index).sum())
            owner[np.flatnonzero(owner == NOBODY)[:missing]] = index
    return arms, owner


def assign(units: Sequence[str], salt: str, shares: Mapping[str, int]) -> list[str | None]:
    """The arm of each unit under one split, None for those in no arm.

    Args:
        units: ids, such as those of users.
        salt: another one shuffles all units anew.
        shares: buckets of each arm, together at most 10 000.
    """
    arms, owner = split_buckets([shares])
    found = [owner[bucket_of(salt, unit)] for unit in units]
    return [None if arm == NOBODY else arms[arm] for arm in found]
