"""User histories, idempotent events, profiles and item features in Redis or Valkey. Knows no catalogue or model.

The keys are described in `feature_store.keys`, what a recommendation reads of a user in `feature_store.reads`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby, islice
from operator import methodcaller
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from feature_store.address import Address
from feature_store.connection import Capabilities, Command, Connection, Script
from feature_store.embedded import AttendedServer, EmbeddedServer
from feature_store.errors import StoreConfigError
from feature_store.events import MAX_HISTORY, AppendOutcome, Event, HistoryEntry
from feature_store.items import ItemLog
from feature_store.keys import PROFILE, SCHEMA, SHARDS, Keys, digest_of
from feature_store.migration import migrate, stored_schema
from feature_store.reads import UserState, decode_history, decode_state, history_command, state_commands, text_command
from feature_store.search import UserSearch
from feature_store.seeds import Seeds
from feature_store.slates import ServedSlate

_APPEND = Script("append_events")
_ERASE = Script("erase_user")
_LOG_SLATE = Script("log_slate")
_OUTCOMES: dict[int, AppendOutcome] = {1: "accepted", 0: "duplicate", -1: "conflict"}

_PIPELINE = 500

EVENT_LOG_LENGTH = 100_000
"""Events kept of each user beyond the history; older ones make room."""
UNREAD_LOG_LENGTH = 1_000_000
"""Events kept in the write-ahead log while no consumer has ever read it; with one, all that it has not read."""
EVENT_ID_LIFETIME_S = 30 * 86_400
SESSION_LIFETIME_S = 1800

Features = dict[str, Any]
"""JSON-able values by name."""

_T = TypeVar("_T")


class OnlineStore:
    """Thread-safe client of the online store; make it with `embedded` or `connect`.

    A method raises `StoreUnavailableError` when the store cannot be reached; then nothing was acknowledged,
    and since every write is idempotent, calling it again is safe. A server that this program manages is
    started again first.

    Args:
        connection: to the store.
        namespace: prefix of every key; data sets with different ids must not share one.
        max_history: entries kept of each user's history, the newest; `user_events` has the others.
        event_id_lifetime_s: how long a repeated event is recognised.
        idle_lifetime_s: a user without events for so long is forgotten: history, log and profile expire. None: never.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        namespace: str,
        max_history: int = MAX_HISTORY,
        event_id_lifetime_s: int = EVENT_ID_LIFETIME_S,
        idle_lifetime_s: int | None = None,
    ) -> None:
        if max_history < 1 or event_id_lifetime_s < 1:
            raise ValueError(
                f"max_history and event_id_lifetime_s must be at least 1, got {max_history} and {event_id_lifetime_s}"
            )
        if idle_lifetime_s is not None and idle_lifetime_s < 1:
            raise ValueError(f"idle_lifetime_s must be at least 1 or None, got {idle_lifetime_s}")
        self.namespace = namespace
        self.max_history = max_history
        self.connection = connection
        self.keys = Keys(namespace)
        self.items = ItemLog(lambda commands, durable: self._run(commands, durable=durable), self.keys)
        """Changes of the catalogue."""
        self._search = UserSearch(self._run, self.keys)
        self.seeds = Seeds(
            self._run, self.keys, self._search, max_history=max_history, idle_lifetime_s=idle_lifetime_s or 0
        )
        """What data sets have brought."""
        self._event_id_lifetime_s = event_id_lifetime_s
        self._idle_lifetime_s = idle_lifetime_s or 0
        self._has_schema = False

    @classmethod
    def embedded(
        cls,
        data_dir: Path,
        *,
        namespace: str = "recsys",
        max_history: int = MAX_HISTORY,
        event_id_lifetime_s: int = EVENT_ID_LIFETIME_S,
        idle_lifetime_s: int | None = None,
    ) -> OnlineStore:
        """A Valkey server of our own with its append-only file in `data_dir`; a write returns once on disk.

        Data of an older version of this program is brought to the present layout.

        Raises:
            StoreConfigError: `data_dir` cannot be written, or is of a newer version.
            StoreUnavailableError: the server does not come up.
        """
        server = EmbeddedServer(data_dir)
        server.ensure_running()
        store = cls(
            Connection(Address.parse(f"unix://{quote(str(server.socket_path))}"), server),
            namespace=namespace,
            max_history=max_history,
            event_id_lifetime_s=event_id_lifetime_s,
            idle_lifetime_s=idle_lifetime_s,
        )
        store.migrate()
        return store

    @classmethod
    def attended(
        cls, socket_path: Path, *, namespace: str = "recsys", idle_lifetime_s: int | None = None
    ) -> OnlineStore:
        """The store whose server another process of this program manages; it is waited for, and never ended, here."""
        return cls(
            Connection(Address.parse(f"unix://{quote(str(socket_path))}"), AttendedServer(socket_path)),
            namespace=namespace,
            idle_lifetime_s=idle_lifetime_s,
        )

    @classmethod
    def connect(
        cls,
        url: str,
        *,
        namespace: str = "recsys",
        max_history: int = MAX_HISTORY,
        event_id_lifetime_s: int = EVENT_ID_LIFETIME_S,
        idle_lifetime_s: int | None = None,
    ) -> OnlineStore:
        """A store that runs elsewhere, see `feature_store.address` for the URLs. Connects on first use.

        Raises:
            StoreConfigError: the URL is malformed.
        """
        return cls(
            Connection(Address.parse(url)),
            namespace=namespace,
            max_history=max_history,
            event_id_lifetime_s=event_id_lifetime_s,
            idle_lifetime_s=idle_lifetime_s,
        )

    def close(self) -> None:
        """Close the connections, and end the server when this program manages it."""
        self.connection.close()

    def ping(self) -> None:
        """Return if the store answers.

        Raises:
            StoreUnavailableError: it does not.
        """
        self.connection.ping()

    def capabilities(self) -> Capabilities:
        """What the store is, and what it promises of acknowledged events."""
        return self.connection.capabilities()

    def migrate(self) -> int:
        """Bring the keys of an older version to the present layout; the number of keys moved. Safe to repeat.

        Raises:
            StoreConfigError: the keys are of a newer version.
        """
        moved = migrate(self.connection, self.keys)
        self._has_schema = True
        return moved

    def append_events(self, events: Sequence[Event]) -> list[AppendOutcome]:
        """Add each event to the logs and its user's history, once; the outcomes are in the order of `events`.

        One script a user runs whole or not at all, checks the event ids and orders the history by event time,
        then by arrival. An event that is too old for the history is in the logs all the same. When this returns,
        the events are on disk if the server keeps an append-only file.

        Raises:
            StoreUnavailableError: nothing was acknowledged. Some events may be stored; appending again is
            safe.
        """
        order = sorted(range(len(events)), key=lambda index: events[index].user_id)
        groups = [list(group) for _, group in groupby(order, key=lambda index: events[index].user_id)]
        if not groups:
            return []
        commands = [self._append_command([events[index] for index in group]) for group in groups]
        commands.append(self._search.adding(events[group[0]].user_id for group in groups))
        replies = self._run(commands, durable=True)
        outcomes: dict[int, AppendOutcome] = {}
        for group, reply in zip(groups, replies, strict=False):
            outcomes.update({index: _OUTCOMES[value] for index, value in zip(group, reply, strict=True)})
        return [outcomes[index] for index in range(len(events))]

    def _append_command(self, events: Sequence[Event]) -> Command:
        """Appends events of one user."""
        user = events[0].user_id
        keys = [self.keys.of_user(user, name) for name in ("h", "n", "log", PROFILE)]
        keys += [self.keys.beside_user(user, name) for name in ("wal", "groups")]
        arguments: list[str | int] = [
            user,
            self.max_history,
            self._event_id_lifetime_s,
            EVENT_LOG_LENGTH,
            UNREAD_LOG_LENGTH // SHARDS,
            self._idle_lifetime_s,
        ]
        for event in events:
            keys.append(self.keys.event(user, event.event_id))
            arguments += [
                repr(float(event.timestamp)),
                event.fingerprint,
                event.event_id,
                event.event_type,
                event.item_id,
                event.recommendation_id or "",
            ]
        return _APPEND(keys, *arguments)

    def log_slates(self, slates: Sequence[ServedSlate]) -> int:
        """Put lists that were shown into the event log, for the offline store; how many are in.

        Left out are those of users who are not known, and all where no consumer reads the log. Unlike events they
        are not waited for: the loss of power may take the last of them.

        Raises:
            StoreUnavailableError: the store does not answer; some may be in.
            ValueError: a list is nobody's.
        """
        commands = []
        for slate in slates:
            if slate.user_id is None:
                raise ValueError("only the lists of known users are logged, got one without user_id")
            keys = [self.keys.of_user(slate.user_id, "h")]
            keys += [self.keys.beside_user(slate.user_id, name) for name in ("wal", "groups")]
            commands.append(_LOG_SLATE(keys, slate.to_json()))
        return sum(self._run(commands)) if commands else 0

    def user_state(self, user_id: str, limit: int | None = None) -> UserState:
        """History, profile and session of a user in one round trip; the newest `limit` entries of the history."""
        return decode_state(self._run(state_commands(self.keys, user_id, self._entries(limit))))

    def user_entries(self, user_id: str, limit: int | None = None) -> list[HistoryEntry]:
        """The user's newest entries, at most `limit`, oldest first; empty for an unknown user."""
        if limit is not None and limit < 1:
            return []
        return decode_history(self._run([history_command(self.keys, user_id, self._entries(limit))])[0])

    def user_history(self, user_id: str, limit: int | None = None) -> list[str]:
        """The user's newest item ids, at most `limit`, oldest first; empty for an unknown user."""
        return [entry.item_id for entry in self.user_entries(user_id, limit)]

    def user_events(self, user_id: str, limit: int) -> list[Event]:
        """The user's last `limit` events in order of arrival, also those that the history has no room for.

        At least the last `EVENT_LOG_LENGTH` events are kept; entries of a data set are no events.
        """
        if limit < 1:
            return []
        key = self.keys.of_user(user_id, "log")
        rows = self._one(key, methodcaller("xrevrange", key, count=limit))
        return [
            Event(
                event_id=fields["event_id"],
                user_id=user_id,
                item_id=fields["item_id"],
                event_type=fields["event_type"],
                timestamp=float(fields["timestamp"]),
                recommendation_id=fields.get("recommendation_id"),
            )
            for _, fields in reversed(rows)
        ]

    def put_profile(self, user_id: str, profile: str) -> None:
        """Replace the user's profile, a JSON text; when this returns it is as durable as an event."""
        key = self.keys.of_user(user_id, PROFILE)
        self._one(key, methodcaller("set", key, profile, ex=self._idle_lifetime_s or None), durable=True)

    def profile(self, user_id: str) -> str | None:
        """The JSON text that was put last; None without one."""
        text: str | None = self._run([text_command(self.keys, user_id, PROFILE)])[0]
        return text

    def delete_profile(self, user_id: str) -> bool:
        """Erase the user's profile; whether there was one."""
        key = self.keys.of_user(user_id, PROFILE)
        return bool(self._one(key, methodcaller("delete", key), durable=True))

    def put_session(self, user_id: str, session: str, lifetime_s: int = SESSION_LIFETIME_S) -> None:
        """Replace the state of the user's session, a JSON text, which is forgotten after `lifetime_s`."""
        key = self.keys.of_user(user_id, "session")
        self._one(key, methodcaller("set", key, session, ex=lifetime_s))

    def session(self, user_id: str) -> str | None:
        """The JSON text that was put last; None without one, or when it has expired."""
        text: str | None = self._run([text_command(self.keys, user_id, "session")])[0]
        return text

    def erase_user(self, user_id: str) -> bool:
        """Erase all that the store knows of a user; whether it knew anything. Durable when this returns.

        History, also what a data set brought, profile, session, events and their ids. The consumers of the
        event log erase what they hold when they come to this point of the log; the log itself cannot bring the user
        back, nor can another version of the data set, or this one for a user who is not in yet (and so not known). Only
        new events can. Of the user id a SHA-256 remains. After an error call it again: it goes on where it was.
        """
        parts = [self.keys.of_user(user_id, name) for name in ("h", "n", "log", PROFILE, "session", "gone")]
        parts += [self.keys.beside_user(user_id, name) for name in ("wal", "erased")]
        known = False
        while True:
            erase = _ERASE(parts, digest_of(user_id), self._event_id_lifetime_s)
            reply: int = self._run([erase], durable=True)[0]
            known = known or bool(reply)
            self._finish_erasure(user_id)
            if reply >= 0:
                break
        users, seeded = self.keys.named("users"), self.keys.named("seeded")
        self._run(
            [
                Command(users, methodcaller("zrem", users, user_id)),
                Command(seeded, methodcaller("srem", seeded, user_id)),
            ],
            durable=True,
        )
        if self.user_entries(user_id, 1):  # an event that came meanwhile was not found by the search
            self._run([self._search.adding([user_id])])
        return known

    def _finish_erasure(self, user_id: str) -> None:
        """Delete the event ids and the log entries that an erased log names, and then it."""
        gone, wal = self.keys.of_user(user_id, "gone"), self.keys.beside_user(user_id, "wal")
        while rows := self._one(gone, methodcaller("xrange", gone, count=_PIPELINE)):
            places = [fields["wal"] for _, fields in rows if "wal" in fields]
            ids = [self.keys.event(user_id, fields["event_id"]) for _, fields in rows]
            commands = [Command(gone, methodcaller("delete", *ids))]
            if places:
                commands.append(Command(wal, methodcaller("xdel", wal, *places)))
            # Last: who is interrupted must know what is left.
            done = [place for place, _ in rows]
            commands.append(Command(gone, methodcaller("xdel", gone, *done)))
            self._run(commands, durable=True)
        self._one(gone, methodcaller("delete", gone), durable=True)

    def search_users(self, prefix: str, *, limit: int, offset: int = 0) -> tuple[list[str], int]:
        """One page of the user ids that begin with `prefix`, in the order of their bytes, and their number."""
        return self._search.page(prefix, limit, offset)

    def drop_idle_users(self) -> int:
        """Take the users whose history has expired out of the search; how many there were.

        Without `idle_lifetime_s` there are none. The consumer of the event log calls it now and then.
        """
        return self._search.drop_idle(is_filling=lambda: self.seeds.progress() is not None)

    def seed_histories(self, version: str, histories: Iterable[tuple[str, Sequence[str]]]) -> bool:
        """Put the histories of a data set below the users' events, unless that is done already.

        Entries of an earlier version are replaced, also those of users that are gone; events are kept, and are
        newer than all of these. Erased users get none. Interrupted, it starts over at the next call.

        Args:
            version: names the content of `histories`.
            histories: user ids with their item ids, oldest first; read only if needed.

        Returns:
            Whether anything was written.
        """
        return self.seeds.put_all(version, histories)

    def put_item_features(self, features: Mapping[str, Features]) -> None:
        """Replace the features of the given items."""
        for chunk in _chunks(features.items(), _PIPELINE):
            texts = {self.keys.item(item): json.dumps(values) for item, values in chunk}
            self._run([Command(key, methodcaller("set", key, text)) for key, text in texts.items()])

    def item_features(self, item_ids: Sequence[str]) -> list[Features | None]:
        """The features of each item, None where it has none."""
        keys = [self.keys.item(item) for item in item_ids]
        texts = self._run([Command(key, methodcaller("get", key)) for key in keys])
        return [None if text is None else json.loads(text) for text in texts]

    def _entries(self, limit: int | None) -> int:
        return self.max_history if limit is None else max(1, limit)

    def _one(self, key: str, queue: Any, *, durable: bool = False) -> Any:
        return self._run([Command(key, queue)], durable=durable)[0]

    def _run(self, commands: Sequence[Command], *, durable: bool = False) -> list[Any]:
        if not self._has_schema:
            self.check_layout()
        return self.connection.run(commands, durable=durable)

    def check_layout(self) -> None:
        """Return if the keys are of the present layout, or there are none yet.

        Raises:
            StoreConfigError: they are not; says what to do.
        """
        schema = stored_schema(self.connection, self.keys)
        if schema is not None and schema < SCHEMA:
            raise StoreConfigError(
                f"store: namespace {self.namespace!r} has key layout {schema}, this program needs {SCHEMA}; "
                "stop the programs that use it and run `recsys events migrate`"
            )
        if schema is None:
            key = self.keys.named("schema")
            self.connection.one(key, methodcaller("set", key, SCHEMA, nx=True))
        self._has_schema = True


def _chunks(values: Iterable[_T], size: int) -> Iterator[list[_T]]:
    remaining = iter(values)
    while chunk := list(islice(remaining, size)):
        yield chunk
