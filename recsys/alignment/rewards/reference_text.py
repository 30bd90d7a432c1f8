"""How close a text is to what is known to be right: smoothed BLEU against references (BLEUBERI, arXiv 2505.11080).

The references are the texts of the items that came next: a policy that names the item's title, or writes its
description, is measured without a judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field
from torch import Tensor

from recsys.alignment.rewards.bleu import smoothed_bleu
from recsys.alignment.rewards.context import RewardContext, required
from recsys.alignment.rewards.reward import TermConfig
from recsys.alignment.rewards.texts import as_rewards, rollout_texts, tokens
from recsys.alignment.rollouts import Rollouts


class ReferenceTextConfig(TermConfig):
    """Smoothed BLEU of a text against those of the items that came next."""

    kind: Literal["reference_text"] = "reference_text"
    references: int = Field(default=1, ge=1, le=5)
    """How many of the next items' texts are references; the best match of each run of words counts."""

    def build(self, context: RewardContext) -> ReferenceTextReward:
        """Reads item texts."""
        return ReferenceTextReward(required(context.texts, "texts", self.term_name), self.references, self.term_name)


@dataclass(frozen=True)
class ReferenceTextReward:
    """See the module."""

    item_texts: Sequence[str]
    """N texts."""
    references: int = 1
    name: str = "reference_text"

    def __call__(self, rollouts: Rollouts) -> Tensor:
        """float32 [B, G] in 0..1; 0 for an empty text, and in rows without a next item.

        Raises:
            RewardError: the policy wrote no texts.
        """
        values = []
        futures = rollouts.futures[:, : self.references].tolist()
        for row, future in zip(rollout_texts(rollouts, self.name), futures, strict=True):
            known = [tokens(self.item_texts[item]) for item in future if item >= 0]
            values.append([smoothed_bleu(tokens(text), known) if known else 0.0 for text in row])
        return as_rewards(values, rollouts)
