"""The `evaluation` section of a run's configuration: what is measured, and beside which baselines."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from recsys.config import StrictConfig

BaselineName = Literal["popularity", "item_knn", "skip_gram", "sasrec"]


class SasRecConfig(StrictConfig):
    """SASRec (Kang and McAuley, 2018, arXiv:1808.09781) with a softmax loss, tuned to be an honest opponent."""

    hidden_size: int = Field(default=128, ge=8)
    """Width of the item vectors and of the transformer."""
    num_layers: int = Field(default=2, ge=1)
    """Transformer blocks."""
    num_heads: int = Field(default=2, ge=1)
    """Attention heads of a block."""
    dropout: float = Field(default=0.4, ge=0, lt=1)
    """Dropout on inputs, attention and residual branches while fitting."""
    max_history: int = Field(default=50, ge=1)
    """Items of a history that the model sees: the most recent ones."""
    epochs: int = Field(default=30, ge=1)
    """Passes over the training sequences; the learning rate falls to zero over all of them."""
    patience: int = Field(default=5, ge=1)
    """Stop after this many epochs without a better validation NDCG@10."""
    batch_size: int = Field(default=128, ge=1)
    """Training windows of one step."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Highest learning rate of AdamW, after the warm-up."""
    warmup_fraction: float = Field(default=0.05, ge=0, lt=1)
    """Share of all steps in which the learning rate rises."""
    weight_decay: float = Field(default=0.01, ge=0)
    """AdamW's decoupled weight decay on matrices."""
    full_softmax_up_to: int = Field(default=50_000, ge=1)
    """Catalogues up to this size are scored whole in the loss; above it the softmax is sampled."""
    num_negatives: int = Field(default=4096, ge=1)
    """Sampled softmax: items drawn uniformly for a step and shared by its positions."""
    seed: int = Field(default=0, ge=0)
    """Of the initial weights, the order of batches, the dropout and the sampled negatives."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: CUDA where there is a device, else the CPU."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the matrix products while fitting; ranking is always in float32. `auto`: bfloat16 where the hardware
    multiplies it natively, which is two to four times faster, else float32."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} must be a multiple of num_heads={self.num_heads}; change one of them"
            )
        return self


class EvaluationConfig(StrictConfig):
    """Protocol, metrics and baselines of a report."""

    baselines: tuple[BaselineName, ...] = ("popularity", "item_knn", "skip_gram", "sasrec")
    """Which baselines are fitted and shown beside the generator."""
    mask_seen: bool = True
    """Leave the items of a user's history out of the ranking, for every model alike. Turn it off when users do come
    back to the same items: masking then makes such targets unreachable."""
    ks: tuple[int, ...] = (5, 10, 50)
    """Cut-offs of Recall and NDCG. 10 is always among them."""
    max_users: int | None = Field(default=None, ge=1, exclude_if=lambda count: count is None)
    """At most so many test users are ranked, a random sample by `seed` that the report mentions; all when not given."""
    batch_size: int = Field(default=256, ge=1)
    """Histories handed to a model at once."""
    n_bootstrap: int = Field(default=1000, ge=1)
    """Resamples of users behind the confidence intervals."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Coverage of the confidence intervals."""
    seed: int = Field(default=0, ge=0)
    """Of the resampling of users."""
    sasrec: SasRecConfig = SasRecConfig()
    """Settings of the SASRec baseline."""

    @field_validator("ks")
    @classmethod
    def _ordered_with_ten(cls, ks: tuple[int, ...]) -> tuple[int, ...]:
        if any(k < 1 for k in ks):
            raise ValueError(f"ks={list(ks)}: every cut-off must be at least 1")
        return tuple(sorted({*ks, 10}))
