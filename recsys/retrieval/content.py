"""Items by their content alone: the source that needs no fit, and that every model has."""

from __future__ import annotations

from pathlib import Path

from recsys.retrieval.index import ItemIndex, choose_kind
from recsys.retrieval.sources import FloatArray, TowerSource
from recsys.retrieval.towers import ContentTower


def content_source(vectors: FloatArray, saved: Path | None = None) -> TowerSource:
    """Items whose vectors (float32 [N, D]) are like those of the history.

    Args:
        vectors: of all items.
        saved: what `save_content` wrote for them; None: it is made now, of a million items in minutes.

    Raises:
        ArtifactError: it is damaged, or of other vectors.
    """
    if saved is None:
        tower = ContentTower(vectors)
        index = ItemIndex(tower.item_vectors)
    else:
        tower = ContentTower.load(saved, vectors)
        index = ItemIndex.load(saved, tower.item_vectors)
    return TowerSource(tower, len(vectors), len(vectors), index)


def save_content(vectors: FloatArray, directory: Path) -> None:
    """Make what `content_source` needs, and write it into a directory to be made; not where that takes no time."""
    if choose_kind(len(vectors)) != "flat":
        tower = ContentTower(vectors)
        directory.mkdir()
        tower.save(directory)
        ItemIndex.build(directory, tower.item_vectors)
