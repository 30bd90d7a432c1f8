"""A small catalogue with known structure."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture(scope="session")
def embeddings() -> np.ndarray:
    """float32 [400, 24]: 8 clusters of 50 items; items 0 and 1 are exact duplicates, as are 2, 3 and 4."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(8, 24))
    vectors = (centres[np.arange(400) // 50] + 0.3 * rng.normal(size=(400, 24))).astype(np.float32)
    vectors[1] = vectors[0]
    vectors[3:5] = vectors[2]
    return vectors
