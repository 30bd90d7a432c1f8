"""Where the rows of semantic IDs begin in a language model: at the codebooks' own geometry, not at random.

The centroid of a code is the mean of what the codes before it left of its items' vectors, so it is there for every
tokenizer. A map with orthonormal rows carries centroids into the language model's space and keeps their distances and
angles; their scale becomes that of the model's own words, so that neither drowns the other.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recsys.data.sequences import IntArray
from recsys.generator.any_order import AnyOrderModel
from recsys.generator.flat import FlatModel
from recsys.generator.lm.language import ItemLanguage
from recsys.generator.nested import NestedModel

FloatArray = npt.NDArray[np.float32]


@torch.no_grad()
def ground_rows(
    model: FlatModel | NestedModel | AnyOrderModel,
    codes: IntArray,
    codebook_sizes: tuple[int, ...],
    item_vectors: FloatArray,
    seed: int,
) -> None:
    """Set the input rows of all codes, and in the flat shape their output rows, to projected centroids.

    Args:
        model: nested or flat, with a language model as its body; changed in place.
        codes: int64 [N, L].
        codebook_sizes: number of codes on each level.
        item_vectors: float32 [N, V], the vectors that the codes name.
        seed: of the projection.
    """
    language = ItemLanguage.of(model)
    words = language.backbone.text_embeddings.weight.detach().float()
    rows = projected_rows(code_centroids(codes, codebook_sizes, item_vectors), words, seed)
    if isinstance(language.model, FlatModel):
        language.model.embedding.weight[1:] = torch.cat(rows)
        for head, level in zip(language.model.heads, rows, strict=True):
            head.weight.copy_(level - level.mean(dim=0))  # type: ignore[operator]
            head.bias.zero_()  # type: ignore[operator]
        return
    for table, level in zip(language.model.code_embeddings, rows, strict=True):
        table.weight.copy_(level)  # type: ignore[operator]


@torch.no_grad()
def ground_users(model: FlatModel | NestedModel | AnyOrderModel, seed: int) -> None:
    """Set the rows of users' codes to the projected centroids of the codebooks, each level around its own mean.

    Args:
        model: with rows of users; changed in place.
        seed: of the projection.

    Raises:
        ConfigError: the model knows no words.
        ValueError: it has no rows of users.
    """
    language = ItemLanguage.of(model)
    users = language.model.users
    if users is None:
        raise ValueError("the model has no rows of users; build it with an indexer")
    words = language.backbone.text_embeddings.weight.detach().float()
    centroids = [(book - book.mean(axis=0)).astype(np.float32) for book in users.indexer.codebooks]
    users.embedding.weight.copy_(torch.cat(projected_rows(centroids, words, seed)))


def code_centroids(codes: IntArray, codebook_sizes: tuple[int, ...], item_vectors: FloatArray) -> list[FloatArray]:
    """For each level float32 [K_l, V]: mean residuals of the items of each code; zeros for a code without items.

    Args:
        codes: int64 [N, L].
        codebook_sizes: K_l of each level.
        item_vectors: float32 [N, V].
    """
    residuals = item_vectors - item_vectors.mean(axis=0)
    centroids = []
    for level, size in enumerate(codebook_sizes):
        sums = np.zeros((size, residuals.shape[1]), dtype=np.float32)
        np.add.at(sums, codes[:, level], residuals)
        counts = np.bincount(codes[:, level], minlength=size)[:, None]
        centroids.append((sums / np.maximum(counts, 1)).astype(np.float32))
        residuals = residuals - centroids[-1][codes[:, level]]
    return centroids


def projected_rows(centroids: list[FloatArray], words: Tensor, seed: int) -> list[Tensor]:
    """For each level float32 [K_l, D]: the centroids in the space of `words` (float32 [vocabulary, D]).

    All levels share one map and one scale, under which an item's centroids sum to a vector about as long as a word's.
    A vector wider than D loses what its weakest principal directions hold. A code without items begins at the mean.
    """
    stacked = torch.from_numpy(np.concatenate(centroids))
    width = words.shape[1]
    generator = torch.Generator().manual_seed(seed)
    if stacked.shape[1] > width:
        _, _, directions = torch.linalg.svd(stacked, full_matrices=False)
        stacked = stacked @ directions[:width].T
    dim = stacked.shape[1]
    basis, _ = torch.linalg.qr(torch.randn(width, dim, generator=generator))
    rows = stacked @ basis.T
    lengths = rows.norm(dim=1)
    parts = torch.split(lengths, [len(level) for level in centroids])
    together = torch.stack([part[part > 0].square().mean() if (part > 0).any() else part.sum() for part in parts]).sum()
    centre = words.mean(dim=0)
    target = (words - centre).norm(dim=1).mean()
    scaled = rows * (target / together.sqrt().clamp(min=1e-12)) + centre / len(centroids)
    return list(torch.split(scaled, [len(level) for level in centroids]))
