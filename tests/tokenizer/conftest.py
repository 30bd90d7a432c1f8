"""A small catalogue with known structure."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Networks this small run slower on several threads, and many times slower on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def embeddings() -> np.ndarray:
    """float32 [400, 24]: 8 clusters of 50 items; items 0 and 1 are exact duplicates, as are 2, 3 and 4."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(8, 24))
    vectors = (centres[np.arange(400) // 50] + 0.3 * rng.normal(size=(400, 24))).astype(np.float32)
    vectors[1] = vectors[0]
    vectors[3:5] = vectors[2]
    return vectors
