"""Settings of contrastive tuning: which texts, which pairs, which weights are trained, for how long."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from recsys.config import StrictConfig


class ProfileConfig(StrictConfig):
    """How an item or a user is put into words. Templates take the place of EasyRec's LLM-written profiles."""

    variants: int = Field(default=1, ge=1)
    """Phrasings of each text that training draws from. The first is always the plain one: of an item the encoder's own
    template, which serving reads. EasyRec has four, and so should you where layers are trained; with frozen layers each
    costs one more encoding of the whole catalogue, hence one."""
    field_dropout: float = Field(default=0.3, ge=0, lt=1)
    """How often a phrasing leaves out an item's field (never its title) or one of a user's titles (never the
    latest)."""
    description_words: int = Field(default=30, ge=0)
    """Words of the description that a phrasing repeats; 0 = none."""
    title_words: int = Field(default=12, ge=1)
    """Words of each title in a user's text, so that several fit into the token limit."""
    history_titles: int = Field(default=8, ge=1)
    """Titles in a user's text: those of the latest items, latest first."""
    top_categories: int = Field(default=5, ge=0)
    """Most frequent categories in a user's text. Those of more than half of the catalogue say nothing and are out."""


class AlignmentConfig(StrictConfig):
    """Contrastive tuning of the text encoder on training histories; what it saves is again a sentence encoder."""

    trainable_layers: int | None = Field(default=0, ge=0)
    """0 = only a residual linear map on top of the frozen encoder, trained on cached vectors: seconds on a CPU. n = the
    top n transformer layers as well; None = every weight. Those read texts at each step and want a GPU."""
    steps: int = Field(default=500, ge=1)
    """Optimizer steps. The best of them on held-out training items is kept, so that more cost only time."""
    batch_size: int = Field(default=256, ge=2)
    """Users per step, and so the number of negatives. EasyRec's global batch."""
    chunk_size: int = Field(default=32, ge=1)
    """Texts per forward pass through trained layers. Memory depends on it, gradients do not (GradCache)."""
    temperature: float = Field(default=0.07, gt=0)
    """Divides the cosines. EasyRec has 0.05; higher follows single purchases less. Compared on one validation set."""
    user_view: Literal["items", "profile", "both"] = "items"
    """What stands for a user: the mean of the item vectors of the history, the vector of the profile text, or each of
    them in turn."""
    max_history: int = Field(default=20, ge=1)
    """Latest items that enter the mean in training; long histories cost time."""
    item_weight: float = Field(default=1.0, ge=0)
    """Weight of the second alignment: between items that were consumed together."""
    window: int = Field(default=3, ge=1)
    """Items at most this many positions apart were consumed together."""
    hard_negatives: int = Field(default=0, ge=0)
    """Negatives per user besides the rest of the batch: items whose text is near the positive's, but which nobody
    consumed together with it. 0 = none."""
    hard_negative_pool: int = Field(default=50, ge=1)
    """The nearest items from which they are drawn."""
    logq: bool = True
    """Subtract the log of how often an item is sampled, so that in-batch negatives do not push popular items away
    (Yi et al., RecSys 2019). EasyRec does not; but at low temperatures a head trained without it ranked worse than no
    head."""
    mlm_weight: float = Field(default=0.0, ge=0)
    """Weight of masked language modelling with the same layers; EasyRec takes 0.1. Needs trained layers."""
    head_learning_rate: float = Field(default=2e-3, gt=0)
    """Peak rate of the linear map, which starts at zero."""
    learning_rate: float = Field(default=5e-5, gt=0)
    """Peak rate of transformer layers. EasyRec's value."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Pulls the linear map towards zero, that is, towards the encoder as it was."""
    max_tokens: int = Field(default=64, ge=8)
    """Token limit of the texts while layers are trained. EasyRec's value. Vectors that are encoded once keep the
    encoder's own limit."""
    profile_users: int = Field(default=2000, ge=2)
    """Users, drawn at random, whose profile texts are encoded for `user_view` with frozen layers."""
    holdout_users: int = Field(default=500, ge=1)
    """Users (at most a fifth) whose last training item is kept apart, to tell which step is best."""
    holdout_candidates: int = Field(default=5000, ge=10)
    """Items among which the held-out ones are looked for; the rest are drawn at random."""
    evaluate_every: int = Field(default=50, ge=1)
    """Steps between two looks at the held-out items."""
    profiles: ProfileConfig = ProfileConfig()
    """How items and users are put into words."""
    seed: int = 0
    """Of phrasings, batches, dropout and masks."""

    @model_validator(mode="after")
    def _masked_words_need_layers(self) -> AlignmentConfig:
        if self.mlm_weight > 0 and self.trainable_layers == 0:
            raise ValueError("mlm_weight above 0 needs trainable_layers above 0 (or null): nothing else reads words")
        return self
