"""SIGER (arXiv 2508.06154): semantic item graphs infused with behaviour, noise by modulus, dual alignment.

The paper names these parts; the formulas are derived for this implementation, since its own are not public:

    S+_m = share S_m + (1 - share) C                              `recsys.encoder.graph.item_graph`
    H_m  = S+_m^Ls (W2 LeakyReLU(W1 x_m + b1) * sigmoid(E_id G_m))   users: the mean over their items
    H    = sum_m softmax_m(q . tanh(A H_m)) H_m
    E    = LightGCN of E_id;   e = E + unit H;   score = e_u . e_i
    e'   = e + noise |e| / mean |e| sign(e) * unit(Delta),   Delta ~ U(0, 1)^d
    L    = BPR + lambda_1 (mean_m InfoNCE(H_m, sg E) + sym InfoNCE(E, H)) + lambda_2 InfoNCE(e', e'') + L2

Contrasts are over the distinct users and the distinct items of a batch. Items without an interaction have the mean E of
their nearest items that have one, and new items the mean E and E_id of their nearest items.

Shapes: U users, N items, n of them, M modalities, d width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn

from recsys.encoder.graph.config import SIGERConfig
from recsys.encoder.graph.item_graph import (
    collaborative_graph,
    enhanced_graph,
    fill_from_neighbours,
    semantic_graph,
)
from recsys.encoder.graph.lightgcn import initial_norm, layer_mean
from recsys.encoder.graph.losses import bpr, info_nce
from recsys.encoder.graph.model import ContentInputs, GraphModel, NewItems, Placement, embedding, rows
from recsys.encoder.graph.propagation import SparseProduct, row_normalised, user_item_graph
from recsys.encoder.graph.sampling import Batch
from recsys.encoder.modalities import Modality
from recsys.errors import DataError


def perturb(vectors: Tensor, config: SIGERConfig) -> Tensor:
    """float [n, d]: `vectors` with noise in the orthant of each; its length goes by the vector's norm.

    Draws from torch's global generator.
    """
    norms = vectors.norm(dim=1, keepdim=True)
    relative = norms / norms.mean()
    if config.noise_scale == "constant":
        relative = torch.ones_like(relative)
    elif config.noise_scale == "inverse":
        relative = 1 / relative.clamp(min=1e-6)
    direction = nn.functional.normalize(torch.rand_like(vectors), dim=1)
    noise: Tensor = config.noise * relative * vectors.sign() * direction
    return vectors + noise


@dataclass(frozen=True, kw_only=True, eq=False)
class Branches:
    """What the branches say about users, then items: n = U + N rows."""

    behaviour: Tensor
    """float [n, d]: E."""
    semantics: list[Tensor]
    """M of float [n, d]: H_m."""
    fused: Tensor
    """float [n, d]: H."""

    @property
    def combined(self) -> Tensor:
        """float [n, d]: e."""
        return self.behaviour + nn.functional.normalize(self.fused, dim=1)


class SIGERContent(nn.Module):
    """The networks from content, gated by behaviour, to the semantic branch."""

    def __init__(self, config: SIGERConfig, dims: Sequence[int]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(
            nn.Sequential(
                nn.Linear(dim, config.hidden_dim), nn.LeakyReLU(), nn.Linear(config.hidden_dim, config.dim, bias=False)
            )
            for dim in dims
        )
        self.gates = nn.ModuleList(nn.Linear(config.dim, config.dim, bias=False) for _ in dims)
        self.attention = nn.Sequential(
            nn.Linear(config.dim, config.dim, bias=False), nn.Tanh(), nn.Linear(config.dim, 1, bias=False)
        )

    def initial(self, inputs: ContentInputs, item_ids: Tensor) -> list[Tensor]:
        """M of float [n, d]: gated content before propagation, zero for items without the modality."""
        return [
            network(vectors) * torch.sigmoid(gate(item_ids)) * inputs.present[:, m, None]
            for m, (network, gate, vectors) in enumerate(zip(self.networks, self.gates, inputs.vectors, strict=True))
        ]

    def fuse(self, semantics: list[Tensor]) -> Tensor:
        """float [n, d] of M [n, d]: weighted by attention."""
        stacked = torch.stack(semantics, dim=1)
        return (torch.softmax(self.attention(stacked), dim=1) * stacked).sum(dim=1)


class SIGER(GraphModel):
    """The trainable model.

    Raises:
        DataError: there is no modality.
    """

    def __init__(self, config: SIGERConfig, modalities: Sequence[Modality], num_users: int, num_items: int) -> None:
        super().__init__()
        if not modalities:
            raise DataError("SIGER needs at least one modality, found none; give it the text vectors")
        self.config, self._modalities, self._num_users = config, modalities, num_users
        self._inputs = ContentInputs.of(modalities)
        self.ids = embedding(num_users + num_items, config.dim)
        self.content = SIGERContent(config, [modality.dim for modality in modalities])

    def set_interactions(self, interactions: sparse.csr_array) -> None:
        """See `GraphModel`."""
        config = self.config
        collaborative = collaborative_graph(interactions, config)
        self._item_graphs = [
            SparseProduct(
                enhanced_graph(semantic_graph(modality, interactions, config), collaborative, config.semantic_share)
            )
            for modality in self._modalities
        ]
        self._graph = SparseProduct(user_item_graph(interactions))
        self._user_mean = SparseProduct(row_normalised(interactions))
        self._fill = SparseProduct(fill_from_neighbours(self._modalities, interactions, config.neighbours))

    def branches(self) -> Branches:
        """Both branches, of all users and items."""
        behaviour = layer_mean(self.ids, self._graph, self.config.layers)
        users, items = behaviour.tensor_split([self._num_users])
        semantics = [layers[-1] for layers in self._semantic_layers()]
        both = [torch.cat([self._user_mean(semantic), semantic]) for semantic in semantics]
        return Branches(behaviour=torch.cat([users, self._fill(items)]), semantics=both, fused=self.content.fuse(both))

    def loss(self, batch: Batch) -> Tensor:
        """BPR, the contrasts, and L2 of the initial vectors in the batch."""
        config, num_users = self.config, self._num_users
        branches = self.branches()
        combined = branches.combined
        user, positive, negative = (
            rows(combined, index) for index in (batch.users, batch.items + num_users, batch.negatives + num_users)
        )
        total = bpr((user * positive).sum(dim=1), (user * negative).sum(dim=1))
        total = total + config.weight_decay * initial_norm(self.ids, batch, num_users)
        for nodes in (np.unique(batch.users), np.unique(batch.items) + num_users):
            if config.perturbation_weight > 0:
                views = [perturb(rows(combined, nodes), config) for _ in range(2)]
                total = total + config.perturbation_weight * info_nce(views[0], views[1], config.temperature)
            if config.alignment_weight > 0:
                total = total + config.alignment_weight * self._alignment(branches, nodes)
        return total

    def representations(self) -> tuple[Tensor, Tensor]:
        """See `GraphModel`."""
        users, items = self.branches().combined.tensor_split([self._num_users])
        return users, items

    def placement(self) -> SIGERPlacement:
        """See `GraphModel`."""
        config = self.config
        placement = SIGERPlacement(config, [vectors.shape[1] for vectors in self._inputs.vectors])
        placement.content.load_state_dict(self.content.state_dict())
        placement.ids = self._fill(self.ids[self._num_users :]).detach()
        placement.behaviour = self.branches().behaviour[self._num_users :].detach()
        # The last layer is what a new item's own last layer is compared with, not what it is made of.
        placement.layers = torch.stack([torch.stack(layers[:-1]) for layers in self._semantic_layers()]).detach()
        return placement

    def _semantic_layers(self) -> list[list[Tensor]]:
        """For each modality float [N, d] after 0 .. `semantic_layers` steps."""
        initial = self.content.initial(self._inputs, self._fill(self.ids[self._num_users :]))
        return [
            _steps(first, graph, self.config.semantic_layers)
            for first, graph in zip(initial, self._item_graphs, strict=True)
        ]

    def _alignment(self, branches: Branches, nodes: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Tensor:
        temperature = self.config.temperature
        behaviour, fused = rows(branches.behaviour, nodes), rows(branches.fused, nodes)
        total = (info_nce(behaviour, fused, temperature) + info_nce(fused, behaviour, temperature)) / 2
        if self.config.anchor:
            anchored = [info_nce(rows(part, nodes), behaviour.detach(), temperature) for part in branches.semantics]
            total = total + torch.stack(anchored).mean()
        return total


class SIGERPlacement(Placement):
    """Content gated by the neighbours' behaviour, propagated over them; and their mean behaviour."""

    ids: Tensor
    behaviour: Tensor
    layers: Tensor

    def __init__(self, config: SIGERConfig, dims: Sequence[int]) -> None:
        super().__init__()
        self.content = SIGERContent(config, dims).double()
        for name in ("ids", "behaviour", "layers"):
            self.register_buffer(name, torch.zeros(0))

    def forward(self, new: NewItems) -> Tensor:
        """See `Placement`. An item is one of its own nearest; no behaviour means no behaviour edges."""
        current = self.content.initial(new.inputs, new.overall_mean(self.ids))
        for step in range(self.layers.shape[1]):
            for m, own in enumerate(current):
                others = new.neighbours[m].shape[1]
                current[m] = (own + others * new.neighbour_mean(self.layers[m, step], m)) / (others + 1)
        fused = self.content.fuse(current)
        return new.overall_mean(self.behaviour) + nn.functional.normalize(fused, dim=1)


def _steps(initial: Tensor, graph: SparseProduct, layers: int) -> list[Tensor]:
    """`initial` and what it becomes after 1 .. `layers` steps."""
    reached = [initial]
    for _ in range(layers):
        reached.append(graph(reached[-1]))
    return reached
