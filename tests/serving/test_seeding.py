"""A service whose store is still taking the histories of the data set answers as it does when they are in."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from fastapi.testclient import TestClient
from structlog.testing import capture_logs
from toy_bundle import write_toy_bundle

from feature_store import OnlineStore, StoreUnavailableError
from recsys.bundle import Bundle
from serving import context, seeding
from serving.app import create_app
from serving.runtime import RecommenderRuntime
from serving.seeding import Seeding

HISTORIES = {"ann": ["i0", "i1", "i2"], "bob": ["i5"]}
OTHERS = {f"user {number}": ["i3", "i4"] for number in range(5)}


class Gated(dict[str, list[str]]):
    """Histories of which all but the first come once the gate is opened."""

    def __init__(self, *histories: dict[str, list[str]]) -> None:
        for each in histories:
            self.update(each)
        self.is_reached, self.opens = threading.Event(), threading.Event()

    def __enter__(self) -> None:
        """The gate is open at the end, whatever has failed: a service that ends waits for it."""

    def __exit__(self, *_: object) -> None:
        self.opens.set()

    def items(self) -> Any:
        for number, history in enumerate(super().items()):
            if number == 1:
                self.is_reached.set()
                assert self.opens.wait(60)
            yield history


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "_SEEDING_S", 0.0)
    monkeypatch.setattr(seeding, "_PAUSE_S", 0.05)
    monkeypatch.setattr("feature_store.seeds._USERS_AT_ONCE", 1)
    monkeypatch.setattr("feature_store.seeds._LOOK_S", 0.01)


@pytest.fixture
def make_store(tmp_path: Path) -> Iterator[Callable[[str], OnlineStore]]:
    stores: list[OnlineStore] = []

    def make(namespace: str) -> OnlineStore:
        stores.append(OnlineStore.embedded(tmp_path / "store", namespace=namespace))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


def ask(client: TestClient) -> list[Any]:
    """Whatever concerns a user's history, of users who are in and of users who are not."""
    answers: list[Any] = []

    def note(method: str, path: str, body: Any = None) -> Any:
        found = client.request(method, path, json=body)
        content = found.json() if found.content else None
        if isinstance(content, dict):
            for varies in ("timings_ms", "recommendation_id", "request_id", "instance"):
                content.pop(varies, None)
        answers.append((found.status_code, content))
        return content

    def event(number: int, user: str, item: str = "i5") -> dict[str, Any]:
        return {"event_id": f"e{number}", "user_id": user, "item_id": item, "timestamp": 1_700_000_000 + number}

    for user in ("ann", "user 1", "user 2", "nobody"):
        note("POST", "/v1/recommend", {"user_id": user, "k": 4})
        note("GET", f"/v1/users/{user}")
    profile = note("GET", "/v1/profiles/user 1")
    note("PUT", "/v1/profiles/user 1", {"statements": ["Likes even numbers."], "revision": profile["revision"]})
    note("DELETE", "/v1/profiles/user 3")
    note("POST", "/v1/events", [event(1, "user 3"), event(2, "user 1"), event(3, "new"), event(4, "gone")])
    for user in ("user 3", "user 1", "new", "gone"):
        note("GET", f"/v1/users/{user}")
        note("POST", "/v1/recommend", {"user_id": user, "k": 4})
    note("DELETE", "/v1/users/user 4")
    note("DELETE", "/v1/users/user 2")
    note("GET", "/v1/users/user 4")
    note("POST", "/v1/events", [event(5, "user 4"), event(1, "user 3")])
    note("GET", "/v1/users/user 4")
    note("GET", "/v1/users/user 2")
    return answers


def content(store: OnlineStore) -> dict[str, Any]:
    client, found = store.connection.client, {}
    for key in client.scan_iter(f"{store.namespace}:*", count=1000):
        name = key.removeprefix(store.namespace)
        match client.type(key):
            case "string":
                found[name] = client.get(key)
            case "zset":
                found[name] = client.zrange(key, 0, -1, withscores=True)
            case "set":
                found[name] = client.smembers(key)
            case "stream":  # whose ids are times, also those that an entry names
                found[name] = [{**fields, "wal": None} for _, fields in client.xrange(key)]
    return found


def test_answers_and_what_is_left_are_those_of_a_store_that_has_all(
    runtime: RecommenderRuntime, make_store: Callable[[str], OnlineStore]
) -> None:
    full, filling = make_store("full"), make_store("filling")
    for store in (full, filling):  # an earlier version of the data set has a user who is gone
        store.seed_histories("v0", [("gone", ["i1"]), ("user 3", ["i9", "i8"])])
    ahead = Seeding(full, "v1", HISTORIES | OTHERS)
    with TestClient(create_app(runtime, full, seeding=ahead)) as client:
        assert ahead.wait(60)
        expected = ask(client)
        assert "recsys_histories_share 1.0" in client.get("/metrics").text
    histories = Gated(HISTORIES, OTHERS)
    behind = Seeding(filling, "v1", histories)
    with TestClient(create_app(runtime, filling, seeding=behind)) as client, histories:
        assert histories.is_reached.wait(60)
        assert client.get("/readyz").json()["status"] == "ok"
        assert ask(client) == expected
        assert not behind.is_done
        assert "recsys_histories_share 0." in client.get("/metrics").text
        assert client.get("/v1/users", params={"query": "user 0"}).json()["total"] == 0
        histories.opens.set()
        assert behind.wait(60)
        assert client.get("/v1/users", params={"query": "user 0"}).json()["total"] == 1
        assert "recsys_histories_share 1.0" in client.get("/metrics").text
    assert content(make_store("filling")) == content(make_store("full"))


def test_the_log_says_when_they_begin_to_come_and_how_fast_they_came(
    runtime: RecommenderRuntime, make_store: Callable[[str], OnlineStore]
) -> None:
    for expected in (["histories come into the store", "histories are in the store"], []):
        store = make_store("n")
        behind = Seeding(store, "v1", HISTORIES)
        with capture_logs() as logs, TestClient(create_app(runtime, store, seeding=behind)):
            assert behind.wait(60)
        found = [line for line in logs if line["event"].startswith("histories")]
        assert [line["event"].split(";")[0] for line in found] == expected
        assert all(line["users"] == len(HISTORIES) for line in found)
        assert all(line["users_per_second"] > 0 for line in found[1:])


def test_a_service_that_ends_meanwhile_begins_anew(
    runtime: RecommenderRuntime, make_store: Callable[[str], OnlineStore]
) -> None:
    histories = Gated(HISTORIES, OTHERS)
    store = make_store("n")
    behind = Seeding(store, "v1", histories)
    with TestClient(create_app(runtime, store, seeding=behind)) as client, histories:
        assert histories.is_reached.wait(60)
        assert client.get("/v1/users/user 2").status_code == 200
        behind._ends.set()
        histories.opens.set()
    assert not behind.is_done
    store = make_store("n")
    behind = Seeding(store, "v1", HISTORIES | OTHERS)
    with TestClient(create_app(runtime, store, seeding=behind)):
        assert behind.wait(60)
    undisturbed = make_store("undisturbed")
    undisturbed.seed_histories("v1", (HISTORIES | OTHERS).items())
    assert content(make_store("n")) == content(undisturbed)


def test_of_several_services_one_does_it_and_all_answer(make_store: Callable[[str], OnlineStore]) -> None:
    histories = Gated(HISTORIES, OTHERS)
    stores = make_store("n"), make_store("n")
    first, second = Seeding(stores[0], "v1", histories), Seeding(stores[1], "v1", HISTORIES | OTHERS)
    with capture_logs() as logs:
        first.start()
        with histories:
            assert histories.is_reached.wait(60)
            second.start()
            second.put("user 4")
            assert stores[1].user_history("user 4") == OTHERS["user 4"]
            assert not second.is_done
        assert first.wait(60)
        assert second.wait(60)
    assert [line["event"].split(";")[0] for line in logs] == [
        "histories come into the store",
        "histories are in the store",
    ]


def test_a_store_that_comes_late_is_filled_then(runtime: RecommenderRuntime, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    store = OnlineStore.connect(f"unix://{tmp_path}/s/valkey.sock")
    behind = Seeding(store, "v1", HISTORIES)
    with capture_logs() as logs, TestClient(create_app(runtime, store, seeding=behind)):
        assert not behind.wait(0.2)
        server = OnlineStore.embedded(tmp_path / "s")
        assert behind.wait(60)
        server.close()
    assert [line["event"] for line in logs].count("histories wait for the store") == 1


def test_who_is_put_in_while_another_attempt_begins_is_put_in_again(
    make_store: Callable[[str], OnlineStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store("n")
    behind, put_one, put_all = Seeding(store, "v1", HISTORIES), store.seeds.put_one, store.seeds.put_all
    is_tried = threading.Event()

    def then_another_version(user: str, items: list[str]) -> None:
        put_one(user, items)
        monkeypatch.setattr(store.seeds, "put_one", put_one)
        behind.start()
        assert is_tried.wait(60)
        put_one(user, ["i9"])

    def fails(*_: Any, **__: Any) -> bool:
        is_tried.set()
        raise StoreUnavailableError("held up")

    monkeypatch.setattr(store.seeds, "put_one", then_another_version)
    monkeypatch.setattr(store.seeds, "put_all", fails)
    behind.put("ann")
    assert store.user_history("ann") == ["i9"]
    behind.put("ann")
    assert store.user_history("ann") == HISTORIES["ann"]
    monkeypatch.setattr(store.seeds, "put_all", put_all)
    assert behind.wait(60)
    behind.stop()


def test_histories_that_cannot_be_read_do_not_end_the_service(
    runtime: RecommenderRuntime, make_store: Callable[[str], OnlineStore]
) -> None:
    class Damaged(dict[str, list[str]]):
        def items(self) -> Any:
            raise OSError("damaged")

    store = make_store("n")
    behind = Seeding(store, "v1", Damaged(HISTORIES))
    with capture_logs() as logs, TestClient(create_app(runtime, store, seeding=behind)) as client:
        behind._thread.join()  # type: ignore[union-attr]
        assert client.get("/v1/users/ann").status_code == 200
        assert not behind.is_done
    assert "histories do not come into the store" in [line["event"] for line in logs]


def test_a_bundle_of_an_earlier_version_is_served_too(tmp_path: Path, store: OnlineStore) -> None:
    write_toy_bundle(tmp_path / "bundle")
    bundle = Bundle.load(tmp_path / "bundle")
    expected = dict(bundle.histories())
    pl.DataFrame({"user_id": list(expected)[::-1], "item_ids": list(expected.values())[::-1]}).write_parquet(
        bundle.users.path
    )
    behind = Seeding(store, "v1", bundle.users)
    with TestClient(create_app(RecommenderRuntime.from_bundle(bundle), store, seeding=behind)) as client:
        assert [file.name for file in bundle.path.glob(".*")] == [".histories-by-user.parquet"]
        for user, items in expected.items():
            found = client.get(f"/v1/users/{user}").json()["history"]
            assert [entry["item_id"] for entry in found] == items
