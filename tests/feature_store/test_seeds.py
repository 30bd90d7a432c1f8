"""Histories of a data set come in behind those who read: whatever happens meanwhile, the store ends as without it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import combinations_with_replacement, count
from pathlib import Path
from typing import Any

import pytest

from feature_store import OnlineStore, StoreUnavailableError, seeds
from feature_store.keys import SHARDS, shard_of

History = tuple[str, list[str]]

USERS = [f"u{number:03d}" for number in range(90)]
V1: list[History] = [(user, [f"i{number}", f"i{number + 1}"]) for number, user in enumerate(USERS)]
V2: list[History] = [(user, ["other", *items]) for user, items in V1[30:]]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seeds, "_USERS_AT_ONCE", 7)
    monkeypatch.setattr(seeds, "_LOOK_S", 0.01)


def content(store: OnlineStore) -> dict[str, object]:
    """What the data set has brought: all histories, who is found, who has entries, and of which version they are."""
    client, keys = store.connection.client, store.keys
    found: dict[str, object] = {
        key.removeprefix(store.namespace): client.zrange(key, 0, -1, withscores=True)
        for shard in range(SHARDS)
        for key in client.scan_iter(keys.of_shard(shard, "h:*"), count=1000)
    }
    return found | {
        "users": client.zrange(keys.named("users"), 0, -1),
        "seeded": client.smembers(keys.named("seeded")),
        "seed": store.seeds.version(),
        "seeding": store.seeds.progress(),
    }


@pytest.fixture
def expected(store_url: str) -> Iterator[Callable[..., dict[str, object]]]:
    """What a store of its own has after all of some versions came in, with nobody in the way."""
    made: list[OnlineStore] = []

    def of(*versions: list[History], erased: tuple[str, ...] = ()) -> dict[str, object]:
        made.append(OnlineStore.connect(store_url, namespace=f"expected-{os.getpid()}-{len(made)}"))
        for user in erased:
            made[-1].erase_user(user)
        for histories in versions:
            made[-1].seed_histories("v1" if histories is V1 else "v2", histories)
        return content(made[-1])

    yield of
    for store in made:
        client = store.connection.client
        client.delete(*client.scan_iter(f"{store.namespace}:*", count=1000))
        store.close()


class Gate:
    """A data set whose users come up to a place, and the others once it is opened."""

    def __init__(self, histories: list[History], place: int) -> None:
        self.histories, self.place = histories, place
        self.is_reached, self.opens = threading.Event(), threading.Event()

    def __iter__(self) -> Iterator[History]:
        yield from self.histories[: self.place]
        self.is_reached.set()
        assert self.opens.wait(60)
        yield from self.histories[self.place :]


def seeded_meanwhile(store: OnlineStore, version: str, histories: list[History], work: Callable[[], object]) -> None:
    """Do some work while two thirds of the users are in."""
    gate = Gate(histories, 2 * len(histories) // 3)
    thread = threading.Thread(target=store.seed_histories, args=(version, gate))
    thread.start()
    try:
        assert gate.is_reached.wait(60)
        work()
    finally:
        gate.opens.set()
        thread.join()


def test_users_who_are_asked_for_have_their_history_and_change_nothing(
    store: OnlineStore, expected: Callable[..., dict[str, object]]
) -> None:
    def ask() -> None:
        for user, items in [V1[0], V1[-1], V1[-2]]:  # the first is in already
            for _ in range(2):
                store.seeds.put_one(user, items)
                assert store.user_history(user) == items
        store.seeds.put_one("nobody", ())
        assert store.user_history("nobody") == []
        assert store.search_users(V1[-1][0], limit=1) == ([], 0)
        assert store.seeds.version() is None

    seeded_meanwhile(store, "v1", V1, ask)
    assert content(store) == expected(V1)


def test_of_another_version_too(store: OnlineStore, expected: Callable[..., dict[str, object]]) -> None:
    store.seed_histories("v1", V1)

    def ask() -> None:
        store.seeds.put_one(*V2[-1])
        assert store.user_history(V2[-1][0]) == V2[-1][1]
        assert store.user_history(V1[0][0]) == V1[0][1]
        store.seeds.put_one(V1[0][0], ())  # is not in this version
        assert store.user_history(V1[0][0]) == []

    seeded_meanwhile(store, "v2", V2, ask)
    assert content(store) == expected(V1, V2)


def test_who_is_erased_meanwhile_does_not_come_back(
    store: OnlineStore, expected: Callable[..., dict[str, object]]
) -> None:
    is_in, is_asked_for, is_not = V1[0], V1[-1], V1[-2]

    def erase() -> None:
        store.seeds.put_one(*is_asked_for)
        assert [store.erase_user(user) for user, _ in (is_in, is_asked_for, is_not)] == [True, True, False]
        for user, items in (is_in, is_asked_for, is_not):
            store.seeds.put_one(user, items)
            assert store.user_history(user) == []

    seeded_meanwhile(store, "v1", V1, erase)
    erased = tuple(user for user, _ in (is_in, is_asked_for, is_not))
    assert content(store) == expected(V1, erased=erased)
    assert store.search_users("", limit=100)[1] == len(V1) - 3


@pytest.mark.parametrize("meanwhile", [False, True])
def test_who_is_erased_hides_nobody_who_is_gone(
    meanwhile: bool, store: OnlineStore, expected: Callable[..., dict[str, object]]
) -> None:
    store.seed_histories("v1", V1)
    gone, erased = USERS[:30], USERS[30:60]  # as many

    def erase() -> None:
        assert all(store.erase_user(user) for user in erased)

    if meanwhile:
        seeded_meanwhile(store, "v2", V2, erase)
    else:
        erase()
        store.seed_histories("v2", V2)
    assert [store.user_history(user) for user in gone + erased] == [[]] * 60
    assert store.search_users("", limit=100) == (USERS[60:], 30)
    assert content(store) == expected(V2, erased=tuple(erased))


def test_erased_between_two_commands(store: OnlineStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the place: an erased user is in no history and is not found."""
    run, calls = store.connection.run, []
    for place in range(1, 7):
        user = f"erased-{place}"

        def erasing(*arguments: object, user: str = user, place: int = place, **options: object) -> object:
            calls.append(place)
            if calls.count(place) == place:
                monkeypatch.setattr(store.connection, "run", run)
                other = OnlineStore(store.connection, namespace=store.namespace)
                other.erase_user(user)
                monkeypatch.setattr(store.connection, "run", erasing)
            return run(*arguments, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(store.connection, "run", erasing)
        store.seed_histories(f"v{place}", [(user, ["i1"]), ("ann", ["i2"])])
        monkeypatch.setattr(store.connection, "run", run)
        assert store.user_history(user) == []
        assert store.search_users("", limit=10) == (["ann"], 1)
        assert store.connection.client.smembers(store.keys.named("seeded")) == {"ann"}
    assert store.user_history("ann") == ["i2"]


def test_an_interrupted_version_gives_way_to_the_one_before(
    store: OnlineStore, expected: Callable[..., dict[str, object]]
) -> None:
    store.seed_histories("v1", V1)

    def interrupted() -> Iterator[History]:
        yield from V2[:40]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.seed_histories("v2", interrupted())
    assert (store.seeds.version(), store.seeds.progress()) == (None, None)
    assert store.seed_histories("v1", V1)
    assert content(store) == expected(V1)


_KILLED = """
import itertools, os, signal, sys
from feature_store import OnlineStore, seeds
seeds._USERS_AT_ONCE = 7
seeds._LEASE_MS = 300
def users():
    for number in itertools.count():
        if number == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)
        yield f"u{number:03d}", ["killed", "here"]
OnlineStore.connect(sys.argv[1], namespace=sys.argv[2]).seed_histories("v1", users())
"""


def test_a_process_that_is_killed_has_another_start_over(
    store: OnlineStore, store_url: str, expected: Callable[..., dict[str, object]]
) -> None:
    for number in (1, 30, 60):
        arguments = [sys.executable, "-c", _KILLED, store_url, store.namespace, str(number)]
        root = str(Path(seeds.__file__).parents[1])
        done = subprocess.run(arguments, check=False, env={**os.environ, "PYTHONPATH": root})
        assert done.returncode == -signal.SIGKILL
    store.seeds.put_one(*V1[-1])
    assert store.seed_histories("v1", V1)
    assert content(store) == expected(V1)


def test_two_who_want_the_same_do_it_once(
    store: OnlineStore, make_store: Callable[..., OnlineStore], expected: Callable[..., dict[str, object]]
) -> None:
    other, shares = make_store(), []
    outcomes: list[bool] = []
    has_looked = threading.Event()

    def look(share: float) -> None:
        shares.append(share)
        has_looked.set()

    def follow() -> None:
        outcomes.append(other.seeds.put_all("v1", _unread(), on_progress=look))

    follower = threading.Thread(target=follow)

    def start_it() -> None:
        follower.start()
        assert has_looked.wait(60)

    seeded_meanwhile(store, "v1", V1, start_it)
    follower.join()
    assert outcomes == [False]
    assert all(0 <= share <= 1 for share in shares)
    assert content(store) == expected(V1)


def _unread() -> Iterator[History]:
    raise AssertionError("the other one has done it")
    yield


def test_progress_is_told(store: OnlineStore) -> None:
    shares: list[float] = []
    assert store.seeds.put_all("v1", V1, num_users=len(V1), on_progress=shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert len(shares) > 5


@pytest.mark.parametrize("has_another", [True, False])
def test_one_that_was_held_up_starts_over(
    has_another: bool, store: OnlineStore, expected: Callable[..., dict[str, object]]
) -> None:
    def held_up() -> Iterator[History]:
        yield from V2[:30]
        store.connection.client.delete(store.keys.named("seeding"))  # as time does
        if has_another:
            store.seed_histories("v1", V1)
        yield from V2[30:]

    with pytest.raises(StoreUnavailableError, match="held up"):
        store.seed_histories("v2", held_up())
    assert store.seed_histories("v2", V2)
    assert content(store) == (expected(V1, V2) if has_another else expected(V2))


def test_it_stops_when_it_is_told_to(store: OnlineStore, expected: Callable[..., dict[str, object]]) -> None:
    ends = threading.Event()

    def users() -> Iterator[History]:
        yield from V1[:30]
        ends.set()
        yield from V1[30:]

    assert not store.seeds.put_all("v1", users(), ends=ends)
    assert store.seeds.version() is None
    assert store.seed_histories("v1", V1)
    assert content(store) == expected(V1)


def test_users_who_are_found_before_they_have_a_history_are_not_idle(store: OnlineStore) -> None:
    def drop() -> None:
        store.connection.client.zadd(store.keys.named("users"), {"soon": 0})
        assert store.drop_idle_users() == 0
        assert store.search_users("soon", limit=1) == (["soon"], 1)

    seeded_meanwhile(store, "v1", V1, drop)
    assert store.drop_idle_users() == 1


def test_who_is_taken_for_idle_before_the_history_comes_is_found(
    store: OnlineStore, make_store: Callable[..., OnlineStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever commands of the other the user is noted between, and whichever the history comes between."""
    other = make_store()
    assert other.drop_idle_users() == 0
    put, run = store.seeds._command, other.connection.run
    users: list[str] = []

    def cross(noted_at: int, put_at: int) -> None:
        users.insert(0, f"u{noted_at}{put_at}")
        is_noted, comes, places = threading.Event(), threading.Event(), count(1)
        histories = [(user, ["i1"]) for user in users]
        thread = threading.Thread(target=store.seed_histories, args=(users[0], histories))

        def late(*arguments: Any) -> Any:
            is_noted.set()
            assert comes.wait(60)
            return put(*arguments)

        def move() -> int:
            place = next(places)
            if place == noted_at:
                thread.start()
                assert is_noted.wait(60)
            if place == put_at:
                comes.set()
                thread.join()
            return place

        def between(*arguments: Any, **options: Any) -> Any:
            move()
            return run(*arguments, **options)

        monkeypatch.setattr(store.seeds, "_command", late)
        monkeypatch.setattr(other.connection, "run", between)
        other.connection.client.zadd(other.keys.named("users"), {"idle": 0, users[0]: 0})
        other.drop_idle_users()
        while move() < put_at:
            pass

    for noted_at, put_at in combinations_with_replacement(range(1, 9), 2):
        cross(noted_at, put_at)
        assert store.search_users("u", limit=100) == (sorted(users), len(users))


def test_long_histories_of_any_text_come_in_whole(make_store: Callable[..., OnlineStore]) -> None:
    store = make_store(max_history=5000)
    items = [f'é"\\\0{number}\n' for number in range(4100)]
    users = ["a:b", "{c}", "\0", '"', "😀"]
    store.seed_histories("v1", [(user, items) for user in users])
    assert all(store.user_history(user) == items for user in users)
    assert len({shard_of(user) for user in users}) > 1
