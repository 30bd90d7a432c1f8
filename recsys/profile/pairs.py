"""From scored profiles to pairs that a writer is tuned on: the same prompt, a better and a worse text. LettinGo."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from pydantic import Field

from recsys.config import StrictConfig
from recsys.profile.utility import Scored, by_user


class PairConfig(StrictConfig):
    """Which differences count."""

    min_gap: float = Field(default=0.05, ge=0)
    """Utility, less the cost of length, by which the better text is ahead, in nats."""
    min_deviations: float = Field(default=0.5, ge=0)
    """The same in standard deviations of the user's own profiles; the larger of both counts."""
    per_user: int = Field(default=4, ge=1)
    """Pairs of a user at most: those with the largest gap."""


@dataclass(frozen=True, kw_only=True)
class TextPair:
    """What a trainer reads."""

    user: int
    """User index."""
    prompt: str
    """What the writer is asked."""
    chosen: str
    """The text that is worth more; faithful."""
    rejected: str
    """The text that is worth less."""
    gap: float
    """How much, in nats."""


def text_pairs(scored: Iterable[Scored], prompts: Mapping[int, str], config: PairConfig) -> list[TextPair]:
    """The pairs of all users, each user's by falling gap. Users whose profiles are worth the same give none.

    Args:
        scored: several profiles a user.
        prompts: by user, what the writer is asked.
        config: which differences count.
    """
    return [
        pair
        for user, profiles in by_user(scored).items()
        for pair in _pairs_of(user, list({each.text: each for each in profiles if each.text}.values()), prompts, config)
    ]


def _pairs_of(user: int, profiles: Sequence[Scored], prompts: Mapping[int, str], config: PairConfig) -> list[TextPair]:
    if len(profiles) < 2:
        return []
    threshold = max(config.min_deviations * float(np.std([each.reward for each in profiles])), config.min_gap)
    pairs = [
        TextPair(
            user=user, prompt=prompts[user], chosen=better.text, rejected=worse.text, gap=better.reward - worse.reward
        )
        for better, worse in permutations(profiles, 2)
        if better.is_faithful and better.reward - worse.reward > threshold
    ]
    return sorted(pairs, key=lambda pair: -pair.gap)[: config.per_user]
