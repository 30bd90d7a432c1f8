"""LightGCN (He et al., arXiv 2002.02126): the control that knows who consumed what, and no content.

    E^(l+1) = D^-1/2 A D^-1/2 E^(l),   E = mean of E^(0) .. E^(L),   BPR on dot products

Beyond the paper: items without an interaction, whose id nothing has trained, get the mean vector of their nearest items
by content, if there is content; and so do new items.

Shapes: U users, N items, d width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy import sparse
from torch import Tensor

from recsys.encoder.graph.config import LightGCNConfig
from recsys.encoder.graph.item_graph import fill_from_neighbours
from recsys.encoder.graph.losses import bpr
from recsys.encoder.graph.model import GraphModel, NewItems, Placement, embedding, rows
from recsys.encoder.graph.propagation import SparseProduct, user_item_graph
from recsys.encoder.graph.sampling import Batch
from recsys.encoder.modalities import Modality


def layer_mean(initial: Tensor, graph: SparseProduct, layers: int) -> Tensor:
    """float [n, d]: the mean of `initial` and of what it becomes after 1 .. `layers` steps on the graph."""
    total = current = initial
    for _ in range(layers):
        current = graph(current)
        total = total + current
    return total / (layers + 1)


class LightGCN(GraphModel):
    """Vectors of ids, propagated."""

    def __init__(self, config: LightGCNConfig, modalities: Sequence[Modality], num_users: int, num_items: int) -> None:
        super().__init__()
        self.config, self._modalities, self._num_users = config, modalities, num_users
        self.ids = embedding(num_users + num_items, config.dim)

    def set_interactions(self, interactions: sparse.csr_array) -> None:
        """See `GraphModel`."""
        self._graph = SparseProduct(user_item_graph(interactions))
        self._fill = SparseProduct(fill_from_neighbours(self._modalities, interactions, self.config.neighbours))

    def loss(self, batch: Batch) -> Tensor:
        """BPR and L2 of the initial vectors in the batch."""
        users, items = layer_mean(self.ids, self._graph, self.config.layers).tensor_split([self._num_users])
        user, positive, negative = (
            rows(users, batch.users),
            rows(items, batch.items),
            rows(items, batch.negatives),
        )
        ranking = bpr((user * positive).sum(dim=1), (user * negative).sum(dim=1))
        return ranking + self.config.weight_decay * initial_norm(self.ids, batch, self._num_users)

    def representations(self) -> tuple[Tensor, Tensor]:
        """See `GraphModel`."""
        users, items = layer_mean(self.ids, self._graph, self.config.layers).tensor_split([self._num_users])
        return users, self._fill(items)

    def placement(self) -> NeighbourPlacement:
        """See `GraphModel`."""
        return NeighbourPlacement(self.representations()[1].detach())


class NeighbourPlacement(Placement):
    """A new item is the mean of its nearest items by content."""

    table: Tensor

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.register_buffer("table", table)

    def forward(self, new: NewItems) -> Tensor:
        """See `Placement`."""
        return new.overall_mean(self.table)


def initial_norm(ids: Tensor, batch: Batch, num_users: int) -> Tensor:
    """Scalar: half the mean squared norm of the batch's id vectors, out of [U + N, d]."""
    used = [rows(ids, batch.users), rows(ids, batch.items + num_users), rows(ids, batch.negatives + num_users)]
    return 0.5 * torch.cat(used).square().sum() / len(batch.users)
