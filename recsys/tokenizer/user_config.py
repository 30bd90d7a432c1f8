"""Settings of the user indexer, with the reason for each default."""

from __future__ import annotations

from pydantic import Field

from recsys.tokenizer.config import ResidualConfig


class UserIndexerConfig(ResidualConfig):
    """Residual-quantized user indices (ULMRec, arXiv 2412.05543)."""

    levels: int = Field(default=4, ge=1, le=8)
    """Codes per user: four, as secondary sources report of the paper."""
    max_texts: int = Field(default=20, ge=1)
    """A user's latest texts that are read."""
    hidden: tuple[int, ...] = (128,)
    """Widths of the encoder's hidden layers; both decoders mirror them."""
    warmup_steps: int = Field(default=250, ge=0)
    """Steps without quantization, so that the codebooks start from latents that mean something."""
    steps: int = Field(default=1250, ge=1)
    """Steps with quantization, after the warm-up."""
    batch_size: int = Field(default=512, ge=1)
    """Users per step (at most all of them). Twice as many cost twice the time: their texts are what is read."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """AdamW's peak; a cosine takes it to zero over the quantized steps."""
    weight_decay: float = Field(default=1e-4, ge=0)
    """AdamW's decoupled weight decay."""
    commitment_weight: float = Field(default=0.25, ge=0)
    """Weight of the commitment term of each level against the reconstructions."""
    codebook_decay: float = Field(default=0.99, gt=0, lt=1)
    """Decay of the moving averages that are the codebooks."""
    behaviour_dropout: float = Field(default=0.1, ge=0, lt=1)
    """Share of users in a batch whose behaviour vector is hidden; see the module."""
