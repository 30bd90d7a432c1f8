"""What is left of an erased user, and what can bring the user back: nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from feature_store import Event, OnlineStore, StoreUnavailableError
from feature_store.keys import SHARDS, digest_of

EventFactory = Callable[..., Event]


def _dump(store: OnlineStore) -> str:
    """All keys of the store's namespace with what is in them."""
    client = store.connection.client
    content = []
    for key in client.scan_iter(f"{store.namespace}:*"):
        kind = client.type(key)
        value = {
            "string": lambda key: client.get(key),
            "zset": lambda key: client.zrange(key, 0, -1),
            "set": lambda key: client.smembers(key),
            "hash": lambda key: client.hgetall(key),
            "stream": lambda key: client.xrange(key),
        }[kind](key)
        content.append(f"{key} {value}")
    return "\n".join(content)


def test_nothing_is_left_but_a_digest(store: OnlineStore, make_event: EventFactory) -> None:
    store.seed_histories("v1", [("ann-x", ["seeded"])])
    store.append_events([make_event(f"id{n}", "ann-x", f"i{n}") for n in range(3)] + [make_event("1", "bob")])
    store.put_profile("ann-x", "{}")
    store.put_session("ann-x", "{}")
    assert store.erase_user("ann-x")
    left = _dump(store)
    assert "ann-x" not in left
    assert digest_of("ann-x") in left
    assert store.user_history("ann-x") == []
    assert store.user_history("bob") == ["item"]
    assert store.search_users("", limit=10) == (["bob"], 1)
    assert not store.erase_user("ann-x")


def test_no_data_set_brings_an_erased_user_back_but_new_events_do(store: OnlineStore, make_event: EventFactory) -> None:
    store.seed_histories("v1", [("ann", ["a"]), ("bob", ["b"])])
    store.erase_user("ann")
    store.seed_histories("v2", [("ann", ["a", "c"]), ("bob", ["b"])])
    assert store.user_history("ann") == []
    assert store.search_users("", limit=10) == (["bob"], 1)
    assert store.append_events([make_event("1", item_id="new")]) == ["accepted"]
    assert store.user_history("ann") == ["new"]
    assert store.search_users("", limit=10) == (["ann", "bob"], 2)


def test_an_erasure_that_was_interrupted_goes_on(
    store: OnlineStore, make_event: EventFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.append_events([make_event(str(n), "ann-x") for n in range(3)])
    with monkeypatch.context() as patch:
        patch.setattr(store, "_finish_erasure", lambda _: (_ for _ in ()).throw(StoreUnavailableError("store: gone")))
        with pytest.raises(StoreUnavailableError):
            store.erase_user("ann-x")
    assert store.user_history("ann-x") == []  # the history goes first
    store.append_events([make_event("9", "ann-x")])
    assert store.erase_user("ann-x")
    assert "ann-x" not in _dump(store)


def test_idle_users_are_forgotten(make_store: Callable[..., OnlineStore], make_event: EventFactory) -> None:
    store = make_store(idle_lifetime_s=1000)
    store.seed_histories("v1", [("cid", ["a"])])
    store.append_events([make_event("1")])
    store.put_profile("ann", "{}")
    client = store.connection.client
    for key in ("h:ann", "n:ann", "log:ann", "profile:1:ann", "h:cid"):
        found = [name for shard in range(SHARDS) if client.exists(name := store.keys.of_shard(shard, key))]
        assert [0 < client.ttl(name) <= 1000 for name in found] == [True], key
    client.delete(store.keys.of_user("ann", "h"))  # as if it had expired
    assert store.drop_idle_users() == 1
    assert store.search_users("", limit=10) == (["cid"], 1)
    with pytest.raises(ValueError, match="idle_lifetime_s"):
        make_store(idle_lifetime_s=0)
