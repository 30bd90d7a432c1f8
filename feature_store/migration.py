"""Brings the keys of an older layout to the present one (see `feature_store.keys`).

Layout 1 had the user id, percent-encoded, as hash tag: NS:{USER}:h, :n, :log, :profile:1 and :e:EVENT. It had no
write-ahead log, and no cluster.
"""

from __future__ import annotations

from operator import methodcaller
from urllib.parse import unquote

from feature_store.connection import Command, Connection, Script
from feature_store.errors import StoreConfigError
from feature_store.keys import SCHEMA, SHARDS, Keys

_MIGRATE = Script("migrate_user")
_MOVE = Script("move_key")
_PARTS = ("h", "n", "log", "profile:1")
_BATCH = 500


def stored_schema(connection: Connection, keys: Keys) -> int | None:
    """The version of the layout that the namespace has; None when it is empty.

    Raises:
        StoreUnavailableError: the store does not answer.
        StoreConfigError: the layout is of a newer version of this program.
    """
    names = [keys.named("users"), keys.named("seed")]
    logs = [keys.of_shard(shard, "wal") for shard in range(SHARDS)]
    schema = connection.one(keys.named("schema"), methodcaller("get", keys.named("schema")))
    if schema is None:
        found = connection.run([Command(key, methodcaller("exists", key)) for key in names + logs])
        # A store that was emptied under a running program has the log, but nobody has noted the layout.
        return SCHEMA if any(found[len(names) :]) else 1 if any(found) else None
    if int(schema) > SCHEMA:
        raise StoreConfigError(
            f"store: namespace {keys.namespace!r} has key layout {schema}, this program knows up to {SCHEMA}; update it"
        )
    return int(schema)


def migrate(connection: Connection, keys: Keys) -> int:
    """Move every user to the present layout; the number of keys moved. Interrupted, call it again.

    No program may write to the namespace in the old layout meanwhile.

    Raises:
        StoreUnavailableError: the store does not answer.
        StoreConfigError: the layout is of a newer version of this program.
    """
    moved = 0
    if stored_schema(connection, keys) == 1:
        prefix = f"{keys.namespace}:{{"
        cursor = 0
        while True:
            start = cursor
            # No literal braces in a glob's way: they mean nothing to it, but [ and * in the namespace would.
            pattern = "".join(f"\\{c}" if c in "*?[]\\" else c for c in prefix) + "*"
            cursor, found = connection.one(
                keys.named("schema"), methodcaller("scan", start, match=pattern, count=_BATCH)
            )
            commands = [command for key in found if (command := _command(keys, prefix, key)) is not None]
            connection.run(commands, durable=True)
            moved += len(commands)
            if cursor == 0:
                break
    connection.one(keys.named("schema"), methodcaller("set", keys.named("schema"), SCHEMA), durable=True)
    return moved


def _command(keys: Keys, prefix: str, key: str) -> Command | None:
    """What moves the key; None for one that moves along with the user's history or log."""
    quoted, _, name = key.removeprefix(prefix).partition("}:")
    user_id = unquote(quoted)
    if name.startswith("e:"):
        target = keys.event(user_id, name.removeprefix("e:"))
        return _MOVE((key, target))
    if name not in _PARTS:
        return None
    old = [f"{prefix}{quoted}}}:{part}" for part in _PARTS]
    new = [keys.of_user(user_id, part) for part in _PARTS]
    wal = keys.beside_user(user_id, "wal")
    return _MIGRATE((*old, *new, wal), user_id)
