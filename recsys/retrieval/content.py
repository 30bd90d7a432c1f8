"""Items by their content alone: the source that needs no fit, and that every model has."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from recsys.retrieval.index import ItemIndex, choose_kind
from recsys.retrieval.sources import FloatArray, TowerSource
from recsys.retrieval.towers import ContentTower


def content_source(vectors: FloatArray, index: Path | None = None) -> TowerSource:
    """Items whose vectors (float32 [N, D]) are like those of the history.

    Args:
        vectors: of all items.
        index: what `save_content_index` wrote for them; None: it is built now, of a million items in minutes.

    Raises:
        ArtifactError: the index is damaged, or of other vectors.
    """
    tower = ContentTower(vectors)
    units = tower.item_vectors
    built = ItemIndex(units) if index is None else ItemIndex.load(index, units)
    return TowerSource(tower, np.arange(len(vectors)), len(vectors), built)


def save_content_index(vectors: FloatArray, directory: Path) -> None:
    """Build the index of `content_source`, and write it into a directory to be made; none where no index is faster."""
    if choose_kind(len(vectors)) != "flat":
        directory.mkdir()
        ItemIndex(ContentTower(vectors).item_vectors).save(directory)
