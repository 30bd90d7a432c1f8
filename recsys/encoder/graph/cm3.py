"""CM3 (arXiv 2508.01226): calibrated uniformity and spherical Bézier fusion; structure as in the authors' code.

    f_m = W2 LeakyReLU(W1 x_m + b1)                               each modality for itself
    mix = spherical Bézier of unit(V_m x_m + c_m) at lambda       lambda ~ Beta(alpha, alpha), .5 outside of training
    item = [unit f_1 ; .. ; unit f_M ; mix]                       no ids; with one modality, mix = unit(V_1 x_1 + c_1)
    user = [unit p_1 ; .. ; unit p_(M+1)]                         learned
    both summed over 0 .. L steps on the user-item graph; then
    user blocks times softmax(theta_u), and item + A_item item    A_item: mean of the k nearest, frozen
    L = align(unit user, unit item) + gamma (uniformity(users) + calibrated uniformity(negatives)) / 2

Beyond the authors' code: an item may lack modalities (its block is zero, the curve is that of the others), the
similarity in the calibrated uniformity is detached, and items are placed by the same path without interactions.

Shapes: U users, N items, n items, M modalities, d block width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy import sparse
from torch import Tensor, nn

from recsys.encoder.graph.config import CM3Config
from recsys.encoder.graph.fusion import mean_fusion, spherical_bezier
from recsys.encoder.graph.item_graph import neighbour_mean, weights_of
from recsys.encoder.graph.losses import alignment, calibrated_uniformity, uniformity
from recsys.encoder.graph.model import ContentInputs, GraphModel, NewItems, Placement, rows
from recsys.encoder.graph.propagation import SparseProduct, user_item_graph
from recsys.encoder.graph.sampling import Batch
from recsys.encoder.modalities import Modality
from recsys.errors import ConfigError, DataError

_EVALUATION_WEIGHT = 0.5


class CM3Content(nn.Module):
    """The networks from content to item blocks."""

    def __init__(self, config: CM3Config, dims: Sequence[int]) -> None:
        super().__init__()
        self._fuse = spherical_bezier if config.fusion == "spherical" else mean_fusion
        self.networks = nn.ModuleList(
            nn.Sequential(
                nn.Linear(dim, config.hidden_dim), nn.LeakyReLU(), nn.Linear(config.hidden_dim, config.dim, bias=False)
            )
            for dim in dims
        )
        self.fusion_maps = nn.ModuleList(nn.Linear(dim, config.dim) for dim in dims)

    def forward(self, inputs: ContentInputs, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Item blocks [n, (M + 1) d], each of unit norm or zero, and the last of them, the mix [n, d].

        Args:
            inputs: of n items.
            weight: float [n], lambda.
        """
        blocks = self._units(self.networks, inputs)
        mix = self._fuse(torch.stack(self._units(self.fusion_maps, inputs), dim=1), inputs.present, weight)
        return torch.cat([*blocks, mix], dim=1), mix

    @staticmethod
    def _units(maps: nn.ModuleList, inputs: ContentInputs) -> list[Tensor]:
        return [
            nn.functional.normalize(network(vectors), dim=1) * inputs.present[:, m, None]
            for m, (network, vectors) in enumerate(zip(maps, inputs.vectors, strict=True))
        ]


class CM3(GraphModel):
    """The trainable model.

    Raises:
        DataError: there is no modality.
        ConfigError: `graph_weights` does not name exactly the modalities, or gives them no weight.
    """

    def __init__(self, config: CM3Config, modalities: Sequence[Modality], num_users: int) -> None:
        super().__init__()
        if not modalities:
            raise DataError("CM3 needs at least one modality, found none; give it the text vectors")
        _check_weights(config, modalities)
        self.config, self.adam_decay = config, config.weight_decay
        self._inputs = ContentInputs.of(modalities)
        self._item_weights = weights_of(modalities, config.graph_weights)
        parts = zip(self._item_weights, modalities, strict=True)
        item_graph = sum(
            (weight * neighbour_mean(modality, config.neighbours) for weight, modality in parts),
            start=sparse.csr_array((modalities[0].num_items,) * 2),
        )
        self._item_graph = SparseProduct(sparse.csr_array(item_graph))
        num_blocks = len(modalities) + 1
        self.content = CM3Content(config, [modality.dim for modality in modalities])
        self.preferences = nn.Parameter(torch.randn(num_users, num_blocks, config.dim))
        self.block_logits = nn.Parameter(torch.zeros(num_users, num_blocks))

    def set_interactions(self, interactions: sparse.csr_array) -> None:
        """See `GraphModel`."""
        self._graph = SparseProduct(user_item_graph(interactions))

    def loss(self, batch: Batch) -> Tensor:
        """Alignment and uniformity of the batch."""
        config = self.config
        concentration = torch.full((len(self._inputs.present),), config.mix_concentration)
        users, base, mix = self._propagated(torch.distributions.Beta(concentration, concentration).sample())
        items = base + self._item_graph(base)
        user, positive, negative = (
            nn.functional.normalize(rows(table, index), dim=1)
            for table, index in ((users, batch.users), (items, batch.items), (items, batch.negatives))
        )
        total = alignment(user, positive)
        if config.uniformity_weight == 0:
            return total
        similarity = None
        if config.uniformity == "calibrated":
            chosen = rows(mix, batch.negatives)
            similarity = self._similarity(chosen.detach() if config.detach_similarity else chosen)
        repulsion = uniformity(user) + calibrated_uniformity(negative, similarity)
        return total + config.uniformity_weight * repulsion / 2

    def representations(self) -> tuple[Tensor, Tensor]:
        """See `GraphModel`."""
        users, base, _ = self._propagated(self._middle())
        return users, base + self._item_graph(base)

    def similarities(self) -> Tensor:
        """float32 [N, N]: the clipped cosine of mixes that excuses closeness, as outside of training."""
        return self._similarity(self._propagated(self._middle())[2])

    def placement(self) -> CM3Placement:
        """See `GraphModel`."""
        placement = CM3Placement(self.config, [vectors.shape[1] for vectors in self._inputs.vectors])
        placement.content.load_state_dict(self.content.state_dict())
        placement.weights = torch.tensor(self._item_weights, dtype=torch.float64)
        placement.base = self._propagated(self._middle())[1].detach()
        return placement

    def _middle(self) -> Tensor:
        return torch.full((len(self._inputs.present),), _EVALUATION_WEIGHT)

    def _similarity(self, mix: Tensor) -> Tensor:
        return (mix @ mix.T).clamp(0.0, self.config.max_similarity)

    def _propagated(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Users and items after the user-item graph, items before the item graph, and the mixes."""
        blocks, mix = self.content(self._inputs, weight)
        num_users = len(self.preferences)
        preferences = nn.functional.normalize(self.preferences, dim=2)
        total = current = torch.cat([preferences.flatten(1), blocks])
        for _ in range(self.config.layers):
            current = self._graph(current)
            total = total + current
        users, items = total.tensor_split([num_users])
        shares = torch.softmax(self.block_logits, dim=1)
        users = (users.reshape(*shares.shape, -1) * shares[:, :, None]).flatten(1)
        return users, items, mix


class CM3Placement(Placement):
    """The model's path for an item without interactions: its blocks, and one step to its nearest items."""

    base: Tensor
    weights: Tensor

    def __init__(self, config: CM3Config, dims: Sequence[int]) -> None:
        super().__init__()
        self.content = CM3Content(config, dims).double()
        self.register_buffer("weights", torch.zeros(len(dims), dtype=torch.float64))
        self.register_buffer("base", torch.zeros(0))

    def forward(self, new: NewItems) -> Tensor:
        """See `Placement`. An item is one of its own nearest, the others are the catalogue's."""
        blocks, _ = self.content(new.inputs, torch.full((len(new.inputs.present),), _EVALUATION_WEIGHT))
        vectors: Tensor = blocks
        for m, weight in enumerate(self.weights):
            others = new.neighbours[m].shape[1]
            own = blocks * new.inputs.present[:, m, None]
            vectors = vectors + weight * (own + others * new.neighbour_mean(self.base, m)) / (others + 1)
        return vectors


def _check_weights(config: CM3Config, modalities: Sequence[Modality]) -> None:
    weights = config.graph_weights
    names = {modality.name for modality in modalities}
    if weights and (weights.keys() != names or min(weights.values()) < 0 or sum(weights.values()) <= 0):
        raise ConfigError(
            f"graph_weights is {weights}; must give each of {', '.join(sorted(names))} a weight of 0 or more, not all 0"
        )
