"""User towers: a history becomes a vector whose inner products with item vectors say what comes next.

They know neither index nor fusion. Items are numbered as in the catalogue that a tower was made over.
"""

from __future__ import annotations

import copy
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from recsys.data.sequences import Sequences
from recsys.data.windows import pad_right, similar_lengths
from recsys.evaluation.baselines import SasRec
from recsys.evaluation.baselines.counting import recency_weights

FloatArray = npt.NDArray[np.float32]


class Tower(Protocol):
    """Histories and items in one space."""

    @property
    def item_vectors(self) -> FloatArray:
        """float32 [N, D]."""

    def encode(self, histories: Sequences) -> FloatArray:
        """float32 [B, D]: the query of each history; zeros for an empty one."""


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
        self._vectors = _unit_rows(embeddings.astype(np.float32))
        self._decay = decay

    @property
    def item_vectors(self) -> FloatArray:
        """float32 [N, D]: unit rows; zeros for an item with a zero embedding."""
        return self._vectors

    def with_items(self, embeddings: FloatArray) -> ContentTower:
        """The same over more items: float32 [N', D], first those that it has."""
        twin = copy.copy(self)
        new = _unit_rows(embeddings[len(self._vectors) :].astype(np.float32))
        twin._vectors = np.concatenate([self._vectors, new])
        return twin

    def encode(self, histories: Sequences) -> FloatArray:
        """float32 [B, D]: unit rows; zeros for an empty history."""
        weights = recency_weights(histories, len(self._vectors), self._decay)
        return _unit_rows(np.asarray(weights @ self._vectors, dtype=np.float32))


def _unit_rows(vectors: FloatArray) -> FloatArray:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(norms, np.finfo(np.float32).tiny), dtype=np.float32)
