"""User histories, idempotent events and item features in Redis or Valkey. Knows no catalogue or model.

Keys, all under a namespace (a `{user}` is percent-encoded; the braces keep a user's keys on one cluster
node):

    NS:{user}:h         sorted set, score = event time, member = arrival:type:item; the newest `max_history`
    NS:{user}:log       stream of every accepted event in order of arrival; the last `EVENT_LOG_LENGTH` or a few more
    NS:{user}:n         number of events that ever arrived
    NS:{user}:e:EVENT   fingerprint of an accepted event; expires after `event_id_lifetime_s`
    NS:{user}:profile:1 profile of the user as one JSON text; the number is the format of the key's value
    NS:users            sorted set of user ids, all with score 0, for the search by prefix
    NS:item:ITEM        features of an item as one JSON text, read at once
    NS:seed             version of the data set whose histories are in
    NS:seeded           set of the users that have entries of a data set
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from importlib.resources import files
from itertools import groupby, islice
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from feature_store.embedded import EmbeddedServer
from feature_store.errors import StoreConfigError, StoreUnavailableError
from feature_store.events import AppendOutcome, Event, HistoryEntry

_APPEND = files("feature_store").joinpath("lua/append_events.lua").read_text()
_SEED = files("feature_store").joinpath("lua/seed_history.lua").read_text()
_OUTCOMES: dict[int, AppendOutcome] = {1: "accepted", 0: "duplicate", -1: "conflict"}

_REPLY_TIMEOUT_S = 10.0
_FSYNC_TIMEOUT_MS = 5000
_PIPELINE = 500

MAX_HISTORY = 500
EVENT_LOG_LENGTH = 100_000
"""Events kept of each user beyond the history, so that nothing acknowledged is lost; older ones make room."""
EVENT_ID_LIFETIME_S = 30 * 86_400

_PROFILE = "profile:1"

Features = dict[str, Any]
"""JSON-able values by name."""

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class OnlineStore:
    """Thread-safe client of the online store; make it with `embedded` or `connect`.

    A method raises `StoreUnavailableError` when the store cannot be reached; then nothing was acknowledged,
    and since every write is idempotent, calling it again is safe. A server that this program manages is
    started again first.

    Args:
        client: connected lazily, decoding replies to text.
        namespace: prefix of every key; data sets with different ids must not share one.
        server: the managed server, None for one that is managed elsewhere.
        max_history: entries kept of each user's history, the newest; `user_events` has the others.
        event_id_lifetime_s: how long a repeated event is recognised.
    """

    def __init__(
        self,
        client: redis.Redis,
        *,
        namespace: str,
        server: EmbeddedServer | None = None,
        max_history: int = MAX_HISTORY,
        event_id_lifetime_s: int = EVENT_ID_LIFETIME_S,
    ) -> None:
        if max_history < 1 or event_id_lifetime_s < 1:
            raise ValueError(
                f"max_history and event_id_lifetime_s must be at least 1, got {max_history} and {event_id_lifetime_s}"
            )
        self.namespace = namespace
        self.max_history = max_history
        self._client: Any = client  # the stubs give every reply as a union of all protocols
        self._server = server
        self._event_id_lifetime_s = event_id_lifetime_s
        self._can_wait_for_disk: bool | None = None
        self._seed_mutex = threading.Lock()

    @classmethod
    def embedded(
        cls,
        data_dir: Path,
        *,
        namespace: str = "recsys",
        max_history: int = MAX_HISTORY,
        event_id_lifetime_s: int = EVENT_ID_LIFETIME_S,
    ) -> OnlineStore:
        """A Valkey server of our own with its append-only file in `data_dir`; a write returns once on disk.

        Raises:
            StoreConfigError: `data_dir` cannot be written.
            StoreUnavailableError: the server does not come up.
        """
        server = EmbeddedServer(data_dir)
        server.ensure_running()
        return cls(
            _client(f"unix://{quote(str(server.socket_path))}"),
            namespace=namespace,
            server=server,
            max_history=max_history,
            event_id_lifetime_s=event_id_lifetime_s,
        )

    @classmethod
    def connect(
        cls,
        url: str,
        *,
        namespace: str = "recsys",
        max_history: int = MAX_HISTORY,
        event_id_lifetime_s: int = EVENT_ID_LIFETIME_S,
    ) -> OnlineStore:
        """A server that runs elsewhere: `redis://`, `rediss://` or `unix://`. Connects on first use.

        Raises:
            StoreConfigError: the URL is malformed.
        """
        return cls(
            _client(url),
            namespace=namespace,
            max_history=max_history,
            event_id_lifetime_s=event_id_lifetime_s,
        )

    def close(self) -> None:
        """Close the connections, and end the server when this program manages it."""
        self._client.close()
        if self._server is not None:
            self._server.stop()

    def ping(self) -> None:
        """Return if the store answers.

        Raises:
            StoreUnavailableError: it does not.
        """
        self._call(self._client.ping)

    def append_events(self, events: Sequence[Event]) -> list[AppendOutcome]:
        """Add each event to its user's log and history, once; the outcomes are in the order of `events`.

        One script a user runs whole or not at all, checks the event ids and orders the history by event time,
        then by arrival. An event that is too old for the history is in the log all the same. When this returns,
        the events are on disk if the server keeps an append-only file.

        Raises:
            StoreUnavailableError: nothing was acknowledged. Some events may be stored; appending again is
            safe.
        """
        order = sorted(range(len(events)), key=lambda index: events[index].user_id)
        groups = [list(group) for _, group in groupby(order, key=lambda index: events[index].user_id)]
        if not groups:
            return []

        def write() -> Any:
            wait_for_disk = self._waits_for_disk()
            pipeline = self._client.pipeline(transaction=False)
            for group in groups:
                user = events[group[0]].user_id
                keys = [self._user_key(user, name) for name in ("h", "n", "log")]
                arguments: list[str | int] = [self.max_history, self._event_id_lifetime_s, EVENT_LOG_LENGTH]
                for index in group:
                    event = events[index]
                    keys.append(self._user_key(user, f"e:{event.event_id}"))
                    arguments += [
                        repr(float(event.timestamp)),
                        event.fingerprint,
                        event.event_id,
                        event.event_type,
                        event.item_id,
                    ]
                pipeline.eval(_APPEND, len(keys), *keys, *arguments)
            pipeline.zadd(self._key("users"), {events[group[0]].user_id: 0 for group in groups})
            return self._acknowledged(pipeline, wait_for_disk)

        replies = self._call(write)
        outcomes: dict[int, AppendOutcome] = {}
        for group, reply in zip(groups, replies, strict=False):
            outcomes.update({index: _OUTCOMES[value] for index, value in zip(group, reply, strict=True)})
        return [outcomes[index] for index in range(len(events))]

    def user_entries(self, user_id: str, limit: int | None = None) -> list[HistoryEntry]:
        """The user's newest entries, at most `limit`, oldest first; empty for an unknown user."""
        newest = self.max_history if limit is None else limit
        if newest < 1:
            return []
        rows = self._call(lambda: self._client.zrange(self._user_key(user_id, "h"), -newest, -1, withscores=True))
        entries = []
        for member, time in rows:
            _, event_type, item_id = member.split(":", 2)
            entries.append(
                HistoryEntry(item_id=item_id, event_type=event_type or None, timestamp=time if time >= 0 else None)
            )
        return entries

    def user_history(self, user_id: str, limit: int | None = None) -> list[str]:
        """The user's newest item ids, at most `limit`, oldest first; empty for an unknown user."""
        return [entry.item_id for entry in self.user_entries(user_id, limit)]

    def user_events(self, user_id: str, limit: int) -> list[Event]:
        """The user's last `limit` events in order of arrival, also those that the history has no room for.

        At least the last `EVENT_LOG_LENGTH` events are kept; entries of a data set are no events.
        """
        if limit < 1:
            return []
        rows = self._call(lambda: self._client.xrevrange(self._user_key(user_id, "log"), count=limit))
        return [
            Event(
                event_id=fields["event_id"],
                user_id=user_id,
                item_id=fields["item_id"],
                event_type=fields["event_type"],
                timestamp=float(fields["timestamp"]),
            )
            for _, fields in reversed(rows)
        ]

    def put_profile(self, user_id: str, profile: str) -> None:
        """Replace the user's profile, a JSON text; when this returns it is as durable as an event."""

        def write() -> Any:
            wait_for_disk = self._waits_for_disk()
            pipeline = self._client.pipeline(transaction=False)
            pipeline.set(self._user_key(user_id, _PROFILE), profile)
            return self._acknowledged(pipeline, wait_for_disk)

        self._call(write)

    def profile(self, user_id: str) -> str | None:
        """The JSON text that was put last; None without one."""
        text: str | None = self._call(lambda: self._client.get(self._user_key(user_id, _PROFILE)))
        return text

    def delete_profile(self, user_id: str) -> bool:
        """Erase the user's profile; whether there was one."""

        def write() -> Any:
            wait_for_disk = self._waits_for_disk()
            pipeline = self._client.pipeline(transaction=False)
            pipeline.delete(self._user_key(user_id, _PROFILE))
            return self._acknowledged(pipeline, wait_for_disk)

        return bool(self._call(write)[0])

    def search_users(self, prefix: str, *, limit: int, offset: int = 0) -> tuple[list[str], int]:
        """One page of the user ids that begin with `prefix`, in the order of their bytes, and their number."""
        low, high = b"[" + prefix.encode(), b"(" + prefix.encode() + b"\xff"

        def read() -> Any:
            pipeline = self._client.pipeline(transaction=False)
            pipeline.zrangebylex(self._key("users"), low, high, start=offset, num=limit)
            pipeline.zlexcount(self._key("users"), low, high)
            return pipeline.execute()

        users, total = self._call(read)
        return users, total

    def seed_histories(self, version: str, histories: Iterable[tuple[str, Sequence[str]]]) -> bool:
        """Put the histories of a data set below the users' events, unless that is done already.

        Entries of an earlier version are replaced, also those of users that are gone; events are kept, and are
        newer than all of these. Interrupted, it starts over at the next call.

        Args:
            version: names the content of `histories`.
            histories: user ids with their item ids, oldest first; read only if needed.

        Returns:
            Whether anything was written.
        """
        with self._seed_mutex:
            if self._call(lambda: self._client.get(self._key("seed"))) == version:
                return False
            users: set[str] = set()
            for chunk in _chunks(histories, _PIPELINE):

                def write(chunk: Sequence[tuple[str, Sequence[str]]] = chunk) -> Any:
                    pipeline = self._client.pipeline(transaction=False)
                    # First: who is interrupted must know whose entries to remove later.
                    pipeline.sadd(self._key("seeded"), *(user for user, _ in chunk))
                    for user, items in chunk:
                        pipeline.eval(
                            _SEED, 1, self._user_key(user, "h"), self.max_history, *items[-self.max_history :]
                        )
                    pipeline.zadd(self._key("users"), {user: 0 for user, _ in chunk})
                    return pipeline.execute()

                self._call(write)
                users.update(user for user, _ in chunk)
            gone = self._call(lambda: self._client.smembers(self._key("seeded"))) - users
            for group in _chunks(sorted(gone), _PIPELINE):
                self._call(partial(self._unseed, group))
            self._call(lambda: self._client.set(self._key("seed"), version))
            return True

    def _unseed(self, users: Sequence[str]) -> None:
        """Remove the data set's entries of these users, and those who have no events from the search."""
        pipeline = self._client.pipeline(transaction=False)
        for user in users:
            pipeline.eval(_SEED, 1, self._user_key(user, "h"), self.max_history)
        pipeline.zrem(self._key("users"), *users)
        # After the removal: a user whose first event arrives meanwhile is either seen here or added by that event.
        for user in users:
            pipeline.exists(self._user_key(user, "h"))
        have_events = pipeline.execute()[-len(users) :]
        pipeline = self._client.pipeline(transaction=False)
        for user, has_events in zip(users, have_events, strict=True):
            if has_events:
                pipeline.zadd(self._key("users"), {user: 0})
        pipeline.srem(self._key("seeded"), *users)
        pipeline.execute()

    def put_item_features(self, features: Mapping[str, Features]) -> None:
        """Replace the features of the given items."""
        for chunk in _chunks(features.items(), _PIPELINE):

            def write(chunk: Sequence[tuple[str, Features]] = chunk) -> Any:
                pipeline = self._client.pipeline(transaction=False)
                for item, values in chunk:
                    pipeline.set(self._item_key(item), json.dumps(values))
                return pipeline.execute()

            self._call(write)

    def item_features(self, item_ids: Sequence[str]) -> list[Features | None]:
        """The features of each item, None where it has none."""

        def read() -> Any:
            pipeline = self._client.pipeline(transaction=False)
            for item in item_ids:
                pipeline.get(self._item_key(item))
            return pipeline.execute()

        return [None if text is None else json.loads(text) for text in self._call(read)]

    def _call(self, operation: Callable[[], _T]) -> _T:
        """Run `operation`; when the managed server is down, start it and run once more."""
        try:
            try:
                return operation()
            except redis.ConnectionError:
                if self._server is None:
                    raise
                self._server.ensure_running()
                # The pool itself replaces connections that died while idle. Closing them here would race with other
                # threads that have recovered already and read from theirs.
                return operation()
        except redis.RedisError as error:
            # The exception's text may hold the address, but never the password.
            raise StoreUnavailableError(f"store: {type(error).__name__}: {error}") from error

    @staticmethod
    def _acknowledged(pipeline: Any, wait_for_disk: bool) -> Any:
        """The replies to the commands of `pipeline`, and one more when they were waited for on disk."""
        if wait_for_disk:
            pipeline.execute_command("WAITAOF", 1, 0, _FSYNC_TIMEOUT_MS)
        replies = pipeline.execute()
        if wait_for_disk and replies[-1][0] < 1:
            raise StoreUnavailableError(
                "store: the server did not write to disk in time; set its appendfsync to 'always' or 'everysec'"
            )
        return replies

    def _waits_for_disk(self) -> bool:
        if self._can_wait_for_disk is None:
            facts: Mapping[str, Any] = self._client.info()
            has_file = bool(facts.get("aof_enabled"))
            version = tuple(int(part) for part in str(facts.get("redis_version", "0")).split(".")[:2])
            self._can_wait_for_disk = has_file and version >= (7, 2)
            if not has_file:
                _log.warning(
                    "the store keeps no append-only file: an acknowledged event survives a crash of this program, "
                    "but not of the store; set its appendonly to 'yes'"
                )
            elif not self._can_wait_for_disk and self._fsync_policy() != "always":
                _log.warning(
                    "the store cannot confirm writes to disk (it has no WAITAOF): the last second of acknowledged "
                    "events may be lost with the machine; set its appendfsync to 'always', or use Redis 7.2 or Valkey"
                )
        return self._can_wait_for_disk

    def _fsync_policy(self) -> str | None:
        """None when the server does not tell."""
        try:
            policy: str | None = self._client.config_get("appendfsync").get("appendfsync")
        except redis.ResponseError:  # managed servers forbid CONFIG
            return None
        return policy

    def _key(self, name: str) -> str:
        return f"{self.namespace}:{name}"

    def _user_key(self, user_id: str, name: str) -> str:
        return f"{self.namespace}:{{{quote(user_id, safe='')}}}:{name}"

    def _item_key(self, item_id: str) -> str:
        return f"{self.namespace}:item:{item_id}"


def _client(url: str) -> redis.Redis:
    try:
        pool = redis.BlockingConnectionPool.from_url(
            url,
            decode_responses=True,
            max_connections=32,
            timeout=_REPLY_TIMEOUT_S,
            socket_timeout=_REPLY_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),  # `_call` decides when to try again
        )
    except ValueError as error:
        raise StoreConfigError(
            f"store: not a usable URL ({error}); write redis://[user:password@]host:port/database"
        ) from error
    return redis.Redis.from_pool(pool)


def _chunks(values: Iterable[_T], size: int) -> Iterator[list[_T]]:
    remaining = iter(values)
    while chunk := list(islice(remaining, size)):
        yield chunk
