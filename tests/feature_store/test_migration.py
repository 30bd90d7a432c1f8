from __future__ import annotations

from collections.abc import Callable

import pytest

from feature_store import Event, HistoryEntry, OnlineStore, StoreConfigError

EventFactory = Callable[..., Event]


def _write_layout_1(store: OnlineStore) -> None:
    """What version 0.1.0 of the program wrote for two events, a data set and a profile."""
    client, ns = store.connection.client, store.namespace
    client.zadd(
        f"{ns}:{{a%3Ab}}:h", {"000000000000001::old": -1, "000000000000001:view:x": 5, "000000000000002:buy:y": 7}
    )
    client.set(f"{ns}:{{a%3Ab}}:n", 2)
    for event_id, kind, item, at in (("e:1", "view", "x", "5.0"), ("2", "buy", "y", "7.0")):
        client.xadd(f"{ns}:{{a%3Ab}}:log", {"event_id": event_id, "item_id": item, "event_type": kind, "timestamp": at})
        event = Event(event_id=event_id, user_id="a:b", item_id=item, event_type=kind, timestamp=float(at))
        client.set(f"{ns}:{{a%3Ab}}:e:{event_id}", event.fingerprint, ex=1000)
    client.set(f"{ns}:{{a%3Ab}}:profile:1", "{}")
    client.zadd(f"{ns}:users", {"a:b": 0})
    client.set(f"{ns}:seed", "v1")
    client.sadd(f"{ns}:seeded", "a:b")


def test_users_of_the_first_layout_are_all_there(store: OnlineStore, make_event: EventFactory) -> None:
    _write_layout_1(store)
    with pytest.raises(StoreConfigError, match="run `recsys events migrate`"):
        store.user_history("a:b")
    assert store.migrate() == 6
    assert store.migrate() == 0
    assert store.user_entries("a:b") == [
        HistoryEntry(item_id="old", event_type=None, timestamp=None),
        HistoryEntry(item_id="x", event_type="view", timestamp=5.0),
        HistoryEntry(item_id="y", event_type="buy", timestamp=7.0),
    ]
    assert [event.event_id for event in store.user_events("a:b", 10)] == ["e:1", "2"]
    assert store.profile("a:b") == "{}"
    again = [make_event("e:1", "a:b", "x"), make_event("2", "a:b", "z"), make_event("3", "a:b", "z", at=6)]
    assert store.append_events(again) == ["duplicate", "conflict", "accepted"]
    assert store.user_history("a:b") == ["old", "x", "z", "y"]
    assert not store.seed_histories("v1", [])
    wal = store.connection.client.xrange(store.keys.beside_user("a:b", "wal"))
    assert [fields["event_id"] for _, fields in wal] == ["e:1", "2", "3"]
    assert not list(store.connection.client.scan_iter(f"{store.namespace}:{{*"))


def test_an_empty_namespace_needs_no_migration(store: OnlineStore) -> None:
    assert store.user_history("ann") == []
    assert store.connection.client.get(store.keys.named("schema")) == "2"


def test_keys_of_a_newer_program_are_left_alone(store: OnlineStore) -> None:
    store.connection.client.set(store.keys.named("schema"), 3)
    for call in (store.migrate, lambda: store.user_history("ann")):
        with pytest.raises(StoreConfigError, match="update it"):
            call()
