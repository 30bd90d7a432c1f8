"""Settings of the graph encoders, with the reason for each default."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from recsys.config import StrictConfig


class GraphTrainingConfig(StrictConfig):
    """What all graph encoders share: the width, the training loop and how vectors are handed out."""

    dim: int = Field(default=64, ge=2)
    """Width of user and item vectors (CM3: of each of their blocks); 64 in all papers of this kind."""
    layers: int = Field(default=3, ge=0)
    """How far vectors travel on the user-item graph; beyond 3 or 4 they grow alike."""
    learning_rate: float = Field(default=5e-3, gt=0)
    """Of Adam, constant. The papers' .001 needs hundreds of passes over the interactions."""
    batch_size: int = Field(default=1024, ge=2)
    """Interactions a step. Contrasts compare all pairs of a batch, so they cost its square."""
    steps: int = Field(default=800, ge=1)
    """Upper bound on the steps; training usually stops before. On one core, 4 000 items and 8 000 users, a step takes
    .1 s, the control's a quarter of that."""
    evaluate_every: int = Field(default=40, ge=1)
    """Steps between two measurements of Recall@20 on the interactions that are kept back to stop by."""
    patience: int = Field(default=5, ge=1)
    """Training stops after this many measurements without a new best, and the best parameters are kept."""
    stop_share: float = Field(default=0.05, ge=0, lt=0.5)
    """At most this share of the TRAINING interactions, one a user, is kept back to stop by. They rejoin the graph when
    training is over. 0 = train for `steps`."""
    neighbours: int = Field(default=10, ge=1)
    """Nearest items by content, itself included: of the item graphs, and those that place a new item."""
    normalise: bool = False
    """Hand out vectors of unit norm. Without, the dot product keeps the norm, which acts as a popularity prior."""
    seed: int = 0
    """Of initial values, batches and noise: the same seed and data give the same vectors."""


class LightGCNConfig(GraphTrainingConfig):
    """LightGCN (arXiv 2002.02126): learned ids, linear propagation, BPR. The control: content is not read."""

    method: Literal["lightgcn"] = "lightgcn"
    """Which encoder this is."""
    batch_size: int = Field(default=2048, ge=2)
    """Interactions a step; without contrasts, large batches cost little."""
    steps: int = Field(default=2000, ge=1)
    """Upper bound on the steps; training usually stops before."""
    weight_decay: float = Field(default=1e-4, ge=0)
    """Of the initial vectors in a batch, as in the paper."""


class CM3Config(GraphTrainingConfig):
    """CM3 (arXiv 2508.01226): spherical Bézier fusion and calibrated uniformity; items have no ids, only content."""

    method: Literal["cm3"] = "cm3"
    """Which encoder this is."""
    learning_rate: float = Field(default=1e-2, gt=0)
    """Of Adam, constant. The authors' .001 needs hundreds of passes over the interactions."""
    hidden_dim: int = Field(default=256, ge=1)
    """Width of the hidden layer of each modality's network."""
    uniformity: Literal["calibrated", "plain"] = "calibrated"
    """`plain` repels all items alike: the control."""
    uniformity_weight: float = Field(default=0.5, ge=0)
    """Gamma: of the repulsion against the alignment of users with their items; the authors use .5 or .9."""
    max_similarity: float = Field(default=0.8, ge=0, le=1)
    """Upper clip of the similarity that excuses closeness; the authors use .8 or 1. The lower one is 0."""
    detach_similarity: bool = True
    """No gradient through that similarity; with it the optimiser can raise similarities to be repelled less."""
    fusion: Literal["spherical", "mean"] = "spherical"
    """`mean` is the normalised mean of the modalities: the control."""
    mix_concentration: float = Field(default=0.5, gt=0)
    """Alpha: the place on the curve is Beta(alpha, alpha) per item and step, .5 outside of training."""
    graph_weights: dict[str, float] = Field(default_factory=dict)
    """Share of each modality's neighbours in the item graph, by its name; scaled to sum 1. Empty = even. The authors
    give text .9 and images .1."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Adam's; the authors use 0 or 1e-6."""


class SIGERConfig(GraphTrainingConfig):
    """SIGER (arXiv 2508.06154): item graphs of content, infused with behaviour.

    The paper's idea in formulas derived for this implementation, as its own are not public.
    """

    method: Literal["siger"] = "siger"
    """Which encoder this is."""
    layers: int = Field(default=2, ge=0)
    """How far behaviour vectors travel on the user-item graph."""
    hidden_dim: int = Field(default=256, ge=1)
    """Width of the hidden layer of each modality's network."""
    semantic_layers: int = Field(default=1, ge=1, le=4)
    """How far content travels on the enhanced item graphs."""
    semantic_share: float = Field(default=0.5, gt=0, le=1)
    """Lambda: share of content in the enhanced graphs, behaviour has the rest. 1 = no behaviour in them."""
    collaborative_neighbours: int = Field(default=10, ge=1)
    """Strongest companions kept of each item in the behaviour graph."""
    collaborative_counts: Literal["counts", "ppmi"] = "counts"
    """Strength of companions: common users, or positive pointwise mutual information, which favours popular items
    less."""
    prune_quantile: float = Field(default=0.0, ge=0, lt=1)
    """Content edges below this quantile of the edges' cosines go, unless someone consumed both. 0 = none goes."""
    alignment_weight: float = Field(default=0.01, ge=0)
    """Lambda 1: of the contrasts between content and behaviour."""
    anchor: bool = True
    """Contrast each modality with the behaviour it must move to, before the contrast of their fusion."""
    perturbation_weight: float = Field(default=0.1, ge=0)
    """Lambda 2: of the contrast of two noisy views."""
    noise: float = Field(default=0.1, ge=0)
    """Epsilon: length of the noise on a vector of average norm."""
    noise_scale: Literal["modulus", "constant", "inverse"] = "modulus"
    """How the length depends on a vector's norm: larger vectors stand more noise, or all the same, or less."""
    temperature: float = Field(default=0.2, gt=0)
    """Of all contrasts."""
    weight_decay: float = Field(default=1e-4, ge=0)
    """Of the initial id vectors in a batch."""


GraphConfig = Annotated[LightGCNConfig | CM3Config | SIGERConfig, Field(discriminator="method")]
