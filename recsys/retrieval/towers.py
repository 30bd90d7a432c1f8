"""User towers: a history becomes a vector whose inner products with item vectors say what comes next.

They know neither index nor fusion. Items are numbered as in the catalogue that a tower was made over.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from recsys.data.rows import Rows
from recsys.data.sequences import Sequences
from recsys.data.windows import pad_right, similar_lengths
from recsys.errors import ArtifactError
from recsys.evaluation.baselines import SasRec
from recsys.evaluation.baselines.counting import recency_weights

FloatArray = npt.NDArray[np.float32]

_PIECE_ROWS = 1 << 16
_UNITS = "unit_vectors.safetensors"
_COMPARED = 1000
"""Vectors that are made again, to see whether they are the same."""


class Reader(Protocol):
    """Reads histories."""

    def encode(self, histories: Sequences) -> FloatArray:
        """float32 [B, D]: the query of each history; zeros for an empty one."""


class Tower(Reader, Protocol):
    """Histories and items in one space."""

    @property
    def item_vectors(self) -> FloatArray:
        """float32 [N, D]."""


class SasRecTower(SasRec):
    """SASRec as a tower: its state after the last item, against its item table. Still the baseline that it is."""

    @property
    def item_vectors(self) -> FloatArray:
        """float32 [N, D]: the fitted table."""
        return np.asarray(self._fitted().item_vectors.weight.detach().cpu().numpy())

    @torch.no_grad()
    def encode(self, histories: Sequences) -> FloatArray:
        """float32 [B, D]; inner products with `item_vectors` are the baseline's `scores`."""
        model = self._fitted().eval()
        device = model.item_vectors.weight.device
        rows = np.flatnonzero(histories.lengths > 0)
        queries = torch.zeros(len(histories), model.item_vectors.embedding_dim)
        kept = np.minimum(histories.lengths, self.config.max_history)[rows]
        for group in similar_lengths(kept):
            items = pad_right(histories.items, histories.offsets[1:][rows[group]] - kept[group], kept[group])
            states = model(torch.from_numpy(items).to(device))
            last = torch.from_numpy(kept[group] - 1).to(device)
            queries[torch.from_numpy(rows[group])] = states[torch.arange(len(group), device=device), last].cpu()
        return np.asarray(queries.numpy())


class ContentTower:
    """Unit item embeddings, and their recency-weighted mean over a history, `decay ** age`, scaled to unit length.

    Needs no fit, so it reaches items without any interaction; inner products are cosines.

    Args:
        embeddings: float32 [N, D].
        decay: weight of an item beside that of the one after it.
    """

    def __init__(self, embeddings: FloatArray, decay: float = 0.7) -> None:
        self._vectors = _unit_rows(np.asarray(embeddings, dtype=np.float32))
        self._further = self._vectors[:0]
        self._decay = decay

    def save(self, directory: Path) -> None:
        """Write the unit vectors into an existing directory."""
        save_file({"vectors": self._vectors}, directory / _UNITS)

    @staticmethod
    def is_saved(directory: Path) -> bool:
        """Whether `save` wrote there."""
        return (directory / _UNITS).is_file()

    @classmethod
    def load(cls, directory: Path, embeddings: FloatArray, decay: float = 0.7) -> ContentTower:
        """The tower over `embeddings` (float32 [N, D]) by what `save` wrote of it, and stays a map of its file, one in
        memory for all processes that load it.

        Raises:
            ArtifactError: it is missing or damaged, or the embeddings are others.
        """
        try:
            # By way of PyTorch they are a map.
            with safe_open(directory / _UNITS, framework="pt") as tensors:
                vectors = tensors.get_tensor("vectors").numpy()
        except (OSError, SafetensorError) as error:
            raise ArtifactError(f"content: cannot read {directory / _UNITS}: {error}; make it again") from error
        some = np.linspace(0, len(embeddings) - 1, min(len(embeddings), _COMPARED)).astype(np.int64)
        # Not to the last bit, which another kind of processor may give otherwise.
        if vectors.shape != embeddings.shape or not np.allclose(vectors[some], _unit_rows(embeddings[some]), atol=1e-5):
            raise ArtifactError(f"content: {directory} was built over other vectors; load it with those of its run")
        tower = cls(embeddings[:0], decay)
        tower._vectors = vectors
        return tower

    @property
    def item_vectors(self) -> FloatArray:
        """float32 [N, D]: unit rows, zeros for an item with a zero embedding; of the items that it was made over."""
        return self._vectors

    @property
    def further_vectors(self) -> FloatArray:
        """float32 [K, D]: likewise, of those that `with_items` has added."""
        return self._further

    def with_items(self, further: FloatArray) -> ContentTower:
        """The same with other items, float32 [K, D], behind those that it was made over."""
        twin = copy.copy(self)
        twin._further = _unit_rows(np.asarray(further, dtype=np.float32))
        return twin

    def encode(self, histories: Sequences) -> FloatArray:
        """float32 [B, D]: unit rows; zeros for an empty history."""
        rows = Rows(self._vectors, self._further)
        read, places = np.unique(histories.items, return_inverse=True)
        weights = recency_weights(replace(histories, items=places), len(read), self._decay)
        return _unit_rows(np.asarray(weights @ rows.take(read), dtype=np.float32))


def _unit_rows(vectors: FloatArray) -> FloatArray:
    unit = np.empty(vectors.shape, dtype=np.float32)
    # In pieces: whole, the vectors of millions of items are in memory three times.
    for begin in range(0, len(vectors), _PIECE_ROWS):
        piece = vectors[begin : begin + _PIECE_ROWS]
        norms = np.linalg.norm(piece, axis=1, keepdims=True)
        np.divide(piece, np.maximum(norms, np.finfo(np.float32).tiny), out=unit[begin : begin + _PIECE_ROWS])
    return unit
