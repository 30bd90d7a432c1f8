"""The claim: a store takes the histories of a data set faster than by a script for each user, and users are read
meanwhile, each with the whole history, whoever is in already.

An embedded store (an append-only file that is synced with every write) gets the histories of a bundle's file: by one
script a user in pipelines of 500, as services did it before, and by one script for the users of a shard. Both in turns,
each time into an empty store. Then once more behind readers: users drawn at random, at a constant rate.

    recsys bench seeding [--users 200000] [--items 20] [--rounds 3] [--json]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from feature_store import OnlineStore
from feature_store.keys import digest_of
from recsys.data import Interactions
from recsys.data.histories import Histories, write_histories
from recsys.data.interactions import SCHEMA
from serving.seeding import Seeding

_CATALOGUE = 1_000_000
"""Items."""
_READS_A_SECOND = 50
_BEFORE = """
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '(0')
if redis.call('SISMEMBER', KEYS[2], ARGV[1]) == 1 then
  return 0
end
for i = 4, #ARGV do
  redis.call('ZADD', KEYS[1], i - #ARGV - 1, string.format('%015d', i - 2) .. '::' .. ARGV[i])
end
redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -ARGV[2] - 1)
if ARGV[3] ~= '0' then
  redis.call('EXPIRE', KEYS[1], ARGV[3])
end
return 1
"""


def main(arguments: list[str]) -> dict[str, Any]:
    """Users a second by the clock, the median of the rounds, and their ratio in each; microseconds of CPU for a user;
    milliseconds of a read of a user's history, while the store fills and when it is full."""
    parser = argparse.ArgumentParser(prog="recsys bench seeding", description=__doc__)
    parser.add_argument("--users", type=int, default=200_000)
    parser.add_argument("--items", type=int, default=20, help="of each user")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--smoke", action="store_true", help="a look at whether it works: nothing is written")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="recsys-seeding-") as home:
        histories = _histories(Path(home) / "histories.parquet", options.users, options.items)
        ways: dict[str, Callable[[OnlineStore], object]] = {
            "a_script_a_user": lambda store: _one_by_one(store, histories),
            "a_script_a_shard": lambda store: store.seed_histories("1", histories.items()),
        }
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
        for _ in range(options.rounds):
            for name, way in ways.items():
                rounds[name].append(_timed(way, len(histories)))
        found: dict[str, Any] = {
            name: {
                "users_per_second": round(float(np.median([each["users_per_second"] for each in of_way]))),
                "rounds": of_way,
            }
            for name, of_way in rounds.items()
        }
        pairs = zip(*([each["users_per_second"] for each in of_way] for of_way in rounds.values()), strict=True)
        return {
            "users": options.users,
            "items_a_user": options.items,
            "times_as_fast": [round(now / before, 2) for before, now in pairs],
            **found,
            "readers": _behind_readers(histories),
            **({"smoke": True} if options.smoke else {}),
        }


def _histories(path: Path, num_users: int, num_items: int) -> Histories:
    random = np.random.default_rng(0)
    columns = {
        "user": np.repeat(np.arange(num_users), num_items),
        "item": random.integers(0, _CATALOGUE, num_users * num_items),
        "position": np.tile(np.arange(num_items), num_users),
    }
    others = [pl.lit(None).cast(SCHEMA[name]).alias(name) for name in ("rating", "timestamp")]
    frame = pl.DataFrame(columns).with_columns(pl.lit("view").alias("event_type"), *others).select(*SCHEMA)
    log = Interactions(frame=frame, user_ids=[f"user-{user:08d}" for user in range(num_users)], num_items=_CATALOGUE)
    write_histories(path, pl.Series([f"item-{item:07d}" for item in range(_CATALOGUE)]), log)
    return Histories(path)


def _timed(way: Callable[[OnlineStore], object], num_users: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="recsys-seeding-") as directory:
        store = OnlineStore.embedded(Path(directory) / "store")
        try:
            client = store.connection.client
            began, own_began, server_began = time.perf_counter(), time.process_time(), _server_s(client)
            way(store)
            seconds = time.perf_counter() - began
            own_s, server_s = time.process_time() - own_began, _server_s(client) - server_began
            assert store.search_users("", limit=1)[1] == num_users
        finally:
            store.close()
    return {
        "users_per_second": round(num_users / seconds),
        "own_cpu_us": round(1e6 * own_s / num_users, 1),
        "server_cpu_us": round(1e6 * server_s / num_users, 1),
    }


def _server_s(client: Any) -> float:
    used = client.info("cpu")
    return float(used["used_cpu_user"] + used["used_cpu_sys"])


def _one_by_one(store: OnlineStore, histories: Histories) -> None:
    """As it was before."""
    client, keys = store.connection.client, store.keys
    script = client.script_load(_BEFORE)
    remaining = histories.items()
    while chunk := list(islice(remaining, 500)):
        names = [user for user, _ in chunk]
        client.sadd(keys.named("seeded"), *names)
        pipeline = client.pipeline(transaction=False)
        for user, items in chunk:
            touched = (keys.of_user(user, "h"), keys.beside_user(user, "erased"))
            pipeline.evalsha(script, 2, *touched, digest_of(user), store.max_history, 0, *items)
        pipeline.execute()
        client.zadd(keys.named("users"), dict.fromkeys(names, 0))


def _behind_readers(histories: Histories) -> dict[str, Any]:
    """Milliseconds of reads."""
    users = np.array([user for user, _ in histories.items()])
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="recsys-seeding-") as directory:
        store = OnlineStore.embedded(Path(directory) / "store")
        seeding = Seeding(store, "1", histories)
        try:
            began = time.perf_counter()
            seeding.start()
            filling: list[float] = []
            while not seeding.is_done:
                filling.append(_read(store, seeding, histories, str(random.choice(users))))
            seconds = time.perf_counter() - began
            full = [_read(store, seeding, histories, str(random.choice(users))) for _ in range(len(filling))]
        finally:
            seeding.stop()
            store.close()
    return {
        "reads_a_second": _READS_A_SECOND,
        "users_per_second": round(len(users) / seconds),
        "first_ms": filling[0],
        "filling_ms": _quantiles(filling),
        "full_ms": _quantiles(full),
    }


def _read(store: OnlineStore, seeding: Seeding, histories: Histories, user: str) -> float:
    began = time.perf_counter()
    seeding.put(user)
    found = store.user_history(user)
    milliseconds = 1000 * (time.perf_counter() - began)
    assert found == histories.get(user), "another history than that of the file"
    time.sleep(1 / _READS_A_SECOND)
    return round(milliseconds, 2)


def _quantiles(milliseconds: list[float]) -> dict[str, float]:
    return {f"p{share}": round(float(np.percentile(milliseconds, share)), 2) for share in (50, 99)}
