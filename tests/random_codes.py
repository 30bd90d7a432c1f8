"""Semantic IDs of a random catalogue."""

from __future__ import annotations

import numpy as np


def random_codes(num_items: int, sizes: tuple[int, ...], seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    flat = rng.choice(int(np.prod(sizes)), size=num_items, replace=False)
    return np.stack(np.unravel_index(flat, sizes), axis=1).astype(np.int64)
