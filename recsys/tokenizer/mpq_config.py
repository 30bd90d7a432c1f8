"""Settings of the mixture-of-experts parallel tokenizer, with the reason for each default."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from recsys.config import StrictConfig


class MPQConfig(StrictConfig):
    """Parallel codebooks, one an expert: an item is a set of codes without an order (REG4Rec, arXiv 2508.15308)."""

    method: Literal["mpq"] = "mpq"
    """Selects this tokenizer."""
    num_experts: int = Field(default=4, ge=2, le=16)
    """Experts, and so codes per item. Parallel codes collide far more than residual ones, hence one more than three."""
    codebook_size: int = Field(default=256, ge=2, le=65536)
    """Codes per expert. A catalogue with fewer items than this gets one code per item and expert instead."""
    code_dim: int = Field(default=32, ge=2, le=1024)
    """Width of each expert's space."""
    hidden: tuple[int, ...] = (96,)
    """Widths of an expert's hidden layers. Every item passes every expert, so they are smaller than an RQ-VAE's."""
    decoder_hidden: tuple[int, ...] = (96, 192)
    """Widths of the hidden layers of the one decoder."""
    warmup_steps: int = Field(default=250, ge=0)
    """Steps without quantization, so that the codebooks start from latents that mean something: 10-15 % of all."""
    steps: int = Field(default=1750, ge=1)
    """Steps with quantization, after the warm-up."""
    batch_size: int = Field(default=512, ge=2)
    """Items per step (at most the catalogue). Decorrelation is measured on the batch: several times `code_dim`."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """AdamW's peak; a cosine takes it to zero over the quantized steps."""
    weight_decay: float = Field(default=1e-4, ge=0)
    """AdamW's decoupled weight decay."""
    commitment_weight: float = Field(default=0.25, ge=0)
    """Weight of the commitment term, the mean over experts; a sum over dimensions, as the reconstruction is."""
    decorrelation_weight: float = Field(default=1.0, ge=0)
    """Weight of the mean squared correlation between the dimensions of two experts over a batch. It is what makes the
    codes of an item say different things, at the price of reconstruction and of evenly used codes."""
    orthogonality_weight: float = Field(default=0.0, ge=0)
    """Weight of the squared cosine between two experts' outputs for the same item. For comparison: it goes to zero
    while the experts cut the same partition in rotated coordinates."""
    balance_weight: float = Field(default=0.01, ge=0)
    """Weight of the router's imbalance, 1 for an even router and the number of experts for a collapsed one."""
    views: Literal["shared", "split"] = "shared"
    """`shared`: each expert reads the whole embedding. `split`: each reads one part of it, so that codes differ because
    their evidence does."""
    view_widths: tuple[int, ...] | None = None
    """`split`: widths of the parts, in order, e.g. the text's and the collaborative one's; experts take them in turn.
    None = equal parts, one an expert."""
    codebook_decay: float = Field(default=0.99, gt=0, lt=1)
    """Decay of the moving averages that are the codebooks."""
    kmeans_iterations: int = Field(default=30, ge=1)
    """Lloyd iterations of each expert's first codebook."""
    seed: int = Field(default=0, ge=0)
    """Same seed, same data, same machine: same codes."""

    @property
    def levels(self) -> int:
        """Codes per item: `num_experts`, under the name that the other tokenizers have for it."""
        return self.num_experts

    @model_validator(mode="after")
    def _widths_belong_to_split_views(self) -> MPQConfig:
        if self.view_widths is not None:
            if self.views != "split":
                raise ValueError("view_widths needs views=split; set it, or leave view_widths out")
            if not self.view_widths or min(self.view_widths) < 1 or len(self.view_widths) > self.num_experts:
                raise ValueError(
                    f"view_widths={self.view_widths} must hold 1 to num_experts={self.num_experts} positive widths"
                )
        return self
