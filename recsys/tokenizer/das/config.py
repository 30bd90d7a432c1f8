"""Settings of the DAS tokenizer, with the reason for each default."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from recsys.tokenizer.config import ResidualConfig

View = Literal["dual_user", "dual_item", "self_user", "self_item", "co_user", "co_item"]
"""One contrastive view of the alignment: see `recsys.tokenizer.das.alignment`."""
ALL_VIEWS: tuple[View, ...] = ("dual_user", "dual_item", "self_user", "self_item", "co_user", "co_item")
BEHAVIOUR_VIEWS: frozenset[View] = frozenset({"dual_user", "dual_item", "self_user", "self_item"})


class DASConfig(ResidualConfig):
    """Dual-aligned semantic IDs (DAS, arXiv 2508.10584): items and users, codes and alignment in one stage.

    `levels`, `codebook_size` and `code_dim` hold for items and for users, whose codebooks are their own.
    """

    method: Literal["das"] = "das"
    """Selects this tokenizer."""
    hidden: tuple[int, ...] = (192, 96)
    """Widths of the encoders' hidden layers; the decoders mirror them."""
    warmup_steps: int = Field(default=250, ge=0)
    """Steps of the autoencoders and of the behaviour model without codes and without alignment."""
    steps: int = Field(default=1250, ge=1)
    """Steps after the warm-up. Steps, not epochs: a small catalogue needs as many."""
    batch_size: int = Field(default=512, ge=2)
    """Items, users, clicks and pairs of each kind per step. It is also the number of negatives of the contrast."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """AdamW's peak for the networks; a cosine takes it to zero."""
    id_learning_rate: float = Field(default=1e-2, gt=0)
    """The same for the behaviour model: a row of its tables is in few batches, so its steps are longer."""
    weight_decay: float = Field(default=1e-4, ge=0)
    """AdamW's decoupled weight decay of the networks."""
    id_weight_decay: float = Field(default=1.0, ge=0)
    """The same of the behaviour model's tables. A user has a handful of clicks: without it the tables learn them by
    heart within ten passes (AUC on held-out clicks .63 instead of .71 on 8,317 users), and codes align to noise."""
    commitment_weight: float = Field(default=0.25, ge=0)
    """Weight of the commitment term of each level against the reconstruction; both are sums over dimensions."""
    codebook_decay: float = Field(default=0.99, gt=0, lt=1)
    """Decay of the moving averages that are the codebooks."""
    stages: Literal["one", "two"] = "one"
    """`one`: codes and alignment together, as DAS does. `two`: half of the steps align the latents without codes, then
    the encoders are frozen and the other half quantizes. For comparison."""

    views: tuple[View, ...] = ALL_VIEWS
    """The contrastive terms that are on; none = semantics only."""
    alignment_weight: float = Field(default=0.1, ge=0)
    """Weight of the sum of the views against reconstruction, which is 1 or less a side. The paper's is .5, as secondary
    sources report; the scale of its losses was not at hand. On a validation split of 4,344 items .1
    raised retrieval and shared prefixes of unseen pairs at 6 % more reconstruction error, .3 lost the prefixes again at
    12 %."""
    temperature: float = Field(default=0.1, gt=0)
    """Of every contrast."""
    frequency_correction: bool = False
    """Subtract each candidate's log probability of being in the batch from its logit (logQ), so that popular ones are
    not pushed away for being frequent negatives."""
    window: int = Field(default=3, ge=1)
    """Two items belong together when a user clicked them at most this many clicks apart."""

    behaviour_weight: float = Field(default=1.0, ge=0)
    """Weight of the behaviour model's own loss; 0 leaves it out, with the views that need it."""
    behaviour_dim: int = Field(default=32, ge=2, le=1024)
    """Width of each half (interest, conformity; property, popularity) of an ID's vector."""
    click_loss: Literal["softmax", "bce"] = "softmax"
    """Of the unbiased halves. `softmax`: other items of the batch are the negatives, drawn as often as they are
    clicked, which cancels popularity. `bce`: an even draw from the catalogue, as for the biased halves."""
    debias: bool = True
    """Part interest and property from conformity and popularity. False aligns to plain ID vectors, for comparison."""
    popularity_weight: float = Field(default=0.1, ge=0)
    """Weight of the supervision of the biased halves by click counts."""
    regression_weight: float = Field(default=1.0, ge=0)
    """Within it, weight of predicting the click count: without it, vectors and targets could agree on a constant."""
    orthogonality_weight: float = Field(default=0.1, ge=0)
    """Weight of cos^2 between the two halves."""

    @model_validator(mode="after")
    def _check_views(self) -> DASConfig:
        if len(set(self.views)) != len(self.views):
            raise ValueError(f"views {list(self.views)} names one twice; each may be there once")
        needy = BEHAVIOUR_VIEWS & set(self.views)
        if self.behaviour_weight == 0 and needy:
            raise ValueError(
                f"behaviour_weight is 0, but views {sorted(needy)} align to the behaviour model; leave them out, or "
                "set a weight"
            )
        return self
