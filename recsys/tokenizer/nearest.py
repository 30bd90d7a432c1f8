"""What tokenizers share that quantize one latent vector an item: nearest codes, then collisions resolved.

Knows nothing of how latents and codebooks come about; that is each tokenizer's `latents` and `fit`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from recsys.data import IntArray
from recsys.tokenizer.collisions import resolve_collisions
from recsys.tokenizer.residual import DoubleArray, FloatArray, nearest_codes
from recsys.tokenizer.semantic_ids import SemanticIds
from recsys.tokenizer.validation import check_embeddings, check_taken


class NearestCodeTokenizer(ABC):
    """The encoding half of a `SemanticIdTokenizer`."""

    def __init__(self) -> None:
        self._mean: DoubleArray = np.zeros(0)
        self._codebooks: list[FloatArray] = []

    @property
    def codebooks(self) -> list[FloatArray]:
        """One float32 [K_l, code_dim] a level; empty before `fit`."""
        return self._codebooks

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """K_l of each level; empty before `fit`."""
        return tuple(len(codebook) for codebook in self._codebooks)

    @abstractmethod
    def latents(self, embeddings: FloatArray) -> DoubleArray:
        """float64 [n, code_dim]: the points that are quantized; see `nearest_code` for why double precision."""

    def encode_raw(self, embeddings: FloatArray) -> IntArray:
        """int64 [k, L]: nearest codes, which may collide."""
        check_embeddings(embeddings, dim=len(self._mean))
        return nearest_codes(self.latents(embeddings), self._codebooks)

    def encode(self, embeddings: FloatArray, taken: IntArray) -> IntArray:
        """int64 [k, L]: codes for new items, unlike each other and unlike all of `taken`."""
        check_embeddings(embeddings, dim=len(self._mean))
        check_taken(taken, self.codebook_sizes)
        latents = self.latents(embeddings)
        return resolve_collisions(nearest_codes(latents, self._codebooks), latents, self._codebooks, taken)

    def _name_items(self, latents: DoubleArray) -> SemanticIds:
        """The semantic IDs of the items of `fit`, from their latents, once the codebooks are there."""
        raw_codes = nearest_codes(latents, self._codebooks)
        return SemanticIds(
            codes=resolve_collisions(raw_codes, latents, self._codebooks),
            raw_codes=raw_codes,
            codebook_sizes=self.codebook_sizes,
        )
