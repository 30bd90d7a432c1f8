"""Cases that a profile is judged by: what it is made of, what the judge reads beside it, and what came next.

LettinGo (arXiv 2506.18309, section 3): the newest interactions stay as they are, the profile stands for those before.
The target is after both, so that no profile can name it for having read it. Knows no models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from recsys.config import StrictConfig
from recsys.data.sequences import IntArray, Sequences
from recsys.errors import DataError


class CaseConfig(StrictConfig):
    """How histories are divided."""

    targets: int = Field(default=3, ge=1)
    """Last items of a user that are held out, and asked for one by one."""
    recent: int = Field(default=5, ge=1)
    """Items before them that the judge reads as they are."""
    min_compressed: int = Field(default=10, ge=1)
    """Items before those that a user needs: what the profile is made of."""
    negatives: int = Field(default=19, ge=1)
    """Items that each target is ranked among: drawn as often as they are chosen, none of the user's own."""
    seed: int = 0
    """Of the draws; a user's draws depend on it and on the user alone."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """One user. Items are dense indices, oldest first; of T targets with C candidates each."""

    user: int
    """User index."""
    compressed: tuple[int, ...]
    """What a profile is made of."""
    recent: tuple[int, ...]
    """What the judge reads beside the profile."""
    candidates: IntArray
    """int64 [T, C]: the target, then what it is ranked among."""

    @property
    def targets(self) -> tuple[int, ...]:
        """The held-out items."""
        return tuple(self.candidates[:, 0].tolist())


def make_cases(histories: Sequences, item_counts: IntArray, config: CaseConfig) -> list[Case]:
    """A case of each user whose history is long enough, in the order of `histories`.

    Items that stand among the compressed or the recent ones too are no targets: repeats would leak.

    Args:
        histories: whole histories.
        item_counts: int64 [num_items], how often each item is chosen.
        config: how they are divided.

    Raises:
        DataError: the catalogue has too few items to draw from.
    """
    cases = []
    for row, items in enumerate(histories):
        begin = len(items) - config.targets - config.recent
        if begin < config.min_compressed:
            continue
        known = items[: begin + config.recent]
        targets = [int(item) for item in items[begin + config.recent :] if item not in known]
        if not targets:
            continue
        user = int(histories.users[row])
        cases.append(
            Case(
                user=user,
                compressed=tuple(items[:begin].tolist()),
                recent=tuple(items[begin : begin + config.recent].tolist()),
                candidates=_candidates(targets, items, item_counts, config, user),
            )
        )
    return cases


def _candidates(
    targets: Sequence[int], items: IntArray, item_counts: IntArray, config: CaseConfig, user: int
) -> IntArray:
    weights = item_counts.astype(np.float64)
    weights[items] = 0.0
    if np.count_nonzero(weights) < config.negatives:
        raise DataError(
            f"profiles.cases.negatives={config.negatives}: only {np.count_nonzero(weights)} items are left that user "
            f"{user} has not; lower it"
        )
    random = np.random.default_rng([config.seed, user])
    drawn = [random.choice(len(weights), config.negatives, replace=False, p=weights / weights.sum()) for _ in targets]
    return np.column_stack([np.asarray(targets, dtype=np.int64), np.stack(drawn).astype(np.int64)])
