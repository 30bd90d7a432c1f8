"""One side of DAS, items or users: an autoencoder with residual codes between its halves. Knows no behaviour."""

from __future__ import annotations

import torch
from torch import Tensor

from recsys.tokenizer.autoencoder import AutoencoderTokenizer
from recsys.tokenizer.das.config import DASConfig
from recsys.tokenizer.quantizer import DEAD_CODE_SHARE, ResidualQuantizer
from recsys.tokenizer.residual import FloatArray
from recsys.tokenizer.semantic_ids import SemanticIds
from recsys.tokenizer.validation import effective_codebook_size


class SemanticSide(AutoencoderTokenizer):
    """Encoder, codebooks, decoder. Between `prepare` and `finish` they can be trained; then all is frozen."""

    def __init__(self, config: DASConfig) -> None:
        super().__init__(config)
        self.config: DASConfig = config

    def prepare(self, embeddings: FloatArray) -> tuple[Tensor, ResidualQuantizer]:
        """Start anew for float32 [n, dim] embeddings.

        Returns:
            float32 [n, dim], centred and with a mean square norm of 1, so that losses do not depend on the scale of
            the embeddings; and the quantizer to train with the networks.
        """
        inputs = self._standardise(embeddings)
        num_rows, dim = embeddings.shape
        self._build(dim)
        codebook_size = effective_codebook_size(self.config.codebook_size, num_rows)
        quantizer = ResidualQuantizer(
            dim=self._code_dim(dim),
            levels=self.config.levels,
            codebook_size=codebook_size,
            commitment_weight=self.config.commitment_weight,
            decay=self.config.codebook_decay,
            dead_code_threshold=DEAD_CODE_SHARE * min(self.config.batch_size, num_rows) / codebook_size,
            kmeans_iterations=self.config.kmeans_iterations,
        )
        return torch.from_numpy(inputs), quantizer

    def name_rows(self, embeddings: FloatArray) -> SemanticIds:
        """The semantic IDs of the rows of `fit`, float32 [n, dim], after `finish`."""
        return self._name_items(self.latents(embeddings))
