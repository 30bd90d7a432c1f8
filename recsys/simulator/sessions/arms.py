"""Recommenders under test, as the sessions see them: a page is asked for, slates come back. Knows no users' minds.

An arm is any callable of this form; one that asks a service over HTTP is in `training.service_arm`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from recsys.data.sequences import IntArray, Sequences
from recsys.errors import DataError
from recsys.evaluation.ranker import Ranker
from recsys.simulator.sessions.noise import SLATE, gumbel, keys

DoubleArray = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Page:
    """What an arm is asked: the next slate of B sessions that are all at the same step."""

    population: Sequences
    """The users' histories before their sessions."""
    users: IntArray
    """int64 [B]: rows of `population`."""
    sessions: IntArray
    """int64 [B]: which session of the user."""
    choices: IntArray
    """int64 [B, step]: what was taken in this session, oldest first; -1 = nothing."""
    size: int
    """Places of a slate."""
    max_steps: int
    """Pages of a session at most."""
    seed: int
    """Of the simulation."""

    @property
    def step(self) -> int:
        """Pages that came before."""
        return int(self.choices.shape[1])

    @property
    def histories(self) -> Sequences:
        """Histories with what was taken in the session."""
        before = self.population.select(self.users)
        pairs = zip(before, self.choices, strict=True)
        lists = [np.concatenate([history, taken[taken >= 0]]) for history, taken in pairs]
        return Sequences.from_lists(lists, users=before.users.tolist())


@dataclass(frozen=True, kw_only=True, eq=False)
class Slates:
    """What an arm answers."""

    items: IntArray
    """int64 [B, size]: best place first, -1 = the place stays empty; an item once a slate."""
    propensities: DoubleArray
    """float64 [B, size]: the chance of the item at its place, given the higher places; 1 where nothing is random."""

    def check(self, page: Page, num_items: int) -> None:
        """Raises DataError when these are no answer to `page`."""
        shape = (len(page.users), page.size)
        if self.items.shape != shape or self.propensities.shape != shape:
            raise DataError(f"arm: slates must be {shape}, found {self.items.shape} and {self.propensities.shape}")
        if self.items.size and (self.items.min() < -1 or self.items.max() >= num_items):
            raise DataError(f"arm: items must lie in -1..{num_items - 1}, found up to {self.items.max()}")
        ordered = np.sort(self.items, axis=1)
        twice = ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any(axis=1)
        if twice.any():
            raise DataError(f"arm: {twice.sum()} of {len(twice)} slates hold an item twice, row {int(twice.argmax())}")
        wrong = ~((self.propensities > 0) & (self.propensities <= 1)) & (self.items >= 0)
        if wrong.any():
            raise DataError(f"arm: propensities must lie in (0, 1], row {int(wrong.any(axis=1).argmax())} does not")


Arm: TypeAlias = Callable[[Page], Slates]


def finished_lists(lists: IntArray) -> Ranker:
    """A ranker that repeats `lists`, int64 [users, k], by the users' numbers."""
    return lambda histories, k: lists[histories.users, :k]


@dataclass(kw_only=True, eq=False)
class CachedArm:
    """Asks a ranker once for each user, and shows the list page by page: for many sessions of the same users.

    The list does not follow what is taken during a session. With `spread` above 0 the order is drawn: a page shows some
    of the next `width` times as many items of the list, by Plackett-Luce with weights `rank ** (-1 / spread)`, so that
    logs of these slates can be used to judge other orders.
    """

    ranker: Ranker
    spread: float = 0.0
    width: int = 1
    _lists: dict[int, IntArray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.spread < 0 or self.width < 1:
            raise DataError(f"arm: spread={self.spread} must not be negative and width={self.width} be at least 1")

    def __call__(self, page: Page) -> Slates:
        """Slates of the next part of the lists."""
        block = page.size * self.width
        unknown = np.unique(page.users[[user not in self._lists for user in page.users.tolist()]])
        if len(unknown):
            found = self.ranker(page.population.select(unknown), block * page.max_steps)
            self._lists.update(zip(unknown.tolist(), found, strict=True))
        begin = page.step * block
        pool = np.stack([self._lists[user][begin : begin + block] for user in page.users.tolist()])
        if not self.spread:
            return Slates(items=pool[:, : page.size], propensities=np.ones((len(pool), page.size)))
        return self._drawn(page, pool)

    def _drawn(self, page: Page, pool: IntArray) -> Slates:
        logits = np.where(pool >= 0, -np.log(np.arange(1, pool.shape[1] + 1)) / self.spread, -np.inf)
        parts = (page.users[:, None], page.sessions[:, None], page.step, SLATE, pool)
        order = np.argsort(-(logits + gumbel(keys(page.seed, *parts))), axis=1, kind="stable")
        weights = np.take_along_axis(np.exp(logits), order, axis=1)
        # What is left before each place, summed from the last one up: subtracting from the whole would cancel.
        remaining = np.cumsum(weights[:, ::-1], axis=1)[:, ::-1][:, : page.size]
        taken, order = weights[:, : page.size], order[:, : page.size]
        items = np.take_along_axis(pool, order, axis=1)
        chances = np.divide(taken, remaining, out=np.ones_like(taken), where=items >= 0)
        return Slates(items=items, propensities=np.clip(chances, np.finfo(float).tiny, 1.0))


@dataclass(frozen=True, kw_only=True, eq=False)
class LiveArm:
    """Asks a ranker for every page, with the history as it has become."""

    ranker: Ranker

    def __call__(self, page: Page) -> Slates:
        """The ranker's lists."""
        items = self.ranker(page.histories, page.size)
        return Slates(items=items, propensities=np.ones(items.shape))
