"""LETTER's two regularisers of a residual quantizer (arXiv 2405.07314). Knows vectors and codes, not networks.

    L_cf  = CE over the batch of z^ h^T, h frozen behaviour vectors      items consumed together get like codes
    L_div = CE of q C^T against another code of q's group                groups of codewords close up and move apart

LETTER takes h from a trained SASRec. Here they are the spectral vectors of co-occurrence, which need no training run.

Shapes: B items of a batch, d the width of the codes, K codes, L levels.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from recsys.data import IntArray, Sequences
from recsys.encoder.collaborative import cooccurrence_embeddings
from recsys.errors import DataError
from recsys.tokenizer.balanced import balanced_kmeans
from recsys.tokenizer.quantizer import Quantized, ResidualQuantizer
from recsys.tokenizer.residual import FloatArray, kmeans

# Items whose behaviour is this alike (cosine) are no negatives of each other: of 4344 items, each has two such.
_SAME_BEHAVIOUR = 0.9
# LETTER has 10 groups of 256 codes.
_CODES_PER_GROUP = 26
_GROUP_ITERATIONS = 10
_IGNORED = -100


class Letter:
    """Both terms with their weights, during one fit.

    Args:
        collaborative_weight: alpha.
        diversity_weight: beta; needs a codebook that is trained by gradients.
        behaviour: what `behaviour_vectors` gave; None when alpha is 0.
        seed: of the groups of codewords.
    """

    def __init__(
        self, collaborative_weight: float, diversity_weight: float, behaviour: tuple[Tensor, Tensor] | None, seed: int
    ) -> None:
        assert behaviour is not None or collaborative_weight == 0
        self._collaborative_weight = collaborative_weight
        self._diversity_weight = diversity_weight
        self._behaviour = behaviour
        self._seed = seed
        self._groups: list[Tensor] = []

    def regroup(self, quantizer: ResidualQuantizer) -> None:
        """Group the codewords anew, where they are now. `loss` goes by the groups of the last call."""
        if self._diversity_weight > 0:
            books = [quantizer.codebook(level).detach().numpy() for level in range(quantizer.num_levels)]
            self._groups = [torch.from_numpy(code_groups(book, self._seed)) for book in books]

    def loss(self, rows: Tensor, quantized: Quantized, quantizer: ResidualQuantizer) -> Tensor:
        """Scalar: alpha times one term plus beta times the mean over levels of the other.

        `rows` (int64 [B]) says which items the batch is.
        """
        total = torch.zeros((), device=quantized.vector.device)
        if self._behaviour is not None:
            vectors, covered = self._behaviour
            loss = collaborative_loss(quantized.vector, vectors[rows], covered[rows])
            total = total + self._collaborative_weight * loss
        for level, groups in enumerate(self._groups):
            loss = diversity_loss(quantized.levels[level], quantized.codes[:, level], quantizer.codebook(level), groups)
            total = total + self._diversity_weight / len(self._groups) * loss
        return total


def behaviour_vectors(train: Sequences, num_items: int, dim: int) -> tuple[Tensor, Tensor]:
    """What `collaborative_loss` aligns codes with.

    Args:
        train: TRAINING sequences of items 0..num_items - 1.
        num_items: size of the catalogue, at least 2.
        dim: width of the codes; where the co-occurrence has fewer dimensions, the rest is zero.

    Returns:
        vectors: float32 [num_items, dim], of unit norm on average over covered items, zero for the others.
        covered: bool [num_items], the items that were consumed near another one.

    Raises:
        DataError: `train` holds other items, or no two items near each other.
    """
    if len(train.items) and not 0 <= train.items.min() <= train.items.max() < num_items:
        raise DataError(
            f"train holds items {train.items.min()} to {train.items.max()}, but there are embeddings of {num_items} "
            "items; pass the sequences of the same catalogue"
        )
    width = min(dim, num_items - 1)
    vectors, covered = cooccurrence_embeddings(train, num_items, dim=width)
    if not covered.any():
        raise DataError(
            "tokenizer.collaborative_weight is above 0, but no training sequence holds two different items; set it to 0"
        )
    norm = np.linalg.norm(vectors[covered], axis=1).mean()
    padded = np.pad(vectors / norm, ((0, 0), (0, dim - width))).astype(np.float32)
    return torch.from_numpy(padded), torch.from_numpy(covered)


def collaborative_loss(quantized: Tensor, behaviour: Tensor, covered: Tensor) -> Tensor:
    """Scalar: cross-entropy of each item's own behaviour vector among those of the batch, by dot product.

    Items without a vector are neither rows nor columns. Items that behave nearly alike (cosine above 0.9) are no
    negatives of each other; this mask is not LETTER's.

    Args:
        quantized: float [B, d], the sums of the codes, with gradient to the latents.
        behaviour: float [B, d], frozen.
        covered: bool [B].

    Returns:
        The mean over covered items; 0 when there is none.
    """
    if not bool(covered.any()):
        return torch.zeros((), device=quantized.device)
    unit = functional.normalize(behaviour, dim=1)
    excluded = unit @ unit.T > _SAME_BEHAVIOUR
    excluded.fill_diagonal_(False)
    excluded |= ~covered
    logits = (quantized @ behaviour.T).masked_fill(excluded, -torch.inf)
    own = torch.arange(len(logits), device=logits.device)
    return functional.cross_entropy(logits, own.masked_fill(~covered, _IGNORED), ignore_index=_IGNORED)


def code_groups(codebook: FloatArray, seed: int) -> IntArray:
    """int64 [K]: which group each codeword (float32 [K, d]) belongs to; balanced k-means, ten groups for 256 codes.

    LETTER lets the groups have 10 to 60 codes; these are of equal size, which needs no min-cost flow.
    """
    num_groups = max(2, round(len(codebook) / _CODES_PER_GROUP))
    vectors = codebook.astype(np.float64)
    return balanced_kmeans(vectors, kmeans(vectors, num_groups, _GROUP_ITERATIONS, seed))[1]


def group_partners(codes: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """Draw for each code another one of its group, all alike probable.

    Args:
        codes: int64 [B].
        groups: int64 [K], the group of each code.

    Returns:
        partners: int64 [B]; the code itself where its group has no other.
        paired: bool [B], where there is another.
    """
    order = torch.argsort(groups, stable=True)
    sizes = torch.bincount(groups)
    starts = sizes.cumsum(0) - sizes
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device)  # where each code stands in `order`
    group = groups[codes]
    size, start = sizes[group], starts[group]
    # 1..size-1 steps further round the group: never back to the code itself.
    steps = 1 + (torch.rand(len(codes), device=codes.device) * (size - 1)).long()
    return order[start + (place[codes] - start + steps) % size], size > 1


def diversity_loss(chosen: Tensor, codes: Tensor, codebook: Tensor, groups: Tensor) -> Tensor:
    """Scalar: cross-entropy of the chosen codewords' dot products with the codebook, against a code of the same group.

    Args:
        chosen: float [B, d], the codewords of the batch before any straight-through step.
        codes: int64 [B], which they are; their own columns do not count.
        codebook: float [K, d], with gradient.
        groups: int64 [K].

    Returns:
        The mean over items whose group has another code; 0 when there is none.
    """
    partners, paired = group_partners(codes, groups)
    if not bool(paired.any()):
        return torch.zeros((), device=chosen.device)
    own = functional.one_hot(codes, len(codebook)).bool()
    logits = (chosen @ codebook.T).masked_fill(own, -torch.inf)
    return functional.cross_entropy(logits, partners.masked_fill(~paired, _IGNORED), ignore_index=_IGNORED)
