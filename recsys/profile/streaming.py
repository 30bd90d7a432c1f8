"""Profiles that go on from the last one against profiles written anew: what is lost, what is saved. Knows no models.

AlignXplore (arXiv 2505.18071) checks A1, as many updates later a streamed profile is worth as much at a fraction of the
tokens, and A2, a taste that is gone leaves the profile within few updates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from recsys.config import StrictConfig
from recsys.data.sequences import IntArray
from recsys.errors import DataError
from recsys.profile.attributes import Attribute, ItemAttributes
from recsys.profile.profile import Profile
from recsys.profile.profiler import Profiler, Written


class StreamConfig(StrictConfig):
    """How a history arrives."""

    first: int = Field(default=20, ge=1)
    """Events before the first profile."""
    updates: int = Field(default=4, ge=1)
    """Updates after it."""
    events: int = Field(default=5, ge=1)
    """New events of each update."""

    @property
    def length(self) -> int:
        """Events in all."""
        return self.first + self.updates * self.events

    def read_after(self, update: int) -> int:
        """Events that are there after so many updates."""
        return self.first + update * self.events


@dataclass(frozen=True, kw_only=True)
class Stream:
    """The profiles of several users, one list an update, and what the updates took."""

    profiles: list[list[Profile]]
    """By update, then user; without the first profiles, which both ways share."""
    tokens_read: list[int]
    """By user, over all updates: prompts with the events and the profile before."""
    tokens_written: list[int]
    """By user, over all updates: the texts."""

    @property
    def tokens(self) -> float:
        """Read and written, a user."""
        return float(np.mean(self.tokens_read) + np.mean(self.tokens_written))


Count = Callable[[str], int]
"""Tokens of a text."""


def streamed(
    profiler: Profiler, first: Sequence[Profile], histories: Sequence[Sequence[int]], config: StreamConfig, count: Count
) -> Stream:
    """Each update reads the last profile and the new events only.

    Args:
        profiler: writes the profiles.
        first: of each user, after `config.first` events.
        histories: `config.length` events a user.
        config: how they arrive.
        count: of what is written.
    """
    steps: list[list[Written]] = []
    profiles = list(first)
    for update in range(1, config.updates + 1):
        begin, end = config.read_after(update - 1), config.read_after(update)
        steps.append(profiler.update(profiles, [items[begin:end] for items in histories]))
        profiles = [written.profile for written in steps[-1]]
    return _stream(steps, count)


def anew(profiler: Profiler, histories: Sequence[Sequence[int]], config: StreamConfig, count: Count) -> Stream:
    """Each update reads all events that there are by then; arguments as in `streamed`."""
    lengths = [config.read_after(update) for update in range(1, config.updates + 1)]
    return _stream([profiler.write([items[:length] for items in histories]) for length in lengths], count)


def _stream(steps: Sequence[Sequence[Written]], count: Count) -> Stream:
    by_user = list(zip(*steps, strict=True))
    return Stream(
        profiles=[[written.profile for written in step] for step in steps],
        tokens_read=[sum(written.tokens_read for written in user) for user in by_user],
        tokens_written=[sum(count(written.profile.text) for written in user) for user in by_user],
    )


@dataclass(frozen=True, kw_only=True)
class Drifter:
    """A made-up user whose taste changes at once."""

    old: Attribute
    """What all items before the change are, and none after it."""
    new: Attribute
    """What all items after it are, and none before it."""
    history: tuple[int, ...]
    """Items (dense indices): `first` of the old taste, then the updates' of the new one."""


def drifters(
    attributes: ItemAttributes, item_counts: IntArray, users: int, config: StreamConfig, seed: int
) -> list[Drifter]:
    """Made-up users, each from one category to another; both are drawn, and their items as often as they are chosen.

    Args:
        attributes: of the catalogue.
        item_counts: int64 [num_items], how often each item is chosen.
        users: how many.
        config: how their histories arrive.
        seed: of the draws.

    Raises:
        DataError: no two categories have items enough that are not in the other.
    """
    members: dict[Attribute, set[int]] = {}
    for item, count in enumerate(item_counts.tolist()):
        for attribute in attributes.of(item) if count else ():
            if attribute.kind == "category" and attribute not in attributes.commonplace:
                members.setdefault(attribute, set()).add(item)
    sizes = config.first, config.length - config.first
    possible = [
        (old, new)
        for old, before in members.items()
        for new, after in members.items()
        if len(before - after) >= sizes[0] and len(after - before) >= sizes[1]
    ]
    if not possible:
        raise DataError(f"no two categories have {sizes[0]} and {sizes[1]} items of their own; shorten the stream")
    random = np.random.default_rng(seed)
    made = []
    for number in random.integers(len(possible), size=users).tolist():
        old, new = possible[number]
        history: list[int] = []
        for items, size in zip((members[old] - members[new], members[new] - members[old]), sizes, strict=True):
            pool = np.array(sorted(items))
            weights = item_counts[pool] / item_counts[pool].sum()
            history += random.choice(pool, size, replace=False, p=weights).tolist()
        made.append(Drifter(old=old, new=new, history=tuple(history)))
    return made


def old_taste(attributes: ItemAttributes, users: Sequence[Drifter], profiles: Sequence[Profile]) -> dict[str, float]:
    """What profiles say of the old taste: shares of the users.

    Returns:
        `named`: the profile names it; `leads`: it names it, and the new one later or not at all.
    """
    named, leads = [], []
    for user, profile in zip(users, profiles, strict=True):
        found = attributes.named(profile.text)
        named.append(user.old in found)
        leads.append(user.old in found and (user.new not in found or found.index(user.old) < found.index(user.new)))
    return {"named": float(np.mean(named)), "leads": float(np.mean(leads))}


def half_life(shares: Sequence[float]) -> int | None:
    """Updates after which a share is at most half of the first one, which is before any; None when it never is,
    or the first is 0 already."""
    return next((update for update, share in enumerate(shares) if update and share <= shares[0] / 2 < shares[0]), None)
