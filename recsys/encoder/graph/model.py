"""What every graph encoder is to the training loop, to `fit` and to new items. Holds no method's formulas.

Shapes: U users, N items, n items of the catalogue or new ones, M modalities, d width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn

from recsys.encoder.collaborative import FloatArray, unit_rows
from recsys.encoder.graph.item_graph import nearest_items
from recsys.encoder.graph.sampling import Batch
from recsys.encoder.modalities import Modality


@dataclass(frozen=True, kw_only=True, eq=False)
class ContentInputs:
    """Modalities as networks read them."""

    vectors: list[Tensor]
    """M of float [n, D_m], rows of norm sqrt(D_m), so that networks of any width start alike; zero where absent."""
    present: Tensor
    """bool [n, M]."""

    @classmethod
    def of(cls, modalities: Sequence[Modality], dtype: torch.dtype = torch.float32) -> ContentInputs:
        """Of modalities over the same items; there must be one at least."""
        scaled = [unit_rows(modality.vectors) * np.sqrt(modality.dim) for modality in modalities]
        return cls(
            vectors=[torch.from_numpy(vectors).to(dtype) for vectors in scaled],
            present=torch.from_numpy(np.stack([modality.present for modality in modalities], axis=1)),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class NewItems:
    """n items outside of the catalogue, and where their content lies in it."""

    inputs: ContentInputs
    """In float64: what one item gets must not depend on those beside it."""
    neighbours: list[Tensor]
    """M of int64 [n, k]: the nearest items of the catalogue; not to be read where the modality is absent."""

    @classmethod
    def of(cls, modalities: Sequence[Modality], catalogue: Sequence[Modality], k: int) -> NewItems:
        """Of modalities in the order and with the widths of `catalogue`."""
        pairs = zip(modalities, catalogue, strict=True)
        nearest = [nearest_items(new.vectors, known, k)[0] for new, known in pairs]
        return cls(
            inputs=ContentInputs.of(modalities, torch.float64),
            neighbours=[torch.from_numpy(items) for items in nearest],
        )

    def neighbour_mean(self, table: Tensor, modality: int) -> Tensor:
        """float64 [n, d]: mean of rows of [N, d] over the neighbours by one modality; zero where it is absent."""
        mean = table.double()[self.neighbours[modality]].mean(dim=1)
        return mean * self.inputs.present[:, modality, None]

    def overall_mean(self, table: Tensor) -> Tensor:
        """float64 [n, d]: `neighbour_mean` averaged over the modalities that an item has."""
        total = torch.stack([self.neighbour_mean(table, m) for m in range(len(self.neighbours))]).sum(dim=0)
        return total / self.inputs.present.sum(dim=1, keepdim=True).clamp(min=1)


class GraphModel(nn.Module, ABC):
    """A trainable encoder of users and items over a graph that can be exchanged."""

    adam_decay: float = 0.0
    """Weight decay of all parameters, as part of Adam's gradient; for methods that do not decay in their loss."""

    @abstractmethod
    def set_interactions(self, interactions: sparse.csr_array) -> None:
        """Propagate on the graph of float32 0/1 [U, N] from now on."""

    @abstractmethod
    def loss(self, batch: Batch) -> Tensor:
        """Scalar to minimise. Draws from torch's global generator."""

    @abstractmethod
    def representations(self) -> tuple[Tensor, Tensor]:
        """float32 [U, d] of users and [N, d] of items, not normalised, without randomness."""

    @abstractmethod
    def placement(self) -> Placement:
        """How new items get their vector, given the present parameters and graph."""


class Placement(nn.Module, ABC):
    """From the content of new items to their vectors. Its whole state is its `state_dict`."""

    @abstractmethod
    def forward(self, new: NewItems) -> Tensor:
        """float64 [n, d], in the space of `GraphModel.representations`, not normalised."""


def embedding(count: int, dim: int) -> nn.Parameter:
    """float32 [count, dim] from a normal distribution of deviation .1, as LightGCN's authors use."""
    return nn.Parameter(0.1 * torch.randn(count, dim))


def rows(table: Tensor, index: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> Tensor:
    """float [B, d] of [n, d], with a gradient that is the same in every run (indexing with threads has not)."""
    return nn.functional.embedding(torch.from_numpy(index), table)


def to_array(tensor: Tensor) -> FloatArray:
    """float32 numpy copy."""
    array: FloatArray = tensor.detach().to(torch.float32).numpy().copy()
    return array
