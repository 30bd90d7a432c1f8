"""What a reward model sees of a history and an item: frozen vectors of both, and how they meet. Learns nothing."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recsys.data import Sequences
from recsys.retrieval.towers import ContentTower


class UserItemFeatures:
    """Features of B histories and G items each, from unit item vectors; F = 2 D + 1.

    A user is the recency-weighted mean of the history's vectors, scaled to unit length (`ContentTower`); the features
    are the elementwise product of user and item, whose sum is their cosine, that cosine, and the item.

    Args:
        item_vectors: float32 [N, D].
        decay: weight of an item of the history beside that of the one after it; 1 for their plain mean.
    """

    def __init__(self, item_vectors: npt.NDArray[np.float32], decay: float = 0.7) -> None:
        self.decay = decay
        self._tower = ContentTower(item_vectors, decay)
        self._vectors = torch.from_numpy(self._tower.item_vectors)

    @property
    def num_features(self) -> int:
        """F."""
        return 2 * self._vectors.shape[1] + 1

    @property
    def num_items(self) -> int:
        """N."""
        return len(self._vectors)

    def users(self, histories: Sequences) -> Tensor:
        """float32 [B, D]: unit rows; zeros for an empty history."""
        return torch.from_numpy(self._tower.encode(histories))

    def __call__(self, histories: Sequences, items: Tensor) -> Tensor:
        """float32 [B, G, F] on the CPU, for items int64 [B, G]; beside -1 it says nothing."""
        vectors = self._vectors[items.cpu()]
        meeting = self.users(histories).unsqueeze(1) * vectors
        return torch.cat([meeting, meeting.sum(dim=-1, keepdim=True), vectors], dim=-1)
