"""The event log as its readers see it: one Redis stream a shard, read by a consumer group. Knows no files.

A reader takes entries, makes their effect durable, and acknowledges them; entries that it took and did not acknowledge
are given out again by `claim`, whoever took them. Entries are removed once every group has acknowledged them, never
before. The log is written by `OnlineStore`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import methodcaller
from typing import Any

from feature_store.connection import Command, Script
from feature_store.errors import InvalidEventError, StoreConfigError
from feature_store.events import Event, LogEntry
from feature_store.keys import SHARDS
from feature_store.online import OnlineStore
from feature_store.slates import ServedSlate

_JOIN = Script("join_log")
_TRIM = Script("trim_log")
_LAG = Script("log_lag")


@dataclass(frozen=True, kw_only=True, slots=True)
class Lag:
    """How far a group is behind."""

    entries: int
    """That it has not acknowledged; where users were erased meanwhile, no more than these."""
    seconds: float
    """Age of the oldest of them; 0 without any."""


class EventLog:
    """The log of a store as one consumer group sees it.

    Args:
        store: whose log it is.
        group: each group gets every entry.
        member: names this reader within the group.
    """

    def __init__(self, store: OnlineStore, *, group: str = "offline", member: str = "consumer") -> None:
        self.store = store
        self.group = group
        self._member = member
        self._streams = [store.keys.of_shard(shard, "wal") for shard in range(SHARDS)]

    def join(self, owner: str) -> None:
        """Make the group unless it is there; from now on the log keeps what the group has not acknowledged.

        Args:
            owner: id of the place that the group's entries go to.

        Raises:
            StoreConfigError: the entries of this group go elsewhere, or the keys are of another version.
            StoreUnavailableError: the store does not answer.
        """
        self.store.check_layout()
        groups = [self.store.keys.of_shard(shard, "groups") for shard in range(SHARDS)]
        owners = self._each(lambda shard, key: _JOIN((key, groups[shard]), self.group, owner))
        if others := sorted(set(owners) - {owner}):
            raise StoreConfigError(
                f"store: group {self.group!r} of the event log fills another offline store ({others[0]}); "
                "use that one's directory, or another group"
            )

    def leave(self) -> None:
        """Give the group up, with its place in the log: the log does not wait for it any more."""
        groups = [self.store.keys.of_shard(shard, "groups") for shard in range(SHARDS)]
        there = self._each(lambda _, key: Command(key, methodcaller("exists", key)))
        streams = [key for key, is_there in zip(self._streams, there, strict=True) if is_there]
        self.store.connection.run([Command(key, methodcaller("xgroup_destroy", key, self.group)) for key in streams])
        self._each(lambda shard, key: Command(key, methodcaller("hdel", groups[shard], self.group)))

    def read(self, count: int) -> list[LogEntry]:
        """Up to `count` entries of each shard that no member has; each shard's are in order.

        What is given out is on disk in the store if that can tell: no reader sees what a crash may undo.

        Raises:
            StoreUnavailableError: the store does not answer, or has lost the group. `join` and `claim` before the
            next call: entries may have been taken without being seen.
        """
        replies = self._each(
            lambda _, key: Command(key, methodcaller("xreadgroup", self.group, self._member, {key: ">"}, count=count)),
            durable=True,
        )
        return [
            _entry(shard, place, fields)
            for shard, reply in enumerate(replies)
            for _, rows in reply or ()
            for place, fields in rows
        ]

    def claim(self, count: int) -> Iterator[list[LogEntry]]:
        """What members took and did not acknowledge, in order; acknowledge each list before asking for the next."""
        for shard, key in enumerate(self._streams):
            start = "0-0"
            while True:
                start, rows, *_ = self.store.connection.one(
                    key,
                    methodcaller("xautoclaim", key, self.group, self._member, 0, start, count=count),
                    durable=True,
                )
                # Redis 6.2 names entries that were erased meanwhile, without fields.
                if entries := [_entry(shard, place, fields) for place, fields in rows if fields]:
                    yield entries
                if start == "0-0":
                    break

    def acknowledge(self, entries: Sequence[LogEntry]) -> None:
        """Never give these out again."""
        places: defaultdict[int, list[str]] = defaultdict(list)
        for entry in entries:
            places[entry.shard].append("{}-{}".format(*entry.position))
        self.store.connection.run(
            [
                Command(key := self._streams[shard], methodcaller("xack", key, self.group, *ids))
                for shard, ids in places.items()
            ]
        )

    def trim(self) -> int:
        """Remove the entries that every group has acknowledged; how many."""
        return sum(self._each(lambda _, key: _TRIM((key,))))

    def lag(self) -> Lag:
        """How far the group is behind.

        Raises:
            StoreUnavailableError: the store does not answer.
        """
        each = self._each(lambda _, key: _LAG((key,), self.group))
        return Lag(entries=sum(entries for entries, _ in each), seconds=max(ms for _, ms in each) / 1000)

    def _each(self, command: Callable[[int, str], Command], *, durable: bool = False) -> list[Any]:
        """One command a shard, made from the shard and its stream's key."""
        return self.store.connection.run(
            [command(shard, key) for shard, key in enumerate(self._streams)],
            durable=durable,
        )


def _entry(shard: int, place: str, fields: Mapping[str, str]) -> LogEntry:
    milliseconds, _, number = place.partition("-")
    position = (int(milliseconds), int(number))
    if "erased" in fields:
        return LogEntry(shard=shard, position=position, erased=fields["erased"])
    try:
        if "slate" in fields:
            return LogEntry(shard=shard, position=position, slate=ServedSlate.from_json(fields["slate"]))
        event = Event(
            event_id=fields["event_id"],
            user_id=fields["user_id"],
            item_id=fields["item_id"],
            event_type=fields["event_type"],
            timestamp=float(fields["timestamp"]),
            recommendation_id=fields.get("recommendation_id"),
        )
    except (KeyError, InvalidEventError) as error:
        raise StoreConfigError(
            f"store: entry {place} in shard {shard} of the event log is none of ours ({error}); remove it with XDEL"
        ) from error
    return LogEntry(shard=shard, position=position, event=event)
