"""Items by their content alone: the source that needs no fit, and that every model has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from recsys.errors import ArtifactError
from recsys.retrieval.index import ItemIndex, choose_kind
from recsys.retrieval.sources import FloatArray, TowerSource
from recsys.retrieval.towers import ContentTower

_UNITS = "unit_vectors.safetensors"


def content_source(vectors: FloatArray, saved: Path | None = None) -> TowerSource:
    """Items whose vectors (float32 [N, D]) are like those of the history.

    Args:
        vectors: of all items.
        saved: what `save_content` wrote for them, and stays a map of files, one in memory for all processes; None:
            it is made now, of a million items in minutes.

    Raises:
        ArtifactError: it is damaged, or of other vectors.
    """
    if saved is None:
        tower = ContentTower(vectors)
        index = ItemIndex(tower.item_vectors)
    else:
        tower = ContentTower.of_units(_read_units(saved / _UNITS))
        index = ItemIndex.load(saved, tower.item_vectors)
    return TowerSource(tower, np.arange(len(vectors)), len(vectors), index)


def save_content(vectors: FloatArray, directory: Path) -> None:
    """Make what `content_source` needs, and write it into a directory to be made; not where that takes no time."""
    if choose_kind(len(vectors)) != "flat":
        units = ContentTower(vectors).item_vectors
        directory.mkdir()
        save_file({"vectors": units}, directory / _UNITS)
        ItemIndex(units).save(directory)


def _read_units(file: Path) -> FloatArray:
    try:
        # By way of PyTorch they are a map of the file.
        with safe_open(file, framework="pt") as tensors:
            units: FloatArray = tensors.get_tensor("vectors").numpy()
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"content: cannot read {file}: {error}; build the bundle again") from error
    return units
