"""Credit for a path of codes step by step: PARS of REG4Rec (arXiv 2508.15308), four rewards a path.

    step-hit      steps whose code is the next item's; of ordered codes, the length of the common prefix
    global        1 when the whole path is the next item's
    category-hit  steps whose category is one of the next item's
    consistency   adjacent steps whose categories agree

The category of a step is the most common one among the items below its prefix (of codes that are a set: among those
that carry the code). With M steps, R = (step/M + 2 global + category/(2M) + consistency/(2(M - 1))) / 4. The paper
shows the four rewards by example; how they are combined is our choice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from recsys.alignment.rewards.context import RewardContext, required
from recsys.alignment.rewards.prefix import shared_levels
from recsys.alignment.rewards.reward import TermConfig, next_items
from recsys.alignment.rollouts import Rollouts
from recsys.generator.groups import Groups


class PathConfig(TermConfig):
    """Step-hit, global, category-hit and consistency of a proposal's path of codes."""

    kind: Literal["path"] = "path"
    step_weight: float = Field(default=1.0, ge=0)
    """Of the share of steps that are the next item's."""
    global_weight: float = Field(default=2.0, ge=0)
    """Of the whole path being the next item's."""
    category_weight: float = Field(default=0.5, ge=0)
    """Of the share of steps in a category of the next item."""
    consistency_weight: float = Field(default=0.5, ge=0)
    """Of the share of adjacent steps with one category."""
    least_purity: float = Field(default=0.0, ge=0, le=1)
    """A step whose most common category holds less than this share of its items has no category."""

    def build(self, context: RewardContext) -> PathReward:
        """Reads codes and categories."""
        required(context.categories, "categories", self.term_name)
        weights = (self.step_weight, self.global_weight, self.category_weight, self.consistency_weight)
        return PathReward(context, weights=weights, least_purity=self.least_purity, name=self.term_name)


@dataclass(frozen=True, kw_only=True, eq=False)
class StepCategories:
    """The category of every step of every item's path."""

    ids: Tensor
    """int64 [N, H]: -1 where a step has none."""
    purity: Tensor
    """float32 [N, H]: the share of the most common category among the items of the step."""

    @classmethod
    def of(cls, context: RewardContext, least_purity: float = 0.0) -> StepCategories:
        """From the categories of the items. Keeps H tables of nodes by categories in memory, one at a time."""
        assert context.categories is not None, "asked for after `required`"
        codes = context.codes.cpu().numpy()
        columns: list[npt.NDArray[np.int64]] = []
        shares: list[npt.NDArray[np.float32]] = []
        for level in range(context.semantic_levels):
            if context.ordered:
                prefixes = Groups.from_prefixes(codes, level + 1)
                owners, num_owners = prefixes.ids, prefixes.num_groups
            else:
                owners, num_owners = codes[:, level], context.codebook_sizes[level]
            table = context.categories.histogram(owners, num_owners)
            share = table.max(axis=1, initial=0)
            common = np.where(share > 0, table.argmax(axis=1) if table.shape[1] else -1, -1)
            columns.append(np.where(share >= least_purity, common, -1)[owners])
            shares.append(share[owners])
        device = context.codes.device
        return cls(
            ids=torch.from_numpy(np.stack(columns, axis=1)).to(device),
            purity=torch.from_numpy(np.stack(shares, axis=1)).to(device),
        )


def category_hits(step_categories: Tensor, target_categories: Tensor) -> Tensor:
    """int64 [...]: steps whose category is one of the target's.

    Args:
        step_categories: int64 [..., H], -1 for none.
        target_categories: int64 [..., M], -1 on the right.
    """
    same = step_categories.unsqueeze(-1) == target_categories.unsqueeze(-2)
    return (same.any(-1) & (step_categories >= 0)).sum(-1)


def consistent_steps(step_categories: Tensor) -> Tensor:
    """int64 [...]: adjacent steps of int64 [..., H] whose categories agree; -1 agrees with none."""
    before, after = step_categories[..., :-1], step_categories[..., 1:]
    return ((before == after) & (after >= 0)).sum(-1)


class PathReward:
    """See the module.

    Args:
        context: with categories.
        weights: of step-hit, global, category-hit and consistency; the reward is in 0..sum(weights) / 4.
        least_purity: see `PathConfig`.
        name: for logs and errors.
    """

    def __init__(
        self,
        context: RewardContext,
        weights: tuple[float, float, float, float] = (1.0, 2.0, 0.5, 0.5),
        least_purity: float = 0.0,
        name: str = "path",
    ) -> None:
        self.name = name
        self.steps = StepCategories.of(context, least_purity)
        self._context = context
        self._weights = weights

    def parts(self, rollouts: Rollouts) -> Tensor:
        """float32 [4, B, G]: the four rewards as counts, 0 where there is no proposal or no known next item."""
        targets = next_items(rollouts).unsqueeze(1)
        codes = self._context.codes[:, : self._context.semantic_levels]
        categories = self.steps.ids[rollouts.items]
        parts = torch.stack(
            [
                shared_levels(codes[rollouts.items], codes[targets], ordered=self._context.ordered),
                (rollouts.items == targets).long(),
                category_hits(categories, self._context.category_ids[targets]),
                consistent_steps(categories),
            ]
        )
        return torch.where(rollouts.is_real & (targets >= 0), parts, 0).float()

    def __call__(self, rollouts: Rollouts) -> Tensor:
        """float32 [B, G]."""
        levels = self._context.semantic_levels
        most = (levels, 1, levels, max(levels - 1, 1))
        factors = torch.tensor([weight / count / 4 for weight, count in zip(self._weights, most, strict=True)])
        return (self.parts(rollouts) * factors.to(rollouts.items.device).view(4, 1, 1)).sum(0)
