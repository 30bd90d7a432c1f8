from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from feature_store import Event, HistoryEntry, InvalidEventError, OnlineStore, StoreConfigError, StoreUnavailableError

EventFactory = Callable[..., Event]


def test_a_repeated_event_counts_once(store: OnlineStore, make_event: EventFactory) -> None:
    assert store.append_events([make_event("1"), make_event("1")]) == ["accepted", "duplicate"]
    assert store.append_events([make_event("1", at=99.0)]) == ["duplicate"]
    assert store.user_entries("ann") == [HistoryEntry(item_id="item", event_type="view", timestamp=1.0)]


def test_an_event_id_cannot_name_two_different_events(store: OnlineStore, make_event: EventFactory) -> None:
    store.append_events([make_event("1")])
    assert store.append_events([make_event("1", item_id="other"), make_event("1", kind="buy")]) == ["conflict"] * 2
    assert store.user_history("ann") == ["item"]


def test_event_ids_of_different_users_are_independent(store: OnlineStore, make_event: EventFactory) -> None:
    assert store.append_events([make_event("1"), make_event("1", user_id="bob")]) == ["accepted", "accepted"]


def test_outcomes_are_in_the_order_of_the_events(store: OnlineStore, make_event: EventFactory) -> None:
    store.append_events([make_event("1", "bob")])
    events = [make_event("1", "zoe"), make_event("1", "bob"), make_event("1", "ann"), make_event("1", "zoe")]
    assert store.append_events(events) == ["accepted", "duplicate", "accepted", "duplicate"]
    assert store.append_events([]) == []


def test_a_history_is_ordered_by_event_time_then_arrival(store: OnlineStore, make_event: EventFactory) -> None:
    store.append_events([make_event("a", item_id="z", at=5), make_event("b", item_id="y", at=5)])
    store.append_events([make_event("c", item_id="late", at=2.25), make_event("d", item_id="x", at=5)])
    assert store.user_history("ann") == ["late", "z", "y", "x"]
    assert store.user_history("ann", 2) == ["y", "x"]
    assert store.user_history("ann", 0) == []


def test_the_same_item_may_occur_again(store: OnlineStore, make_event: EventFactory) -> None:
    store.append_events([make_event(str(number)) for number in range(3)])
    assert store.user_history("ann") == ["item"] * 3


def test_a_history_keeps_only_its_newest_entries(
    make_store: Callable[..., OnlineStore], make_event: EventFactory
) -> None:
    store = make_store(max_history=3)
    store.append_events([make_event(str(number), item_id=str(number), at=number) for number in range(10)])
    assert store.user_history("ann") == ["7", "8", "9"]
    assert store.append_events([make_event("old", item_id="old", at=0)]) == ["accepted"]
    assert store.user_history("ann") == ["7", "8", "9"]


def test_an_event_that_the_history_has_no_room_for_is_in_the_log(
    make_store: Callable[..., OnlineStore], make_event: EventFactory
) -> None:
    store = make_store(max_history=2)
    events = [make_event(str(number), item_id=str(number), at=10 - number) for number in range(5)]
    assert store.append_events(events) == ["accepted"] * 5
    assert store.append_events(events) == ["duplicate"] * 5
    assert store.user_history("ann") == ["1", "0"]
    assert store.user_events("ann", 10) == events
    assert store.user_events("ann", 2) == events[-2:]
    assert store.user_events("ann", 0) == store.user_events("nobody", 10) == []


def test_the_log_has_a_bound(store: OnlineStore, make_event: EventFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feature_store.online.EVENT_LOG_LENGTH", 100)
    store.append_events([make_event(str(number)) for number in range(1000)])
    logged = store.user_events("ann", 1000)
    assert 100 <= len(logged) < 500
    assert logged[-1].event_id == "999"


def test_event_ids_are_forgotten_after_their_lifetime(
    make_store: Callable[..., OnlineStore], make_event: EventFactory, store_url: str
) -> None:
    store = make_store(event_id_lifetime_s=1000)
    store.append_events([make_event("1")])
    with redis.Redis.from_url(store_url) as client:
        assert 0 < client.ttl(store.keys.event("ann", "1")) <= 1000


def test_ids_may_hold_any_text(store: OnlineStore, make_event: EventFactory) -> None:
    odd = "{a}:b c\0\n*é😀"
    store.append_events([make_event(odd, user_id=odd, item_id=odd)])
    assert store.user_history(odd) == [odd]
    assert store.user_events(odd, 10) == [make_event(odd, user_id=odd, item_id=odd)]
    assert store.search_users("{a}:", limit=10) == ([odd], 1)
    store.put_item_features({odd: {"price": 1.5}})
    assert store.item_features([odd, "none"]) == [{"price": 1.5}, None]


def test_users_are_found_by_prefix_in_pages(store: OnlineStore, make_event: EventFactory) -> None:
    users = ["b", "a1", "a2", "a10", "é"]
    store.append_events([make_event("1", user_id=user) for user in users])
    assert store.search_users("", limit=10) == (["a1", "a10", "a2", "b", "é"], 5)
    assert store.search_users("a", limit=2) == (["a1", "a10"], 3)
    assert store.search_users("a", limit=2, offset=2) == (["a2"], 3)
    assert store.search_users("[a", limit=2) == ([], 0)


def test_seeded_histories_are_older_than_every_event(store: OnlineStore, make_event: EventFactory) -> None:
    store.append_events([make_event("1", item_id="live", at=0)])
    assert store.seed_histories("v1", [("ann", ["a", "b"]), ("bob", ["c"])])
    assert store.user_history("ann") == ["a", "b", "live"]
    assert store.user_entries("ann")[0] == HistoryEntry(item_id="a", event_type=None, timestamp=None)
    assert store.search_users("", limit=10) == (["ann", "bob"], 2)


def test_seeding_a_version_again_reads_nothing(store: OnlineStore) -> None:
    assert store.seed_histories("v1", [("ann", ["a"])])
    unread = iter([("ann", ["other"])])
    assert not store.seed_histories("v1", unread)
    assert next(unread) == ("ann", ["other"])


def test_a_new_version_replaces_seeded_entries_and_keeps_events(store: OnlineStore, make_event: EventFactory) -> None:
    store.seed_histories("v1", [("ann", ["a", "b"])])
    store.append_events([make_event("1", item_id="live")])
    store.seed_histories("v2", [("ann", ["n"])])
    assert store.user_history("ann") == ["n", "live"]


def test_a_new_version_removes_users_that_it_does_not_have(store: OnlineStore, make_event: EventFactory) -> None:
    store.seed_histories("v1", [("ann", ["a"]), ("bob", ["b"]), ("cid", ["c"])])
    store.append_events([make_event("1", user_id="bob", item_id="live")])
    store.seed_histories("v2", [("ann", ["n"])])
    assert [store.user_history(user) for user in ("ann", "bob", "cid")] == [["n"], ["live"], []]
    assert store.search_users("", limit=10) == (["ann", "bob"], 2)


def test_what_an_interrupted_version_wrote_is_removed_by_the_next(store: OnlineStore) -> None:
    def interrupted() -> Iterator[tuple[str, list[str]]]:
        yield from [(f"u{index}", ["a"]) for index in range(600)]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.seed_histories("v1", interrupted())
    store.seed_histories("v2", [("ann", ["a"])])
    assert store.search_users("", limit=10) == (["ann"], 1)


def test_interrupted_seeding_starts_over(store: OnlineStore) -> None:
    def interrupted() -> Iterator[tuple[str, list[str]]]:
        yield from [(f"u{index}", ["a"]) for index in range(600)]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.seed_histories("v1", interrupted())
    assert store.seed_histories("v1", [(f"u{index}", ["a", "b"]) for index in range(700)])
    assert store.user_history("u0") == store.user_history("u699") == ["a", "b"]


def test_seeding_keeps_the_newest_of_a_long_history(make_store: Callable[..., OnlineStore]) -> None:
    store = make_store(max_history=2)
    store.seed_histories("v1", [("ann", ["a", "b", "c"])])
    assert store.user_history("ann") == ["b", "c"]


def test_namespaces_do_not_see_each_other(store: OnlineStore, store_url: str, make_event: EventFactory) -> None:
    store.append_events([make_event("1")])
    other = OnlineStore.connect(store_url, namespace=store.namespace + ":other")
    assert other.user_history("ann") == []
    other.close()


def test_the_same_event_from_many_threads_is_accepted_once(store: OnlineStore, make_event: EventFactory) -> None:
    events = [make_event(str(number), item_id=str(number)) for number in range(50)]
    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(lambda _: store.append_events(events), range(8)))
    assert [sorted(column) for column in zip(*outcomes, strict=True)] == [["accepted"] + ["duplicate"] * 7] * 50
    assert sorted(store.user_history("ann")) == sorted(event.item_id for event in events)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("event_id", ""),
        ("user_id", "x" * 257),
        ("item_id", "\ud800"),
        ("event_type", "a b"),
        ("event_type", "view\n"),
        ("timestamp", -1.0),
        ("timestamp", float("nan")),
        ("timestamp", 1e13),
    ],
)
def test_an_invalid_event_names_the_field(field: str, value: object) -> None:
    valid = {"event_id": "1", "user_id": "u", "item_id": "i", "event_type": "view", "timestamp": 0.0}
    with pytest.raises(InvalidEventError, match=f"^{field} "):
        Event(**(valid | {field: value}))  # type: ignore[arg-type]


def test_a_server_that_is_not_there_is_unavailable(tmp_path, make_event: EventFactory) -> None:
    store = OnlineStore.connect(f"unix://{tmp_path}/none.sock")
    for call in (store.ping, lambda: store.append_events([make_event("1")]), lambda: store.user_history("ann")):
        with pytest.raises(StoreUnavailableError, match=r"^store: "):
            call()


@pytest.mark.parametrize(
    ("facts", "policy", "expected"),
    [
        ({"aof_enabled": 0, "redis_version": "7.2.4"}, "everysec", "append-only"),
        ({"aof_enabled": 1, "redis_version": "7.0.15"}, "everysec", "WAITAOF"),
        ({"aof_enabled": 1, "redis_version": "7.0.15"}, None, "WAITAOF"),
        ({"aof_enabled": 1, "redis_version": "7.0.15"}, "always", None),
        ({"aof_enabled": 1, "redis_version": "7.2.4"}, "everysec", None),
        ({"aof_enabled": 1, "redis_version": "8.0.0"}, "everysec", None),
        ({"aof_enabled": 1, "redis_version": "7.4.2"}, "everysec", "before they are on disk"),
        ({"aof_enabled": 1, "redis_version": "7.2.4", "server_name": "valkey"}, "everysec", "before they are on disk"),
        ({"aof_enabled": 1, "redis_version": "7.2.4", "server_name": "valkey"}, "always", None),
    ],
)
def test_a_server_that_promises_less_is_logged(
    facts: dict[str, object],
    policy: str | None,
    expected: str | None,
    store: OnlineStore,
    make_event: EventFactory,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def config_get(_: str) -> dict[str, str]:
        if policy is None:
            raise redis.ResponseError("CONFIG is not allowed")
        return {"appendfsync": policy}

    monkeypatch.setattr(store.connection.client, "info", lambda: facts)
    monkeypatch.setattr(store.connection.client, "config_get", config_get)
    assert store.append_events([make_event("1")]) == ["accepted"]
    assert [expected in record.message for record in caplog.records if expected] == [True] * (expected is not None)
    assert len(caplog.records) == (expected is not None)


@pytest.mark.parametrize("url", ["http://localhost", "localhost:6379", "redis://localhost:none"])
def test_a_malformed_url_is_refused(url: str) -> None:
    with pytest.raises(StoreConfigError, match="write redis://"):
        OnlineStore.connect(url)


def test_a_namespace_cannot_move_the_hash_tag() -> None:
    with pytest.raises(StoreConfigError, match="without"):
        OnlineStore.connect("redis://localhost", namespace="a{b}")


def test_a_failing_write_accepts_nothing(store: OnlineStore, store_url: str, make_event: EventFactory) -> None:
    with redis.Redis.from_url(store_url) as client:
        client.set(store.keys.of_user("ann", "h"), "not a history")
        with pytest.raises(StoreUnavailableError):
            store.append_events([make_event("1")])
        client.delete(store.keys.of_user("ann", "h"))
    assert store.append_events([make_event("1")]) == ["accepted"]


def test_a_profile_is_kept_replaced_and_erased(store: OnlineStore) -> None:
    assert store.profile("ann") is None
    store.put_profile("ann", '{"a": 1}')
    store.put_profile("ann", '{"a": 2}')
    store.put_profile("bob", "{}")
    assert store.profile("ann") == '{"a": 2}'
    assert store.delete_profile("ann")
    assert not store.delete_profile("ann")
    assert store.profile("ann") is None
    assert store.profile("bob") == "{}"


def test_a_server_that_has_forgotten_the_scripts_gets_them_again(
    store: OnlineStore, store_url: str, make_event: EventFactory
) -> None:
    with redis.Redis.from_url(store_url) as client:
        client.script_flush()
        events = [make_event("1", user) for user in ("ann", "bob")]
        assert store.append_events(events) == ["accepted"] * 2
        client.script_flush()
        assert store.append_events([*events, make_event("2")]) == ["duplicate", "duplicate", "accepted"]
    assert store.user_history("ann") == ["item", "item"]
