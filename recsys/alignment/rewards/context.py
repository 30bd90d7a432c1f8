"""`RewardContext`: what rewards may know of the catalogue. Computes no reward."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol, Self, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recsys.alignment.reward_models.quality import RewardQuality
from recsys.data import Sequences
from recsys.errors import ConfigError
from recsys.generator.groups import Groups
from recsys.tokenizer.semantic_ids import SemanticIds

T = TypeVar("T")

Scorer: TypeAlias = Callable[[Sequences], npt.NDArray[np.float32]]
"""B histories to scores of all items, float32 [B, N], higher is better: `scores` of any fitted baseline is one."""


class LearnedReward(Protocol):
    """A learned reward model; `reward_models` makes some."""

    @property
    def quality(self) -> RewardQuality | None:
        """As measured on pairs that it was not trained on; None when it was not measured."""

    def __call__(self, histories: Sequences, items: Tensor) -> Tensor:
        """float32 [B, G] for B histories and items int64 [B, G]; whatever it likes beside item -1."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RewardContext:
    """The catalogue as rewards see it, N items. Rewards that need a part which is None refuse to be built.

    Tensors live on one device, that of the rollouts; `to` moves them.

    Raises:
        ValueError: a part is not of N items.
    """

    codes: Tensor
    """int64 [N, L]: semantic IDs, rows unique."""
    codebook_sizes: tuple[int, ...]
    """Codes of each level."""
    ordered: bool = True
    """Each code refines the ones before it; False: parallel codebooks (see `SemanticIds`)."""
    ordinal: bool = False
    """The last code only tells items apart that share all others."""
    popularity: Tensor | None = None
    """int64 [N]: interactions in training."""
    item_vectors: Tensor | None = None
    """float32 [N, D]: embeddings; inner products of unit rows say how alike items are."""
    categories: Groups | None = None
    """Of the items, any number each."""
    category_names: Sequence[str] | None = None
    """The name of each group of `categories`: what a text may say of an item."""
    titles: Sequence[str | None] | None = None
    """N titles."""
    texts: Sequence[str] | None = None
    """N descriptions, the references of generated ones."""
    reference_popularity: float | None = None
    """Mean popularity level of what the reference policy proposes: `popularity_guard.mean_level`."""
    scorers: Mapping[str, Scorer] = field(default_factory=dict)
    """Collaborative scorers by name."""
    reward_models: Mapping[str, LearnedReward] = field(default_factory=dict)
    """Learned reward models by name."""

    def __post_init__(self) -> None:
        if self.codes.ndim != 2 or self.codes.shape[1] != len(self.codebook_sizes):
            raise ValueError(f"codes {list(self.codes.shape)} do not fit {len(self.codebook_sizes)} codebook sizes")
        if self.ordinal and self.codes.shape[1] == 1:
            raise ValueError("ordinal: the only level cannot be the one that tells items apart")
        sizes = {
            "popularity": self.popularity,
            "item_vectors": self.item_vectors,
            "titles": self.titles,
            "texts": self.texts,
        }
        for name, part in sizes.items():
            if part is not None and len(part) != self.num_items:
                raise ValueError(f"{name} is of {len(part)} items, codes of {self.num_items}")
        if self.categories is not None and self.categories.num_items != self.num_items:
            raise ValueError(f"categories is of {self.categories.num_items} items, codes of {self.num_items}")

    @classmethod
    def of(cls, semantic_ids: SemanticIds, **parts: Any) -> Self:
        """With the codes of a tokenizer; `parts` are the other fields."""
        return cls(
            codes=torch.from_numpy(semantic_ids.codes),
            codebook_sizes=semantic_ids.codebook_sizes,
            ordered=semantic_ids.ordered,
            ordinal=semantic_ids.ordinal,
            **parts,
        )

    def to(self, device: torch.device | str) -> RewardContext:
        """The same on another device."""
        return replace(
            self,
            codes=self.codes.to(device),
            popularity=None if self.popularity is None else self.popularity.to(device),
            item_vectors=None if self.item_vectors is None else self.item_vectors.to(device),
        )

    @property
    def num_items(self) -> int:
        """N."""
        return len(self.codes)

    @property
    def semantic_levels(self) -> int:
        """H: levels that say something about the item; all but an ordinal last one."""
        return self.codes.shape[1] - int(self.ordinal)

    @cached_property
    def category_ids(self) -> Tensor:
        """int64 [N, M]: the categories of each item, -1 on the right."""
        assert self.categories is not None, "asked for after `required`"
        ids = self.categories.of(np.arange(self.num_items))
        return torch.from_numpy(ids).to(self.codes.device)


def required(part: T | None, name: str, reward: str) -> T:
    """`part`, or a ConfigError saying that `reward` needs it."""
    if part is None:
        raise ConfigError(f"rewards.{reward} needs {name} of the items, and this run has none; give them or drop it")
    return part
