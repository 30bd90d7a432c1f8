"""Settings of the residual tokenizers, with the reason for each default."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from recsys.config import StrictConfig

CodebookKind = Literal["ema", "gradient", "simvq"]
"""How a trained codebook is kept; see `recsys.tokenizer.quantizer`."""
Estimator = Literal["straight_through", "rotation"]
"""How gradients pass the quantizer."""
Balance = Literal["none", "lower", "all"]
"""Which levels of residual k-means have clusters of equal size: none, all below the first, or all."""
CollisionStrategy = Literal["assignment", "greedy", "extra_level", "group_sinkhorn"]
"""How items that share a full code are told apart; see `recsys.tokenizer.collisions`."""


class ResidualConfig(StrictConfig):
    """What tokenizers with residual codebooks share."""

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


class RKMeansConfig(ResidualConfig):
    """Residual k-means on PCA-reduced embeddings: seconds on a CPU, and often as good as a trained quantizer."""

    method: Literal["rkmeans"] = "rkmeans"
    """Selects this tokenizer."""
    balanced: Balance = "none"
    """Clusters of equal size (balanced k-means, OneRec, arXiv 2502.18965) on no level, on all levels below the first
    (`lower`), or on all. `lower` left fewer collisions (13 to 10 % on 4344 texts, 5.6 to 5.3 % on 12,101; seeds 0-2)
    at the same error; `all` raises the error by 5 %. Off, for the stored codes are then not the nearest codes, which
    new items get."""


class RQVAEConfig(ResidualConfig):
    """Residual-quantized autoencoder (TIGER, arXiv 2305.05065)."""

    method: Literal["rqvae"] = "rqvae"
    """Selects this tokenizer."""
    hidden: tuple[int, ...] = (256, 128)
    """Widths of the encoder's hidden layers; the decoder mirrors them."""
    warmup_steps: int = Field(default=250, ge=0)
    """Steps of the autoencoder alone, so that the codebooks start from latents that mean something."""
    codebook: CodebookKind = "ema"
    """`ema`: moving averages, robust. `gradient`: free parameters (LC-Rec, LETTER), with dead codes restarted; the
    regularisers below need it. `simvq`: a frozen basis times a trained matrix (arXiv 2411.02038), no dead codes."""
    estimator: Estimator = "straight_through"
    """How the reconstruction's gradient passes the quantizer. `rotation` is the rotation trick (arXiv 2410.06424)."""
    uniform_last_level: bool = False
    """LC-Rec's uniform semantic mapping (arXiv 2311.09049) while training: the last level is assigned by Sinkhorn over
    the batch, so that its codes are used evenly. Needs `codebook` gradient, whose codes adapt (perplexity 204 to 248 of
    256 on 4344 items), or simvq, whose codes hardly do. Slower by about 25 ms a step."""
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
    half of that count, healthy codes are thrown away at every step. For `codebook` ema only."""
    collaborative_weight: float = Field(default=0.0, ge=0)
    """LETTER's alpha (arXiv 2405.07314): weight of pulling quantized vectors to the items' behaviour vectors, which
    come from the training sequences. Off, for it costs reconstruction and needs behaviour. Start at 1: on 4344 texts it
    took collisions from 12.7 to 8.0 % and the squared error from .46 to .54 of the variance. The other terms are sums
    over dimensions of inputs of unit norm, so the paper's 0.01 to 0.1 hardly show."""
    diversity_weight: float = Field(default=0.0, ge=0)
    """LETTER's beta (arXiv 2405.07314): weight of keeping groups of codewords together and apart from other groups, so
    that assignments spread. Needs `codebook` gradient. Off: usage was no more even with 0.1, on 4344 items."""

    @model_validator(mode="after")
    def _options_fit_together(self) -> RQVAEConfig:
        if self.uniform_last_level and self.codebook == "ema":
            raise ValueError("uniform_last_level is true, which needs codebook gradient or simvq, not ema")
        if self.diversity_weight > 0 and self.codebook != "gradient":
            raise ValueError(f"diversity_weight is above 0, which needs codebook gradient, not {self.codebook}")
        if self.dead_code_threshold is not None and self.codebook != "ema":
            raise ValueError(f"dead_code_threshold is for codebook ema, not {self.codebook}; remove it")
        return self
