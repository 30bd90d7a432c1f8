"""Settings of the tokenizers. What they mean for quality is in the docstrings, with the reason for each default."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from recsys.config import StrictConfig

CollisionStrategy = Literal["assignment", "greedy", "extra_level", "group_sinkhorn"]
"""How items that share a full code are told apart; see `recsys.tokenizer.collisions`."""


class _ResidualConfig(StrictConfig):
    """What both residual tokenizers share."""

    levels: int = Field(default=3, ge=1, le=8)
    """Codes per item."""
    codebook_size: int = Field(default=256, ge=2, le=65536)
    """Codes per level. A catalogue with fewer items than this gets one code per item and level instead."""
    code_dim: int = Field(default=32, ge=2, le=1024)
    """Width of the space that is quantized. In wider spaces k-means spends its centroids on outliers: around 32
    halves the collisions against 256 (an embedding narrower than this keeps its own width)."""
    kmeans_iterations: int = Field(default=30, ge=1)
    """Lloyd iterations per level."""
    collisions: CollisionStrategy = "assignment"
    """`assignment`: the Hungarian algorithm under each prefix moves as few items as possible to near codes. `greedy`:
    the nearest free code. `extra_level`: one more code that counts (TIGER). `group_sinkhorn`: LC-Rec's, for
    comparison; it sends items to nearly random codes."""
    seed: int = Field(default=0, ge=0)
    """Same seed, same data, same machine: same codes."""


class RKMeansConfig(_ResidualConfig):
    """Residual k-means on PCA-reduced embeddings: seconds on a CPU, and often as good as a trained quantizer."""

    method: Literal["rkmeans"] = "rkmeans"
    """Selects this tokenizer."""


class RQVAEConfig(_ResidualConfig):
    """Residual-quantized autoencoder (TIGER, arXiv 2305.05065)."""

    method: Literal["rqvae"] = "rqvae"
    """Selects this tokenizer."""
    hidden: tuple[int, ...] = (256, 128)
    """Widths of the encoder's hidden layers; the decoder mirrors them."""
    warmup_steps: int = Field(default=250, ge=0)
    """Steps of the autoencoder alone, so that the codebooks start from latents that mean something."""
    steps: int = Field(default=1250, ge=1)
    """Steps with quantization, after the warm-up. Steps, not epochs: a small catalogue needs as many."""
    batch_size: int = Field(default=1024, ge=1)
    """Items per step (at most the catalogue). Small batches starve the codebooks: see `dead_code_threshold`."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """AdamW's peak; a cosine takes it to zero over the quantized steps."""
    weight_decay: float = Field(default=1e-4, ge=0)
    """AdamW's decoupled weight decay."""
    commitment_weight: float = Field(default=0.25, ge=0)
    """Weight of the commitment term of each level against the reconstruction; both are sums over dimensions."""
    codebook_decay: float = Field(default=0.99, gt=0, lt=1)
    """Decay of the moving averages that are the codebooks."""
    dead_code_threshold: float | None = Field(default=None, ge=0)
    """A code whose moving-average count per batch falls below this is moved onto a random item of the batch; 0
    switches it off. None = a quarter of the count that even usage would give (batch size / codebook size); above
    half of that count, healthy codes are thrown away at every step."""


TokenizerConfig = Annotated[RQVAEConfig | RKMeansConfig, Field(discriminator="method")]
"""One of the tokenizers' settings; the key `method` says which."""
