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
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import methodcaller
from typing import Any

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

_USERS_AT_ONCE, _ITEMS_AT_ONCE = 4000, 80_000
"""A sixteenth of these is one script, which keeps all others from the store for some milliseconds."""
_LEASE_MS = 10_000
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

    def put(self, histories: Sequence[History]) -> int:
        """Put the entries of some users; no items: the user is not in the data set, and keeps no entries of another.

        Returns:
            How many users are not erased.
        """
        if not histories:
            return 0
        by_shard: defaultdict[int, list[tuple[str, list[str]]]] = defaultdict(list)
        for user, items in histories:
            by_shard[shard_of(user)].append((user, [digest_of(user), *items[-self._max_history :]]))
        erased_keys = {shard: self._keys.of_shard(shard, "erased") for shard in by_shard}
        are_erased = self._run(
            [
                Command(erased_keys[shard], methodcaller("smismember", erased_keys[shard], [row[0] for _, row in rows]))
                for shard, rows in by_shard.items()
            ]
        )
        noted = [
            user
            for rows, erased in zip(by_shard.values(), are_erased, strict=True)
            for (user, row), is_erased in zip(rows, erased, strict=True)
            if not is_erased and len(row) > 1
        ]
        if noted:
            # Before the entries: who is interrupted must know whose to remove, and an erasure must find the user.
            self._run([Command(self._seeded, methodcaller("sadd", self._seeded, *noted)), self._search.adding(noted)])
        commands = [
            _SEED(
                [erased_keys[shard], *(self._keys.of_user(user, "h") for user, _ in rows)],
                self._max_history,
                self._idle_lifetime_s,
                json.dumps([row for _, row in rows], ensure_ascii=False),
            )
            for shard, rows in by_shard.items()
        ]
        replies = self._run(commands)
        out = [
            user
            for rows, reply in zip(by_shard.values(), replies, strict=True)
            for (user, _), is_put in zip(rows, reply, strict=True)
            if not is_put
        ]
        self._forget(sorted(set(noted).intersection(out)))
        return len(histories) - len(out)

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
            StoreUnavailableError: the store does not answer, or another process took over from one that was held up.
        """
        ends = ends or threading.Event()
        holder = uuid.uuid4().hex

        def go_on(share: float) -> None:
            if not self._hold(holder, share):
                raise StoreUnavailableError("store: another process puts histories in, this one was held up for long")
            on_progress(share)

        while True:
            # Both while holding it: else another process may end in between.
            is_holder = self._hold(holder, 0.0)
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
            digests, done = bytearray(), 0
            for chunk in _chunks(histories):
                if ends.is_set():
                    return False
                self.put(chunk)
                digests += b"".join(_short(user) for user, items in chunk if items)
                done += len(chunk)
                go_on(min(1.0, done / num_users) if num_users else 0.0)
            if not self._remove_others(digests, ends, go_on):
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

    def _remove_others(self, digests: bytearray, ends: threading.Event, go_on: Callable[[float], None]) -> bool:
        """Remove the entries of all users but those with these digests; whether it came to an end."""
        users: npt.NDArray[np.bytes_] = np.unique(np.frombuffer(digests, dtype="S16"))
        if self._one(self._seeded, "scard") == len(users):
            return True  # all of them were noted, so there are no others
        cursor = 0
        while not ends.is_set():
            cursor, page = self._one(self._seeded, "sscan", cursor, count=_USERS_AT_ONCE)
            found = np.array([_short(user) for user in page], dtype="S16")
            places = np.searchsorted(users, found, side="right") - np.searchsorted(users, found)
            gone = [user for user, count in zip(page, places.tolist(), strict=True) if count == 0]
            self.put([(user, ()) for user in gone])
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

    def _hold(self, holder: str, share: float) -> bool:
        return bool(self._run([_HOLD([self._lease], holder, _LEASE_MS, f"{share:.6f}")])[0])

    def _end(self, holder: str) -> None:
        self._run([_HOLD([self._lease], holder, 0, "")])

    def _one(self, key: str, name: str, *arguments: Any, **options: Any) -> Any:
        return self._run([Command(key, methodcaller(name, key, *arguments, **options))])[0]


def _short(user: str) -> bytes:
    """Stands for a user where there are many."""
    return bytes.fromhex(digest_of(user)[:32])


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
