"""Sessions in a log of interactions with timestamps: where one begins, and how long they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recsys.data.interactions import Interactions
from recsys.data.sequences import IntArray, Sequences
from recsys.simulator.behaviour.patience import Leaving

DoubleArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

GAP_S = 1800
"""A pause of half an hour or more begins a new session."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LoggedSessions:
    """Whole histories of some users, cut where they paused."""

    log: Sequences
    starts: BoolArray | None
    """bool [len(log.items)]: the first item of a session; None where nothing is known of time."""

    @classmethod
    def of(cls, interactions: Interactions, users: IntArray, gap_s: int = GAP_S) -> LoggedSessions:
        """Those of `users` (dense indices)."""
        sequences = interactions.sequences()
        log = sequences.select(users)
        if not interactions.has_timestamps:
            return cls(log=log, starts=None)
        times = Sequences(
            users=sequences.users,
            offsets=sequences.offsets,
            items=interactions.frame["timestamp"].to_numpy().astype(np.int64),
        ).select(users)
        starts = np.diff(times.items, prepend=times.items[:1]) >= gap_s
        starts[log.offsets[:-1][log.lengths > 0]] = True
        return cls(log=log, starts=starts)

    def select(self, rows: IntArray) -> LoggedSessions:
        """The users at `rows`."""
        if self.starts is None:
            return LoggedSessions(log=self.log.select(rows), starts=None)
        flags = Sequences(users=self.log.users, offsets=self.log.offsets, items=self.starts.astype(np.int64))
        return LoggedSessions(log=self.log.select(rows), starts=flags.select(rows).items.astype(bool))

    def lengths(self) -> tuple[IntArray, DoubleArray]:
        """Choices of each session int64 [sessions], and weights under which all users count the same.

        Needs `starts`. Without weights the few users with hundreds of short sessions would be all that is seen.
        """
        assert self.starts is not None
        begins = np.flatnonzero(self.starts)
        lengths = np.diff(begins, append=len(self.starts))
        owner = np.searchsorted(self.log.offsets, begins, side="right") - 1
        return lengths, 1.0 / np.bincount(owner, minlength=len(self.log))[owner]

    def leaving(self) -> Leaving:
        """What they say of when users leave; needs `starts`."""
        return Leaving.of_lengths(*self.lengths())
