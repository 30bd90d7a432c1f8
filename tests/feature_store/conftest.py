"""The store's contract runs on a real embedded server, and on $RECSYS_TEST_REDIS_URL too when that is set."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import redis
from redis.crc import key_slot

from feature_store import EmbeddedServer, Event, OnlineStore, connection
from feature_store.connection import Command

_SEVERAL_KEYS = ("delete", "exists", "mget", "mset", "unlink", "touch")


class _Asked:
    """Takes the place of a pipeline, and keeps the keys of the one command that it is given."""

    def __init__(self, command: Command) -> None:
        self.keys: list[str] = []
        command.queue(self)

    def __getattr__(self, name: str) -> Callable[..., None]:
        def ask(*arguments: Any, **_: Any) -> None:
            match name:
                case "evalsha" | "eval":
                    self.keys = list(arguments[2 : 2 + arguments[1]])
                case "xreadgroup":
                    self.keys = list(arguments[2])
                case _:
                    self.keys = list(arguments if name in _SEVERAL_KEYS else arguments[:1])

        return ask


@pytest.fixture(autouse=True)
def commands_of_one_slot(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a test asks a store for, a cluster would do: each command's keys are in the slot by which its node is
    chosen. Keys of the first layout, which had no cluster, are not."""
    if request.module.__name__ == "test_migration":
        return
    run = connection._run

    def checked(client: Any, commands: Sequence[Command], waits: bool) -> list[Any]:
        for command in commands:
            slots = {key_slot(key.encode()) for key in (command.key, *_Asked(command).keys)}
            assert len(slots) == 1, command
        return run(client, commands, waits)

    monkeypatch.setattr(connection, "_run", checked)


REDIS_URL = os.environ.get("RECSYS_TEST_REDIS_URL")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    server = EmbeddedServer(tmp_path_factory.mktemp("valkey"))
    server.ensure_running()
    yield server
    server.stop()


@pytest.fixture(scope="session", params=["embedded", *(["url"] if REDIS_URL else [])])
def store_url(request: pytest.FixtureRequest, server: EmbeddedServer) -> str:
    return REDIS_URL if request.param == "url" and REDIS_URL else f"unix://{server.socket_path}"


@pytest.fixture
def make_store(store_url: str) -> Iterator[Callable[..., OnlineStore]]:
    """Stores under one namespace of this test."""
    namespace = f"test-{uuid.uuid4().hex}"
    stores: list[OnlineStore] = []

    def make(**limits: int) -> OnlineStore:
        stores.append(OnlineStore.connect(store_url, namespace=namespace, **limits))
        return stores[-1]

    yield make
    for store in stores:
        store.close()
    with redis.Redis.from_url(store_url) as client:
        if keys := list(client.scan_iter(f"{namespace}:*", count=1000)):
            client.delete(*keys)


@pytest.fixture
def store(make_store: Callable[..., OnlineStore]) -> OnlineStore:
    return make_store()


@pytest.fixture(scope="session")
def make_event() -> Callable[..., Event]:
    def make(event_id: str, user_id: str = "ann", item_id: str = "item", at: float = 1.0, kind: str = "view") -> Event:
        return Event(event_id=event_id, user_id=user_id, item_id=item_id, event_type=kind, timestamp=at)

    return make
