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

    def take_out(self, users: Sequence[str], is_filling: Callable[[], bool] = lambda: False) -> int:
        """Remove those of the users who have no history, unless the store fills; at least one. How many those are."""
        self._run([Command(self._key, methodcaller("zrem", self._key, *users))])
        # After the removal, and in this order: a user whose first event arrives meanwhile is either seen here or added
        # by that event, and one who is to have a history of the data set either waits for it or has it.
        kept = users if is_filling() else self._with_history(users)
        if kept:
            self._run([self.adding(kept)])
        return len(users) - len(kept)

    def drop_idle(self, is_filling: Callable[[], bool]) -> int:
        """See `OnlineStore.drop_idle_users`. While a store fills, users are found before they have a history."""
        cursor, dropped = 0, 0
        while not is_filling():
            cursor, rows = self._run([Command(self._key, methodcaller("zscan", self._key, cursor, count=_PAGE))])[0]
            users = [user for user, _ in rows]
            if idle := sorted(set(users).difference(self._with_history(users))):
                dropped += self.take_out(idle, is_filling)
            if cursor == 0:
                break
        return dropped

    def _with_history(self, users: Sequence[str]) -> list[str]:
        keys = [self._keys.of_user(user, "h") for user in users]
        replies = self._run([Command(key, methodcaller("exists", key)) for key in keys])
        return [user for user, has in zip(users, replies, strict=True) if has]
