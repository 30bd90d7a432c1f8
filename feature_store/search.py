"""The search of users by prefix, which is a key of its own beside their histories.

The two may be in different slots, so nothing changes them together. Who adds a user that is there, and who takes out
one that is gone, may cross: each is written so that no user who has a history stays out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import methodcaller
from typing import Any

from feature_store.connection import Command
from feature_store.keys import Keys

_PAGE = 500


class UserSearch:
    """The user ids of one namespace.

    Args:
        run: runs commands and returns their replies.
        keys: of the namespace.
    """

    def __init__(self, run: Callable[[Sequence[Command]], list[Any]], keys: Keys) -> None:
        self._run = run
        self._keys = keys
        self._key = keys.named("users")

    def adding(self, users: Iterable[str]) -> Command:
        """The command that adds the users; at least one."""
        return Command(self._key, methodcaller("zadd", self._key, dict.fromkeys(users, 0)))

    def page(self, prefix: str, limit: int, offset: int) -> tuple[list[str], int]:
        """See `OnlineStore.search_users`."""
        low, high = b"[" + prefix.encode(), b"(" + prefix.encode() + b"\xff"
        users, total = self._run(
            [
                Command(self._key, methodcaller("zrangebylex", self._key, low, high, start=offset, num=limit)),
                Command(self._key, methodcaller("zlexcount", self._key, low, high)),
            ]
        )
        return users, total

    def take_out(self, users: Sequence[str]) -> None:
        """Remove those of the users who have no history; at least one."""
        self._run([Command(self._key, methodcaller("zrem", self._key, *users))])
        # After the removal: a user whose first event arrives meanwhile is either seen here or added by that event.
        kept = [user for user, has in zip(users, self._have_history(users), strict=True) if has]
        if kept:
            self._run([self.adding(kept)])

    def drop_idle(self) -> int:
        """See `OnlineStore.drop_idle_users`."""
        cursor, dropped = 0, 0
        while True:
            cursor, rows = self._run([Command(self._key, methodcaller("zscan", self._key, cursor, count=_PAGE))])[0]
            users = [user for user, _ in rows]
            idle = [user for user, has in zip(users, self._have_history(users), strict=True) if not has]
            if idle:
                self.take_out(idle)
                dropped += len(idle)
            if cursor == 0:
                return dropped

    def _have_history(self, users: Sequence[str]) -> list[bool]:
        keys = [self._keys.of_user(user, "h") for user in users]
        return [bool(reply) for reply in self._run([Command(key, methodcaller("exists", key)) for key in keys])]
