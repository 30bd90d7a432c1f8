"""The list that is shown of those that an answer allows, and how likely that was. Knows no HTTP and no storage."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from feature_store.slates import Slot
from recsys.simulator.exploration import FloatArray, draw_slate
from serving.answers import Answer, Pick, Reason


@dataclass(frozen=True, kw_only=True, eq=False)
class Shown:
    """A list with its probabilities under the policy that chose it."""

    answer: Answer
    """With the picks in the order of display."""
    marginal: FloatArray
    """float64 [picks], of each item at its place."""
    conditional: FloatArray
    """float64 [picks], of each item given those before it."""
    epsilon: float
    """Share of lists that are drawn at random."""
    seed: int | None
    """Of the draw; None where nothing is drawn."""

    def slots(self, item_ids: Sequence[str]) -> tuple[Slot, ...]:
        """The first places of the list, as they are logged.

        Args:
            item_ids: of the items at these places.
        """
        return tuple(
            Slot(item_id=item_id, marginal=float(marginal), conditional=float(conditional))
            for item_id, marginal, conditional in zip(item_ids, self.marginal, self.conditional, strict=False)
        )


def best(answer: Answer, k: int) -> Shown:
    """The best items, which are shown each time: `k` with those that are pinned.

    Args:
        answer: of some source.
        k: length of the list.
    """
    picks = answer.picks[: max(0, k - len(answer.pins))]
    certain = np.ones(len(picks))
    return _with_pins(
        Shown(answer=replace(answer, picks=picks), marginal=certain, conditional=certain, epsilon=0.0, seed=None)
    )


def draw(answer: Answer, k: int, epsilon: float, *, seed: int | None = None) -> Shown:
    """A list of `k`, pinned ones included, by the policy of `recsys.simulator.exploration`; takes milliseconds.

    What is pinned is no choice of the policy: it has probability 1 at its place, and the others are drawn around it.

    Args:
        answer: all its picks are candidates.
        k: length of the list.
        epsilon: share of lists that are drawn at random.
        seed: the same one draws the same list; None takes one that nobody can guess.
    """
    seed = secrets.randbits(53) if seed is None else seed  # JSON readers keep so many bits of a number
    # Where an answer's order is not that of its scores, the order counts: it is the best list.
    scores = np.minimum.accumulate(np.array([pick.score for pick in answer.picks], dtype=np.float64))
    slate = draw_slate(scores, max(0, k - len(answer.pins)), epsilon=epsilon, seed=seed)
    return _with_pins(
        Shown(
            answer=replace(answer, picks=[answer.picks[index] for index in slate.order]),
            marginal=slate.marginal,
            conditional=slate.conditional,
            epsilon=epsilon,
            seed=seed,
        )
    )


def pinned_pick(item: int, text: str = "Pinned") -> Pick:
    """An item that stands in a list because somebody wants it to."""
    return Pick(item=item, score=math.nan, reason=Reason(text=text))


def _with_pins(shown: Shown) -> Shown:
    """The list with its pinned items at their places; at its end where it is too short to have them."""
    picks, marginal, conditional = list(shown.answer.picks), shown.marginal, shown.conditional
    for pin in sorted(shown.answer.pins, key=lambda pin: pin.position):
        place = min(pin.position - 1, len(picks))
        picks.insert(place, pinned_pick(pin.item, f"Pinned to place {pin.position}"))
        marginal, conditional = (np.insert(each, place, 1.0) for each in (marginal, conditional))
    return replace(shown, answer=replace(shown.answer, picks=picks), marginal=marginal, conditional=conditional)
