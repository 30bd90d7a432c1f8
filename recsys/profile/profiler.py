"""What every writer of profiles does: write one from a history, and bring one up to date with new events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from recsys.profile.profile import Profile


@dataclass(frozen=True, kw_only=True)
class Written:
    """A profile and what reading for it took."""

    profile: Profile
    tokens_read: int
    """Tokens of the texts that were read: titles and attributes of the events, and the earlier profile if any."""


class Profiler(Protocol):
    """Writes profiles. Items are dense indices, oldest first."""

    def write(self, histories: Sequence[Sequence[int]]) -> list[Written]:
        """A profile of each history."""
        ...

    def update(self, profiles: Sequence[Profile], events: Sequence[Sequence[int]]) -> list[Written]:
        """Each profile after further events; the events before are not read again (AlignXplore, arXiv 2505.18071).
        What the user wrote stays, and what the user dismissed stays away; without events a profile stays as it is."""
        ...
