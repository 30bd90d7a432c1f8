"""Two rankers in one list: whose items a user takes says which is better, with far fewer lists than an A/B test needs.

Team draft: Radlinski, Kurup and Joachims, "How does clickthrough data reflect retrieval quality?", CIKM 2008.
Probabilistic: Hofmann, Whiteson and de Rijke, "A probabilistic method for inferring preferences from clicks", CIKM
2011.

Shapes: B requests, K places. Lists are int64 [B, n], best first, each item once; -1 stands for no item, at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from recsys.data.sequences import IntArray
from recsys.evaluation.bootstrap import Interval
from recsys.evaluation.ratios import UserRatio

FloatArray = npt.NDArray[np.float64]
_NOTHING = -1


@dataclass(frozen=True, kw_only=True, eq=False)
class Interleaved:
    """Lists of two rankers, and whom a place is owed to."""

    items: IntArray
    """int64 [B, K], -1 where both rankers had no more."""
    credit: FloatArray
    """float64 [B, K]: the share of the first ranker in the place, 0 to 1; the rest is the second's. Under a team draft
    it is 1 or 0."""

    def preference(self, taken: npt.NDArray[np.bool_]) -> FloatArray:
        """What the first ranker is credited with minus what the second is, float64 [B].

        Args:
            taken: bool [B, K], places whose item the user took.
        """
        return np.asarray(((2 * self.credit - 1) * (taken & (self.items != _NOTHING))).sum(axis=1))


def team_draft(first: IntArray, second: IntArray, k: int, random: np.random.Generator) -> Interleaved:
    """In turn each team takes its best item that is not in the list; who has fewer picks is next, a coin decides ties.

    Args:
        first: lists of one ranker, [B, n].
        second: lists of the other for the same requests.
        k: K, places to fill.
        random: the coin.
    """
    batch = np.arange(len(first))
    lists = (first, second)
    taken = [first == _NOTHING, second == _NOTHING]
    picks = np.zeros((2, len(first)), dtype=np.int64)
    items = np.full((len(first), k), _NOTHING, dtype=np.int64)
    credit = np.zeros((len(first), k))
    for place in range(k):
        coin = random.integers(0, 2, len(first)).astype(bool)
        team = np.where(picks[0] == picks[1], coin, picks[0] > picks[1]).astype(np.int64)
        has = [~each.all(axis=1) for each in taken]
        team = np.where(has[0] & has[1], team, np.where(has[0], 0, 1))  # who has no more items is passed over
        any_left = has[0] | has[1]
        best = np.stack([ranked[batch, each.argmin(axis=1)] for ranked, each in zip(lists, taken, strict=True)])
        chosen = np.where(any_left, best[team, batch], _NOTHING)
        items[:, place], credit[:, place] = chosen, (team == 0) & any_left
        picks[team, batch] += 1
        for ranked, each in zip(lists, taken, strict=True):
            each |= ranked == chosen[:, None]
    return Interleaved(items=items, credit=credit)


def probabilistic(
    first: IntArray, second: IntArray, k: int, random: np.random.Generator, exponent: float = 3.0
) -> Interleaved:
    """At each place a coin picks a ranker; it draws an item with weight 1 / rank^exponent among those not in the list.

    A place is credited by the posterior of who drew it, given the list: less noise than by who did. Both rankers rank
    what either of them lists; what one of them left out is behind all that it listed.

    Args:
        first: lists of one ranker, [B, n].
        second: lists of the other for the same requests.
        k: K, places to fill.
        random: draws rankers and items.
        exponent: how strongly a ranker prefers its best items.
    """
    pool = np.concatenate([first, np.where(_is_in(second, first), _NOTHING, second)], axis=1)  # each item once
    weights = np.stack([_rank_weights(pool, ranked, exponent) for ranked in (first, second)])
    batch = np.arange(len(first))
    items = np.full((len(first), k), _NOTHING, dtype=np.int64)
    credit = np.zeros((len(first), k))
    for place in range(k):
        mass = weights.sum(axis=2, keepdims=True)
        chances = np.divide(weights, mass, out=np.zeros_like(weights), where=mass > 0)
        both = chances.mean(axis=0)
        any_left = both.sum(axis=1) > 0
        below = np.cumsum(both, axis=1)
        drawn = (below <= random.random(len(first))[:, None] * below[:, -1:]).sum(axis=1).clip(max=pool.shape[1] - 1)
        items[:, place] = np.where(any_left, pool[batch, drawn], _NOTHING)
        whole = 2 * both[batch, drawn]
        credit[:, place] = np.divide(chances[0, batch, drawn], whole, out=np.zeros(len(first)), where=any_left)
        weights[:, batch, drawn] = 0
    return Interleaved(items=items, credit=credit)


@dataclass(frozen=True, kw_only=True)
class Preference:
    """Which of two interleaved rankers users prefer."""

    wins: int
    """Users who took more of the first ranker's items."""
    losses: int
    ties: int
    share: float
    """Of wins among users who were not tied; .5 without any."""
    p_value: float
    """Two-sided sign test over users."""
    difference: Interval
    """Mean over users of the first ranker's credit minus the second's, a list, with its t interval."""


def preference_of_users(users: Sequence[str], preferences: npt.ArrayLike, alpha: float = 0.05) -> Preference:
    """Test over users, for lists of one user are not independent.

    Args:
        users: [B], who each list was shown to.
        preferences: [B], see `Interleaved.preference`.
        alpha: the interval holds the truth with probability 1 - alpha.

    Raises:
        ValueError: the lengths differ, or there are fewer than two users.
    """
    values = np.asarray(preferences, dtype=np.float64)
    names, index = np.unique(np.asarray(users), return_inverse=True)
    if values.shape != index.shape or len(names) < 2:
        raise ValueError("users and preferences need the same lists, of two or more users")
    mean = np.bincount(index, weights=values) / np.bincount(index)
    wins, losses = int((mean > 0).sum()), int((mean < 0).sum())
    decided = wins + losses
    summary = UserRatio.of_values(mean)
    margin = float(stats.t.ppf(1 - alpha / 2, len(names) - 1)) * summary.variance**0.5
    return Preference(
        wins=wins,
        losses=losses,
        ties=len(names) - decided,
        share=wins / decided if decided else 0.5,
        p_value=float(stats.binomtest(wins, decided).pvalue) if decided else 1.0,
        difference=Interval(value=summary.value, low=summary.value - margin, high=summary.value + margin),
    )


def _is_in(items: IntArray, lists: IntArray) -> npt.NDArray[np.bool_]:
    """bool [B, n]: whether each item is in the list of its row."""
    return np.asarray((items[:, :, None] == lists[:, None, :]).any(axis=2))


def _rank_weights(pool: IntArray, ranked: IntArray, exponent: float) -> FloatArray:
    """float64 [B, pool]: 1 / rank^exponent of each item of the pool; 0 for none."""
    found = pool[:, :, None] == ranked[:, None, :]
    # What is not listed shares the place behind the last one that is.
    ranks = np.where(found.any(axis=2), found.argmax(axis=2), (ranked != _NOTHING).sum(axis=1)[:, None]) + 1
    return np.where(pool == _NOTHING, 0.0, ranks.astype(np.float64) ** -exponent)
