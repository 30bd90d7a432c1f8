"""One contract for the stores of every kind: what is promised on one server holds on all of them."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from store_servers import VALKEY, Server, Store

from feature_store import Event, OnlineStore, StoredItem, StoreUnavailableError, UserState
from feature_store.aio import AsyncOnlineStore
from feature_store.consumer import OfflineConsumer
from feature_store.keys import SHARDS, shard_of
from feature_store.log import EventLog, Lag
from feature_store.offline import OfflineStore
from feature_store.offline_writer import OfflineWriter

USERS = [f"user {number}" for number in range(60)]


@pytest.fixture
def store(deployment: Store) -> Iterator[OnlineStore]:
    store = OnlineStore.connect(deployment.url, namespace=f"contract-{uuid.uuid4().hex}", max_history=10)
    yield store
    store.close()
    for server in deployment.servers:
        with server.client() as client:
            client.flushall()


def view(event_id: str, user: str = "ann", item: str = "item", at: float = 1.0) -> Event:
    return Event(event_id=event_id, user_id=user, item_id=item, event_type="view", timestamp=at)


def test_the_users_of_the_tests_are_in_every_shard() -> None:
    assert {shard_of(user) for user in USERS} == set(range(SHARDS))


def test_events_of_many_users_count_once_and_are_in_time_order(store: OnlineStore) -> None:
    events = [view(f"{n}", user, f"i{n}", at=10 - n) for user in USERS for n in range(3)]
    assert store.append_events(events) == ["accepted"] * len(events)
    assert store.append_events(events[::-1]) == ["duplicate"] * len(events)
    assert store.append_events([view("1", USERS[0], "other"), view("late", USERS[1], "early", at=1)]) == [
        "conflict",
        "accepted",
    ]
    assert store.user_history(USERS[0]) == ["i2", "i1", "i0"]
    assert store.user_history(USERS[1]) == ["early", "i2", "i1", "i0"]
    assert [event.event_id for event in store.user_events(USERS[1], 2)] == ["2", "late"]
    assert store.search_users("user", limit=3, offset=1) == (sorted(USERS)[1:4], len(USERS))


def test_the_same_events_from_many_threads_count_once(store: OnlineStore) -> None:
    events = [view("1", user) for user in USERS]
    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(lambda _: store.append_events(events), range(4)))
    assert [sorted(each) for each in zip(*outcomes, strict=True)] == [["accepted"] + ["duplicate"] * 3] * len(USERS)
    assert all(store.user_history(user) == ["item"] for user in USERS)


def test_everything_else_that_is_kept(store: OnlineStore) -> None:
    assert store.seed_histories("v1", [(user, ["a", "b"]) for user in USERS])
    assert store.seed_histories("v2", [(user, ["c"]) for user in USERS[:30]])
    assert store.user_history(USERS[0]) == ["c"]
    assert store.user_history(USERS[40]) == []
    assert store.search_users("", limit=100)[1] == 30
    store.seeds.put_one(USERS[0], ["d", "e"])
    assert store.user_history(USERS[0]) == ["d", "e"]
    store.put_item_features({f"i{n}": {"price": n} for n in range(40)})
    assert store.item_features(["i3", "none", "i39"]) == [{"price": 3}, None, {"price": 39}]
    store.put_profile("ann", '{"a": 1}')
    store.put_session("ann", '{"b": 2}')
    store.append_events([view("1")])
    state = store.user_state("ann")
    assert ([entry.item_id for entry in state.history], state.profile, state.session) == (
        ["item"],
        '{"a": 1}',
        '{"b": 2}',
    )
    assert store.drop_idle_users() == 0


def test_changes_of_the_catalogue_are_read_by_whoever_has_not_seen_them(store: OnlineStore) -> None:
    items = store.items
    assert (items.version(), items.since(0)) == (0, (0, []))
    first = items.put({"a": '{"title": 1}', "b": "{}"})
    assert (first.version, first.changed) == (1, (True, True))
    again = items.put({"b": "{}", "c": "{}"})
    assert (again.version, again.changed) == (2, (False, True))
    assert items.remove(["a", "of the bundle"]).version == 3
    assert items.remove(["a"]).changed == (False,)
    version, changed = items.since(2)
    assert version == 3
    assert changed == [
        StoredItem(item_id="a", text='{"title": 1}', number=0, is_removed=True),
        StoredItem(item_id="of the bundle", text=None, number=None, is_removed=True),
    ]
    assert items.put({"a": '{"title": 1}'}).version == 4
    assert [(item.item_id, item.number, item.is_removed) for item in items.since(3)[1]] == [("a", 0, False)]
    many = {f"n{number}": "{}" for number in range(1700)}
    assert items.put(many).version == 8
    newest, found = items.since(4)
    assert newest == 8
    assert {item.item_id: item.number for item in found} == {item: 3 + place for place, item in enumerate(many)}
    with pytest.raises(ValueError, match="must not be empty"):
        items.put({"d": ""})


def test_the_first_placement_of_an_item_stays_and_no_two_share_a_place(store: OnlineStore) -> None:
    items = store.items
    items.put({"a": "{}", "b": "{}"})
    assert items.place("m", {"a": ("1.2", "first")}) == ["kept"]
    assert items.place("m", {"a": ("1.3", "second"), "b": ("1.2", "b"), "c": ("1.4", "c")}) == [
        "known",
        "taken",
        "kept",
    ]
    assert items.placements("m", ["a", "b", "c"]) == ["first", None, "c"]
    assert items.placements("other", ["a"]) == [None]
    assert items.since(1)[0] == 3
    assert [item.item_id for item in items.since(1)[1]] == ["a", "c"]
    assert (items.lease("m", 60), items.lease("m", 60), items.lease("other", 60)) == (True, False, True)
    items.end_lease("m")
    assert items.lease("m", 60)


def test_the_asyncio_client_reads_the_same(store: OnlineStore) -> None:
    store.append_events([view(str(n), user, f"i{n}", at=n) for user in USERS[:5] for n in range(4)])
    store.put_profile(USERS[0], "{}")

    async def read() -> list[object]:
        client = AsyncOnlineStore.beside(store)
        try:
            return await asyncio.gather(*(client.user_state(user, 3) for user in [*USERS[:5], "nobody"]))
        finally:
            await client.close()

    assert asyncio.run(read()) == [store.user_state(user, 3) for user in [*USERS[:5], "nobody"]]


def test_events_reach_the_offline_store_once_and_erased_users_do_not_stay(store: OnlineStore, tmp_path: Path) -> None:
    events = [view(str(n), user, at=n) for user in USERS for n in range(3)]
    store.append_events(events)
    dead = EventLog(store, member="dead")
    with OfflineWriter(tmp_path) as writer:
        dead.join(writer.manifest.store_id)
        writer.write(dead.read(2))
        consumer = OfflineConsumer(EventLog(store), writer, batch=40)
        consumer.catch_up()
        assert store.erase_user(USERS[7])
        assert EventLog(store).lag().entries == 1
        consumer.catch_up()
    assert EventLog(store).lag() == Lag(entries=0, seconds=0)
    stored = OfflineStore(tmp_path).events()
    assert sorted(stored.select("user_id", "event_id").iter_rows()) == sorted(
        (event.user_id, event.event_id) for event in events if event.user_id != USERS[7]
    )
    assert store.user_history(USERS[7]) == []
    future = datetime(2100, 1, 1, tzinfo=UTC)
    offline = OfflineStore(tmp_path).history(USERS[8], future)
    assert [entry.item_id for entry in store.user_entries(USERS[8])] == offline["item_id"].to_list()


def test_a_store_says_what_it_is_and_promises(store: OnlineStore, deployment: Store) -> None:
    found = store.capabilities()
    expected = {
        # A login without CONFIG is not told the policy; the server confirms each write all the same.
        "valkey": ("single", "valkey 9.1", 1, None, True, False),
        "debian": ("single", "redis 7.0", 1, "always", False, False),
        "sentinel": ("sentinel", "valkey 9.1", 1, "everysec", True, False),
        "cluster": ("cluster", "valkey 9.1", 3, "everysec", True, False),
        "tls": ("single", "redis 7.0", 1, "always", False, True),
    }[deployment.kind]
    assert (
        found.deployment,
        found.server.rsplit(".", 1)[0],
        found.nodes,
        found.fsync_policy,
        found.has_waitaof,
        found.tls,
    ) == expected
    assert found.append_only_file
    # Valkey confirms before its fsync unless that comes with each write; the login without CONFIG is not told if so.
    assert found.durable == (found.fsync_policy == "always")
    assert (found.warning is None) == found.durable


def test_acknowledged_events_survive_a_kill_of_the_whole_store(store: OnlineStore, deployment: Store) -> None:
    for batch in range(2):
        events = [view(f"{batch}-{n}", user, f"i{batch}", at=batch) for user in USERS[:20] for n in range(2)]
        assert set(store.append_events(events)) == {"accepted"}
        for server in deployment.servers:
            server.kill()
        with pytest.raises(StoreUnavailableError, match=r"^store: "):
            OnlineStore.connect(deployment.url, namespace=store.namespace).user_history("ann")
        for server in deployment.servers:
            server.start()
        for attempt in range(100):
            try:
                assert set(store.append_events(events)) == {"duplicate"}
                break
            except StoreUnavailableError:  # a cluster and a sentinel need a moment to see that all is well
                assert attempt < 99
    assert store.user_history(USERS[3]) == ["i0", "i0", "i1", "i1"]


def test_slots_that_have_moved_are_found(start_cluster: Callable[[], Store]) -> None:
    cluster = start_cluster()
    store = OnlineStore.connect(cluster.url, namespace="contract-moved")
    store.append_events([view("1", USERS[0])])
    source, target = cluster.servers[0], cluster.servers[1]
    with target.client() as client:
        name = client.execute_command("CLUSTER", "MYID")
    with source.client() as client:
        for shard in range(SHARDS):
            slot = client.cluster("KEYSLOT", store.keys.of_shard(shard, "wal"))
            if slot < 5461 and client.cluster("COUNTKEYSINSLOT", slot) == 0:
                for server in (target, source, cluster.servers[2]):
                    with server.client() as node:
                        node.execute_command("CLUSTER", "SETSLOT", slot, "NODE", name)
    events = [view("1", user) for user in USERS[1:]]
    assert set(store.append_events(events)) == {"accepted"}
    assert all(store.user_history(user) == ["item"] for user in USERS)
    store.close()


@pytest.mark.parametrize("end", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)])
def test_a_replica_that_takes_over_is_found_by_both_clients(
    end: signal.Signals,
    start_cluster: Callable[[], Store],
    start: Callable[..., Server],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The node that goes says so by closing its connections, or says nothing at all."""
    monkeypatch.setattr("feature_store.address.REPLY_TIMEOUT_S", 1.0)
    cluster = start_cluster()
    first = cluster.servers[0]
    replica = start(VALKEY, "--cluster-enabled", "yes", "--appendonly", "yes", "--cluster-node-timeout", "2000")
    with first.client() as client, replica.client() as follower:
        follower.execute_command("CLUSTER", "MEET", "127.0.0.1", first.port)
        name = client.execute_command("CLUSTER", "MYID")
        wait_until(lambda: name in follower.execute_command("CLUSTER", "NODES"))
        follower.execute_command("CLUSTER", "REPLICATE", name)
        store = OnlineStore.connect(cluster.url, namespace="contract-takeover")
        store.append_events([view("1", user) for user in USERS])
        wait_until(lambda: client.info("replication").get("slave0", {}).get("state") == "online")
        assert client.execute_command("WAIT", 1, 5000) == 1

    async def read_before_and_after() -> tuple[list[UserState], list[UserState]]:
        reader = AsyncOnlineStore.beside(store)
        before = [await reader.user_state(user) for user in USERS]
        first.process.send_signal(end)
        with replica.client() as follower:
            await asyncio.to_thread(wait_until, lambda: follower.info("replication")["role"] == "master")
        after: list[UserState] = []
        for attempt in range(100):
            try:
                async with asyncio.timeout(0.5):  # as a request does
                    after = [await reader.user_state(user) for user in USERS]
                break
            except (StoreUnavailableError, TimeoutError):
                assert attempt < 99
                await asyncio.sleep(0.1)
        await reader.close()
        return before, after

    before, after = asyncio.run(read_before_and_after())
    assert before == after
    assert all([entry.item_id for entry in state.history] == ["item"] for state in after)
    with contextlib.suppress(StoreUnavailableError):  # one that has to find out that the node is gone
        store.append_events([view("1", user) for user in USERS])
    assert set(store.append_events([view("1", user) for user in USERS])) == {"duplicate"}
    store.close()
    first.process.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("deployment", ["tls"], indirect=True)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("secret", "wrong"), "check user and password"),
        (("?ssl_ca_certs=", "?ssl_cert_reqs=none&ssl_ca_certs="), None),
        (("rediss://", "redis://"), "store: "),
    ],
)
def test_tls_and_login_are_needed(
    change: tuple[str, str], message: str | None, deployment: Store, store: OnlineStore
) -> None:
    url = deployment.url
    if change[0] == "rediss://":
        url = url.split("?")[0]
    other = OnlineStore.connect(url.replace(*change), namespace=store.namespace)
    if message is None:
        other.ping()
    else:
        with pytest.raises(StoreUnavailableError, match=message) as caught:
            other.user_history("ann")
        assert "\n" not in str(caught.value)
        assert "wrong" not in str(caught.value)
    other.close()


@pytest.mark.parametrize("deployment", ["tls"], indirect=True)
def test_an_unknown_authority_is_not_trusted(deployment: Store) -> None:
    with pytest.raises(StoreUnavailableError, match="ssl_ca_certs"):
        OnlineStore.connect(deployment.url.split("?")[0]).ping()


@pytest.mark.parametrize("deployment", ["valkey"], indirect=True)
def test_a_login_without_the_right_keys_is_told_so(deployment: Store) -> None:
    with pytest.raises(StoreUnavailableError, match="allow the user") as caught:
        OnlineStore.connect(deployment.url, namespace="other").user_history("ann")
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_sentinels_choice_of_a_new_master_is_followed(start: Callable[..., Server], tmp_path: Path) -> None:
    first = start(VALKEY, "--appendonly", "yes")
    replication = ("--replicaof", f"127.0.0.1 {first.port}", "--repl-diskless-sync-delay", "0")
    second = start(VALKEY, "--appendonly", "yes", *replication)
    (tmp_path / "sentinel.conf").write_text("")
    sentinel = start(VALKEY, str(tmp_path / "sentinel.conf"), "--sentinel")
    with sentinel.client() as client:
        client.execute_command("SENTINEL", "MONITOR", "main", "127.0.0.1", first.port, 1)
        client.execute_command("SENTINEL", "SET", "main", "down-after-milliseconds", 300)
        wait_until(lambda: client.sentinel_master("main")["num-slaves"] == 1)
    store = OnlineStore.connect(f"redis+sentinel://127.0.0.1:{sentinel.port}/main", namespace="contract-failover")
    events = [view("1", user) for user in USERS]
    store.append_events(events)
    with first.client() as client:
        wait_until(lambda: client.info("replication")["slave0"]["state"] == "online")
        assert client.execute_command("WAIT", 1, 5000) == 1
    first.kill()

    def answers() -> bool:
        try:
            return set(store.append_events(events)) == {"duplicate"}
        except StoreUnavailableError:
            return False

    wait_until(answers)
    with second.client() as client:
        assert client.info("replication")["role"] == "master"
    store.close()


def wait_until(is_so: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)
