"""The histories that a data set brings: entries below those of the events, for all users or for some.

Putting a user's entries is one command that may be repeated, and always leaves what it would have left alone: the
entries of this version of the data set, and the events above them. So while one process puts those of all users, others
may put those of a user whom they are asked for, and answer at once what they would answer later.

One process at a time works through the whole, whoever they are and wherever: it holds a lease, which others take over
when it ends. Which users have entries is noted before they get them, so that another version finds those who are gone.
"""

from __future__ import annotations

import contextlib
import json
import threading
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import methodcaller
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from feature_store.connection import Command, Script
from feature_store.errors import StoreError, StoreUnavailableError
from feature_store.keys import SCHEMA, Keys, digest_of, shard_of
from feature_store.search import UserSearch

History = tuple[str, Sequence[str]]
"""A user id with item ids, oldest first."""

_SEED = Script("seed_histories")
_HOLD = Script("hold_lease")

_USERS_AT_ONCE, _ITEMS_AT_ONCE = 2000, 40_000
"""A sixteenth of these is one script, which keeps all others from the store for some milliseconds."""
_DIGEST = 16
"""Bytes."""
_LEASE_MS = 30_000
"""How long a process that dies keeps the others from going on."""
_LOOK_S = 0.5
"""Between two looks at whether another process is done."""


class Seeds:
    """What data sets have brought to one namespace.

    Args:
        run: runs commands and returns their replies.
        keys: of the namespace.
        search: of its users.
        max_history: entries kept of each history.
        idle_lifetime_s: after which a history without events expires; 0: never.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Command]], list[Any]],
        keys: Keys,
        search: UserSearch,
        *,
        max_history: int,
        idle_lifetime_s: int,
    ) -> None:
        self._run = run
        self._keys = keys
        self._search = search
        self._max_history = max_history
        self._idle_lifetime_s = idle_lifetime_s
        self._version, self._seeded = keys.named("seed"), keys.named("seeded")
        self._lease = keys.named("seeding")

    def version(self) -> str | None:
        """Of the data set that is in for all users; None: none is, or one is on its way."""
        version: str | None = self._one(self._version, "get")
        return version

    def progress(self) -> float | None:
        """The share of the users that is in, of who puts them in; None: nobody does."""
        held: str | None = self._one(self._lease, "get")
        return None if held is None else float(held.split(" ")[1])

    def put_one(self, user_id: str, items: Sequence[str]) -> None:
        """Put the entries of a user who is asked for before all are in: one round trip.

        The user is not found by the search until `put_all` comes there.

        Args:
            user_id: the user.
            items: oldest first; none: the user is not in the data set, and keeps no entries of another.
        """
        noting = [Command(self._seeded, methodcaller("sadd", self._seeded, user_id))] if items else []
        entries = self._command(shard_of(user_id), [(user_id, self._row(user_id, items))])
        if self._run([*noting, entries])[-1] == [0] and noting:
            self._one(self._seeded, "srem", user_id)

    def _put(self, histories: Sequence[History]) -> bytes:
        """Put the entries of some users; without items: the user is not in the data set. The digests of the others."""
        by_shard: defaultdict[int, list[tuple[str, list[str]]]] = defaultdict(list)
        for user, items in histories:
            by_shard[shard_of(user)].append((user, self._row(user, items)))
        noted = [user for user, has_entries in self._not_erased(by_shard) if has_entries]
        if noted:
            # Before the entries: who is interrupted must know whose to remove, and an erasure must find the user.
            self._run([Command(self._seeded, methodcaller("sadd", self._seeded, *noted)), self._search.adding(noted)])
        replies = self._run([self._command(shard, rows) for shard, rows in by_shard.items()])
        erased = {
            user
            for rows, reply in zip(by_shard.values(), replies, strict=True)
            for (user, _), is_put in zip(rows, reply, strict=True)
            if not is_put
        }
        self._forget(sorted(erased.intersection(noted)))
        return b"".join(_short(row[0]) for rows in by_shard.values() for _, row in rows if len(row) > 1)

    def _not_erased(self, by_shard: Mapping[int, Sequence[tuple[str, list[str]]]]) -> Iterator[tuple[str, bool]]:
        """The users who are not erased now, and whether they have entries."""
        keys = [self._keys.of_shard(shard, "erased") for shard in by_shard]
        digests = [[row[0] for _, row in rows] for rows in by_shard.values()]
        replies = self._run(
            [Command(key, methodcaller("smismember", key, each)) for key, each in zip(keys, digests, strict=True)]
        )
        for rows, reply in zip(by_shard.values(), replies, strict=True):
            for (user, row), is_erased in zip(rows, reply, strict=True):
                if not is_erased:
                    yield user, len(row) > 1

    def _row(self, user: str, items: Sequence[str]) -> list[str]:
        return [digest_of(user), *items[-self._max_history :]]

    def _command(self, shard: int, rows: Sequence[tuple[str, list[str]]]) -> Command:
        """Puts the entries of users of a shard."""
        return _SEED(
            [self._keys.of_shard(shard, "erased"), *(self._keys.of_user(user, "h") for user, _ in rows)],
            self._max_history,
            self._idle_lifetime_s,
            json.dumps([row for _, row in rows], ensure_ascii=False),
        )

    def put_all(
        self,
        version: str,
        histories: Iterable[History],
        *,
        num_users: int = 0,
        ends: threading.Event | None = None,
        on_progress: Callable[[float], object] = lambda share: None,
    ) -> bool:
        """Put the entries of all users, and remove those of users who are gone, unless this version is in already.

        Waits while another process does so. Interrupted, it starts over at the next call.

        Args:
            version: names the content of `histories`.
            histories: read only if needed.
            num_users: of `histories`, for those who watch; 0: not known.
            ends: set by another thread, it interrupts.
            on_progress: is told now and then which share of the users is in.

        Returns:
            Whether all was put.

        Raises:
            StoreUnavailableError: the store does not answer, or this process was held up for so long that another may
                have taken over.
        """
        ends = ends or threading.Event()
        holder = uuid.uuid4().hex

        def go_on(share: float) -> None:
            if not self._hold(holder, share, "keep"):
                raise StoreUnavailableError(
                    "store: this process was held up for so long that another may put histories in"
                )
            on_progress(share)

        while True:
            # Both while holding it: else another process may end in between.
            is_holder = self._hold(holder, 0.0, "take")
            if self.version() == version:
                self._end(holder)
                return False
            if is_holder:
                break
            on_progress(self.progress() or 0.0)
            if ends.wait(_LOOK_S):
                return False
        try:
            self._one(self._version, "delete")
            digests = bytearray()
            for chunk in _chunks(histories):
                if ends.is_set():
                    return False
                digests += self._put(chunk)
                go_on(min(1.0, len(digests) / _DIGEST / num_users) if num_users else 0.0)
            if not self._remove_others(bytes(digests), ends, go_on):
                return False
            go_on(1.0)
            schema = self._keys.named("schema")
            self._run(
                [
                    Command(self._version, methodcaller("set", self._version, version)),
                    # Noted at the first use already, but the store may have been emptied since.
                    Command(schema, methodcaller("set", schema, SCHEMA)),
                ]
            )
            return True
        finally:
            with contextlib.suppress(StoreError):
                self._end(holder)

    def _remove_others(self, digests: bytes, ends: threading.Event, go_on: Callable[[float], None]) -> bool:
        """Remove the entries of all users but those with these digests; whether it came to an end."""
        users: npt.NDArray[np.bytes_] = np.unique(np.frombuffer(digests, dtype=f"S{_DIGEST}"))
        cursor = 0
        while not ends.is_set():
            cursor, page = self._one(self._seeded, "sscan", cursor, count=_USERS_AT_ONCE)
            found = np.array([_short(digest_of(user)) for user in page], dtype=f"S{_DIGEST}")
            places = np.searchsorted(users, found, side="right") - np.searchsorted(users, found)
            gone = [user for user, count in zip(page, places.tolist(), strict=True) if count == 0]
            if gone:
                self._put([(user, ()) for user in gone])
                self._forget(gone)
            go_on(1.0)
            if cursor == 0:
                return True
        return False

    def _forget(self, users: Sequence[str]) -> None:
        """They have no entries of a data set."""
        if users:
            self._search.take_out(users)
            self._one(self._seeded, "srem", *users)

    def _hold(self, holder: str, share: float, how: Literal["take", "keep"]) -> bool:
        return bool(self._run([_HOLD([self._lease], holder, _LEASE_MS, f"{share:.6f}", how)])[0])

    def _end(self, holder: str) -> None:
        self._run([_HOLD([self._lease], holder, 0, "", "keep")])

    def _one(self, key: str, name: str, *arguments: Any, **options: Any) -> Any:
        return self._run([Command(key, methodcaller(name, key, *arguments, **options))])[0]


def _short(digest: str) -> bytes:
    """Stands for a user where there are many."""
    return bytes.fromhex(digest[: 2 * _DIGEST])


def _chunks(histories: Iterable[History]) -> Iterator[list[History]]:
    chunk: list[History] = []
    num_items = 0
    for history in histories:
        chunk.append(history)
        num_items += len(history[1])
        if len(chunk) == _USERS_AT_ONCE or num_items >= _ITEMS_AT_ONCE:
            yield chunk
            chunk, num_items = [], 0
    if chunk:
        yield chunk
