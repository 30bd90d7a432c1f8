"""What is read of a user, for the synchronous and the asyncio client alike: commands and what replies mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import methodcaller
from typing import Any

from feature_store.connection import Command
from feature_store.events import HistoryEntry
from feature_store.keys import PROFILE, Keys


@dataclass(frozen=True, kw_only=True, slots=True)
class UserState:
    """All that a recommendation needs to know of a user."""

    history: list[HistoryEntry]
    """Oldest first."""
    profile: str | None
    """JSON text; None without one."""
    session: str | None
    """JSON text; None without one, or when it has expired."""


def history_command(keys: Keys, user_id: str, limit: int) -> Command:
    """Reads the newest `limit` entries of the history; at least 1."""
    key = keys.of_user(user_id, "h")
    return Command(key, methodcaller("zrange", key, -limit, -1, withscores=True))


def text_command(keys: Keys, user_id: str, name: str) -> Command:
    """Reads a text of the user."""
    key = keys.of_user(user_id, name)
    return Command(key, methodcaller("get", key))


def decode_history(reply: Sequence[tuple[str, float]]) -> list[HistoryEntry]:
    """The entries of a history, oldest first."""
    entries = []
    for member, time in reply:
        _, event_type, item_id = member.split(":", 2)
        entries.append(
            HistoryEntry(item_id=item_id, event_type=event_type or None, timestamp=time if time >= 0 else None)
        )
    return entries


def state_commands(keys: Keys, user_id: str, limit: int) -> list[Command]:
    """Read all that `decode_state` needs, in one round trip."""
    return [
        history_command(keys, user_id, limit),
        text_command(keys, user_id, PROFILE),
        text_command(keys, user_id, "session"),
    ]


def decode_state(replies: Sequence[Any]) -> UserState:
    """The replies to `state_commands`."""
    history, profile, session = replies
    return UserState(history=decode_history(history), profile=profile, session=session)
