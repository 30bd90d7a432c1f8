"""Draws a list so that the probability of every list is known: the condition of learning from what was shown.

The policy: with probability epsilon the list is drawn without replacement by Plackett-Luce over a softmax of the
candidates' scores, mixed with a little of the uniform distribution, so that no candidate is impossible; else it is the
best list. The best list alone would give the others no probability, and no estimate for them.

Plackett, "The analysis of permutations", 1975; drawn by Gumbel-top-k: Kool et al., "Stochastic beams and where to find
them", 2019.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recsys.data.sequences import IntArray

FloatArray = npt.NDArray[np.float64]

NUM_DRAWS = 512
"""Drawn prefixes that the marginals of the third and later slots are averaged over."""


@dataclass(frozen=True, kw_only=True, eq=False)
class DrawnSlate:
    """A list with its probabilities under the policy that drew it."""

    order: IntArray
    """int64 [k], candidates in the order of display."""
    conditional: FloatArray
    """float64 [k], of each item given those before it."""
    marginal: FloatArray
    """float64 [k], of each item at its place: exact for the first two, an average over draws for the others."""
    joint_log: float
    """Natural logarithm of the probability of the whole list."""
    was_drawn: bool
    """Whether it was drawn at random; the list may be the best one all the same."""


def draw_slate(
    scores: FloatArray, k: int, *, epsilon: float, seed: int, temperature: float = 1.0, uniform: float = 1e-3
) -> DrawnSlate:
    """Draw a list of `k` out of n candidates.

    Args:
        scores: float [n], finite, log-probabilities for instance; ties are ordered by index.
        k: length of the list; n where there are fewer candidates.
        epsilon: share of lists that are drawn, 0 .. 1.
        seed: the same seed draws the same list.
        temperature: above 0; higher is more random.
        uniform: share of the uniform distribution in each choice, 0 < share <= 1.

    Raises:
        ValueError: a value is out of range, or a score is not finite.
    """
    if not np.isfinite(scores).all():
        raise ValueError("scores must be finite")
    if not (0 <= epsilon <= 1 and temperature > 0 and 0 < uniform <= 1 and k >= 0):
        raise ValueError(
            f"epsilon must be 0 .. 1, temperature above 0, uniform above 0 and at most 1, k at least 0; got {epsilon}, "
            f"{temperature}, {uniform}, {k}"
        )
    k = min(k, len(scores))
    best = np.argsort(-scores, kind="stable")[:k].astype(np.int64)
    if k == 0:
        return DrawnSlate(order=best, conditional=np.zeros(0), marginal=np.zeros(0), joint_log=0.0, was_drawn=False)
    strengths = _strengths(scores, temperature, uniform)
    random = np.random.default_rng(seed)
    was_drawn = bool(random.random() < epsilon)
    order = _draw(strengths, k, random, 1)[0] if was_drawn else best
    prefix = _prefix_probabilities(strengths, order, best, epsilon)
    conditional = prefix[1:] / prefix[:-1]
    drawn = _marginals(strengths, k, random)[np.arange(k), order] if epsilon > 0 else np.zeros(k)
    marginal = epsilon * drawn + (1 - epsilon) * (order == best)
    return DrawnSlate(
        order=order,
        conditional=conditional,
        # An item is at its place at least as often as after just these others: where no draw had it, that is known.
        marginal=np.clip(marginal, np.cumprod(conditional), 1.0),
        joint_log=float(np.log(conditional).sum()),
        was_drawn=was_drawn,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class ListPropensities:
    """How likely the policy is to show a given list."""

    conditional: FloatArray
    """float64 [k], of each item given those before it; 0 from the first impossible item on."""
    marginal: FloatArray
    """float64 [k], of each item at its place: exact for the first two, an average over draws for the others."""
    choices: FloatArray
    """float64 [k, n], of each candidate at a place given the list's own items before it; 0 behind an impossible one."""
    marginals: FloatArray
    """float64 [k, n], of each candidate at a place, whatever stands elsewhere."""


def list_propensities(
    scores: FloatArray, order: IntArray, *, epsilon: float, seed: int, temperature: float = 1.0, uniform: float = 1e-3
) -> ListPropensities:
    """What `draw_slate` would make of a list that somebody else showed.

    Args:
        scores: float [n], as in `draw_slate`.
        order: int64 [k], different candidates in the order of display; -1 = an item that is none.
        epsilon: as in `draw_slate`.
        seed: of the draws that marginals are averages over.
        temperature: as in `draw_slate`.
        uniform: as in `draw_slate`.
    """
    k = len(order)
    if not len(scores):
        return ListPropensities(
            conditional=np.zeros(k), marginal=np.zeros(k), choices=np.zeros((k, 0)), marginals=np.zeros((k, 0))
        )
    best = np.argsort(-scores, kind="stable")[:k].astype(np.int64)
    best = np.concatenate([best, np.full(k - len(best), -1)])
    strengths = _strengths(scores, temperature, uniform)
    known = k if (order >= 0).all() else int(np.argmin(order >= 0))
    prefix = np.zeros(k + 1)
    prefix[: known + 1] = _prefix_probabilities(strengths, order[:known], best[:known], epsilon)
    conditional = np.divide(prefix[1:], prefix[:-1], out=np.zeros(k), where=prefix[:-1] > 0)
    choices = np.zeros((k, len(scores)))
    rest = strengths.copy()
    drawn, is_best = 1.0, True
    for place in range(min(known + 1, k)):
        if prefix[place] <= 0 or not rest.any():
            break
        choices[place] = epsilon * drawn * rest / rest.sum()
        if is_best and best[place] >= 0:
            choices[place, best[place]] += 1 - epsilon
        choices[place] /= prefix[place]
        if place < known:
            drawn *= rest[order[place]] / rest.sum()
            is_best = is_best and bool(order[place] == best[place])
            rest[order[place]] = 0.0
    # As many places as there are candidates; behind them nothing can stand.
    length = min(k, len(scores))
    marginals = np.zeros((k, len(scores)))
    if epsilon > 0:
        marginals[:length] = epsilon * _marginals(strengths, length, np.random.default_rng(seed))
    marginals[np.arange(length), best[:length]] += 1 - epsilon
    marginal = np.where(order >= 0, marginals[np.arange(k), order], 0.0)
    return ListPropensities(
        conditional=conditional,
        marginal=np.clip(marginal, np.cumprod(conditional), 1.0),
        choices=choices,
        marginals=marginals,
    )


def _strengths(scores: FloatArray, temperature: float, uniform: float) -> FloatArray:
    """float64 [n], positive, of sum 1: the probabilities of the first choice."""
    scaled = scores / temperature
    weights = np.exp(scaled - scaled.max())
    mixed: FloatArray = (1 - uniform) * weights / weights.sum() + uniform / len(scores)
    return mixed


def _draw(strengths: FloatArray, k: int, random: np.random.Generator, count: int) -> IntArray:
    """int64 [count, k] lists, by Gumbel-top-k."""
    keys = np.log(strengths) + random.gumbel(size=(count, len(strengths)))
    return np.argsort(-keys, axis=1)[:, :k].astype(np.int64)


def _prefix_probabilities(strengths: FloatArray, order: IntArray, best: IntArray, epsilon: float) -> FloatArray:
    """float64 [k + 1], that a list begins with the first 0 .. k items of `order`."""
    chosen = strengths[order]
    left = _left(strengths, order)
    drawn = np.concatenate([[1.0], np.cumprod(chosen / left)])
    is_best = np.concatenate([[True], np.cumprod(order == best).astype(bool)])
    prefix: FloatArray = epsilon * drawn + (1 - epsilon) * is_best
    return prefix


def _left(strengths: FloatArray, order: IntArray) -> FloatArray:
    """float64 [k], the strengths that are left before each choice, summed without subtracting: that would cancel."""
    rest = np.ones(len(strengths), dtype=bool)
    rest[order] = False
    tail = strengths[rest].sum()
    left: FloatArray = tail + np.cumsum(strengths[order][::-1])[::-1]
    return left


def _marginals(strengths: FloatArray, k: int, random: np.random.Generator) -> FloatArray:
    """float64 [k, n], that a drawn list has each candidate at each place.

    From the third place on the average, over drawn prefixes, of the candidate's probability to come next: of less
    variance than counting lists; 0 where it precedes its place in all of them.
    """
    marginals = np.empty((k, len(strengths)))
    marginals[0] = strengths
    if k > 1:
        share = strengths / (1 - strengths)
        marginals[1] = strengths * (share.sum() - share)
    prefixes = _draw(strengths, k - 1, random, NUM_DRAWS) if k > 2 else np.zeros((1, 0), np.int64)
    left = 1 - np.cumsum(strengths[prefixes], axis=1)  # of at least one item, and none is impossible
    for place in range(2, k):
        shares = 1 / left[:, place - 1]
        drawn_before = np.bincount(prefixes[:, :place].ravel(), np.repeat(shares, place), minlength=len(strengths))
        marginals[place] = strengths * np.maximum(shares.sum() - drawn_before, 0) / len(shares)
    return marginals
