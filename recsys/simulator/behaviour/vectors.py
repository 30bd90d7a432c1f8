"""What simulated users see of items: their content, and who else took them. Knows no choices.

Item vectors are blocks side by side, each of unit rows: `content` from the words of the catalogue, `taste` from the log
that the simulator is fitted on. Nothing comes from the recommender under test, which would be judged by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from recsys.data.catalog import Catalog
from recsys.data.sequences import IntArray, Sequences
from recsys.encoder.collaborative import cooccurrence_embeddings, unit_rows

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class ItemVectors:
    """Blocks of unit vectors of all items."""

    blocks: dict[str, FloatArray]
    """By name float32 [num_items, width]; a zero row where a block knows nothing of an item."""

    @property
    def widths(self) -> dict[str, int]:
        """Columns of each block, in order."""
        return {name: block.shape[1] for name, block in self.blocks.items()}

    @cached_property
    def joined(self) -> FloatArray:
        """float32 [num_items, D]: the blocks side by side."""
        return np.concatenate(list(self.blocks.values()), axis=1)


def content_vectors(catalog: Catalog, dim: int = 64) -> FloatArray:
    """float32 [num_items, dim] of unit norm: words of titles and whole categories by TF-IDF, its truncated SVD."""
    frame = catalog.frame.select("title", "categories")
    texts = [
        [*(title or "").lower().split(), *(f"category {name}" for name in categories), *_words(categories)]
        for title, categories in frame.iter_rows()
    ]
    if not any(texts):
        return np.zeros((catalog.num_items, 1), dtype=np.float32)
    counts = TfidfVectorizer(analyzer=_as_it_is, min_df=1, sublinear_tf=True).fit_transform(texts)
    width = min(dim, counts.shape[0] - 1, counts.shape[1] - 1)
    if width < 1:
        return np.ones((catalog.num_items, 1), dtype=np.float32)
    reduced = TruncatedSVD(width, algorithm="randomized", random_state=0).fit_transform(counts)
    # In rows: sums over vectors in columns round otherwise, and a loaded model must be the same as the fitted one.
    return np.ascontiguousarray(unit_rows(reduced.astype(np.float32)))


def main_categories(catalog: Catalog) -> IntArray:
    """int64 [num_items]: of each item its first category that not more than half of the items have; 0 = none."""
    lists = catalog.frame["categories"].to_list()
    names, counts = np.unique([name for entries in lists for name in set(entries)], return_counts=True)
    index = {name: place for place, name in enumerate(names[counts <= len(lists) / 2].tolist(), start=1)}
    return np.array([next((index[name] for name in entries if name in index), 0) for entries in lists], dtype=np.int64)


def taste_vectors(log: Sequences, num_items: int, dim: int = 64, window: int = 5) -> FloatArray:
    """float32 [num_items, dim] of unit norm: who was taken near whom in `log`; zero where an item had no neighbour."""
    vectors, _ = cooccurrence_embeddings(log, num_items, dim=min(dim, num_items - 1), window=window)
    return np.ascontiguousarray(unit_rows(vectors))


def _words(categories: list[str]) -> list[str]:
    return [word for name in categories for word in name.lower().split()]


def _as_it_is(tokens: list[str]) -> list[str]:
    return tokens
