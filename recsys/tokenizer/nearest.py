"""What tokenizers share that quantize one latent vector an item: nearest codes, then collisions resolved.

Knows nothing of how latents and codebooks come about; that is each tokenizer's `latents` and `fit`.

With `collisions: extra_level` there is one codebook more than `config.levels`: zero vectors, for the code that counts.
It is an entry of `codebooks` like the others, is saved and loaded with them, and adds nothing to reconstructions.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol, Self

import numpy as np

from recsys.data import IntArray
from recsys.tokenizer.collisions import ordinal_codebook, resolve_collisions
from recsys.tokenizer.config import CollisionStrategy
from recsys.tokenizer.residual import DoubleArray, FloatArray, nearest_codes
from recsys.tokenizer.semantic_ids import SemanticIds
from recsys.tokenizer.validation import check_embeddings, check_taken


class _Settings(Protocol):
    """What of a tokenizer's config is read here."""

    @property
    def collisions(self) -> CollisionStrategy: ...


class NearestCodeTokenizer(ABC):
    """The encoding half of a `SemanticIdTokenizer`."""

    config: _Settings
    """Set by each tokenizer, which narrows the type."""

    def __init__(self) -> None:
        self._mean: DoubleArray = np.zeros(0)
        self._codebooks: list[FloatArray] = []

    @property
    def codebooks(self) -> list[FloatArray]:
        """One float32 [K_l, code_dim] a level, zeros for a level that counts; empty before `fit`."""
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
        return self._resolve(nearest_codes(latents, self._codebooks), latents, taken)

    def relabelled(self, labels: Sequence[IntArray]) -> Self:
        """The same fitted tokenizer under other numbers: code k of level l becomes code `labels[l][k]`.

        `labels` holds a permutation of K_l, int64 [K_l], a level.
        """
        renamed = copy.copy(self)
        renamed._codebooks = [
            codebook[np.argsort(numbers)] for codebook, numbers in zip(self._codebooks, labels, strict=True)
        ]
        return renamed

    def _name_items(
        self, latents: DoubleArray, assigned: IntArray | None = None, raw_codes: IntArray | None = None
    ) -> SemanticIds:
        """The semantic IDs of the items of `fit`, from their latents, once the codebooks are there.

        `assigned` (int64 [n, config.levels]) is what collisions are resolved from, for fits that assign codes in
        another way than to the nearest; None = the nearest codes. `raw_codes` of the result are the nearest codes in
        any case; they may be given, too.
        """
        if raw_codes is None:
            raw_codes = nearest_codes(latents, self._codebooks)
        if assigned is None:
            assigned = raw_codes
        ordinal = self.config.collisions == "extra_level"
        if ordinal:
            self._codebooks = [*self._codebooks, ordinal_codebook(assigned, self._codebooks)]
            uncounted = np.zeros((len(latents), 1), dtype=np.int64)  # what `encode_raw` says of every item
            assigned, raw_codes = (np.concatenate([codes, uncounted], axis=1) for codes in (assigned, raw_codes))
        return SemanticIds(
            codes=self._resolve(assigned, latents),
            raw_codes=raw_codes,
            codebook_sizes=self.codebook_sizes,
            ordinal=ordinal,
        )

    def _resolve(self, codes: IntArray, latents: DoubleArray, taken: IntArray | None = None) -> IntArray:
        return resolve_collisions(codes, latents, self._codebooks, taken, strategy=self.config.collisions)
