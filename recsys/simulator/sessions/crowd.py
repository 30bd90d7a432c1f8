"""The minds of many users during sessions that run in step: what they choose from slates, and when they leave.

The one place where a simulated choice is made; the Gymnasium environment is a crowd of one. Shapes: B users, S places.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import softmax

from recsys.data.sequences import IntArray, Sequences
from recsys.simulator.behaviour.history import SATIATING
from recsys.simulator.behaviour.model import ChoiceModel
from recsys.simulator.behaviour.stress import Traits
from recsys.simulator.sessions.noise import DRIFT, LEAVING, NO_CHOICE, extended, gumbel, keys, normal, uniform

FloatArray = npt.NDArray[np.float32]
DoubleArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

_AT_ONCE = 256
"""Users whose view of the whole catalogue is in memory at a time."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Reaction:
    """What a crowd did with one page."""

    places: IntArray
    """int64 [B]: place of the choice, -1 = none."""
    items: IntArray
    """int64 [B]: the item, -1 = none."""
    chances: DoubleArray
    """float64 [B, S]: with which probability each place was chosen."""
    left: BoolArray
    """bool [B]: the session ended here."""


class Crowd:
    """B users at the beginning of a session.

    Args:
        model: how they choose.
        histories: B histories, oldest first.
        users: int64 [B]: what names a user in the random numbers.
        sessions: int64 [B]: likewise which of the user's sessions it is.
        seed: of all that is random.
        traits: how they depart from the model; None for ordinary users.
    """

    def __init__(
        self,
        model: ChoiceModel,
        histories: Sequences,
        *,
        users: IntArray,
        sessions: IntArray,
        seed: int,
        traits: Traits | None = None,
    ) -> None:
        self.model = model
        self.step = 0
        self.nulls = np.zeros(len(users), dtype=np.int64)
        self.traits = Traits.ordinary(len(users)) if traits is None else traits
        self.memories = model.remember(histories)
        self.recent = np.full((len(users), SATIATING), -1, dtype=np.int64)
        self._keys = keys(seed, users, sessions)
        self._worth = model.log_worth(self.memories, self.recent, self.traits)

    def __len__(self) -> int:
        return len(self.nulls)

    def repeated(self, times: int, users: IntArray, sessions: IntArray, seed: int) -> Crowd:
        """The beginning of `times` sessions of each user, one after another; saves what would be computed again.

        For a crowd that has not reacted yet.
        """
        copy = object.__new__(Crowd)
        rows = np.repeat(np.arange(len(self)), times)
        copy.model, copy.step = self.model, 0
        copy._keys = keys(seed, users, sessions)
        copy._take(self, rows)
        return copy

    def keep(self, staying: BoolArray) -> None:
        """Forget the others."""
        rows = np.flatnonzero(staying)
        self._keys = self._keys[rows]
        self._take(self, rows)

    def _take(self, source: Crowd, rows: IntArray) -> None:
        self.nulls = source.nulls[rows]
        self.traits = source.traits.select(rows)
        self.memories = source.memories.select(rows)
        self.recent = source.recent[rows]
        self._worth = source._worth[rows]

    def catalogue(self) -> FloatArray:
        """float32 [B, V]: what every item is worth now."""
        return self.model.utilities(self.memories, self.recent, None, self.traits)

    def begin_session(self, rows: IntArray) -> None:
        """Users at `rows` come back: they are no longer tired of anything."""
        self.recent[rows] = -1
        self.nulls[rows] = 0

    def take_anything(self, rows: IntArray, had: Sequence[Set[int]]) -> IntArray:
        """int64 [len(rows)]: users at `rows` take one item each from the whole catalogue, but none of `had`.

        Not the way of a session with slates: it shows what the model takes for the log's own course.
        """
        taken = np.empty(len(rows), dtype=np.int64)
        for begin in range(0, len(rows), _AT_ONCE):
            part = slice(begin, begin + _AT_ONCE)
            here = rows[part]
            worth = self.model.utilities(self.memories.select(here), self.recent[here], None, self.traits.select(here))
            utilities = worth / np.float32(self.model.parameters.temperature)
            for row, items in enumerate(had[part]):
                utilities[row, list(items)] = -np.inf
            item_keys = extended(extended(self._keys[here], self.step)[:, None], np.arange(self.model.num_items))
            taken[part] = (utilities + gumbel(item_keys)).argmax(axis=1)
        self.model.remember_choices(self.memories, rows, taken)
        self.recent[rows] = np.concatenate([self.recent[rows, 1:], taken[:, None]], axis=1)
        self.step += 1
        return taken

    def chances(self, items: IntArray) -> DoubleArray:
        """float64 [B, S]: probability of each place of slates int64 [B, S]; the rest is the chance of no choice."""
        return np.asarray(softmax(self._logits(items), axis=1)[:, :-1])

    def react(self, items: IntArray) -> Reaction:
        """Choose from slates int64 [B, S], -1 = an empty place, and go on to the next step."""
        logits = self._logits(items)
        chances = softmax(logits, axis=1)[:, :-1]
        step_keys = extended(self._keys, self.step)
        # First whether, then what: whether has luck of its own, so that slates with nothing in common share it too.
        chose = uniform(extended(step_keys, NO_CHOICE)) < chances.sum(axis=1)
        best = (logits[:, :-1] + gumbel(extended(step_keys[:, None], items))).argmax(axis=1)
        places = np.where(chose, best, -1)
        chosen = np.where(places >= 0, items[np.arange(len(items)), places], -1)
        self._remember(chosen, step_keys)
        odds = self.model.parameters.patience.leaving(self.step, self.nulls, (places >= 0).astype(np.float64))
        left = uniform(extended(step_keys, LEAVING)) < odds
        self.step += 1
        return Reaction(
            places=places,
            items=chosen,
            chances=chances,
            left=left,
        )

    def _logits(self, items: IntArray) -> DoubleArray:
        """float64 [B, S + 1]; the last column is that of no choice."""
        parameters, size = self.model.parameters, items.shape[1]
        utilities = self.model.utilities(self.memories, self.recent, items, self.traits)
        bias = self.model.place_bias(size) + self.traits.place[:, None] * np.arange(size)
        nothing = (parameters.null + self._worth) / parameters.temperature
        # Without any item even the insatiable can only choose nothing.
        forced = self.traits.insatiable & (items >= 0).any(axis=1)
        nothing = np.where(forced, -np.inf, nothing)
        return np.concatenate([utilities / parameters.temperature + bias, nothing[:, None]], axis=1)

    def _remember(self, chosen: IntArray, step_keys: npt.NDArray[np.uint64]) -> None:
        took = chosen >= 0
        self.nulls = np.where(took, 0, self.nulls + 1)
        self.model.remember_choices(self.memories, np.flatnonzero(took), chosen[took])
        self.recent = np.where(
            took[:, None], np.concatenate([self.recent[:, 1:], chosen[:, None]], axis=1), self.recent
        )
        rows = np.flatnonzero(self.traits.drift > 0)
        if len(rows):
            # One direction for all memories of a user: taste moves as a whole.
            columns = np.arange(self.memories.sums.shape[2])
            steps = normal(extended(extended(step_keys[rows], DRIFT)[:, None], columns)) / np.sqrt(len(columns))
            sums = self.memories.sums
            lengths = np.linalg.norm(sums[rows], axis=2, keepdims=True) * self.traits.drift[rows, None, None]
            sums[rows] += (lengths * steps[:, None, :]).astype(np.float32)
