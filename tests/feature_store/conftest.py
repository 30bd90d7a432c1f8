"""The store's contract runs on a real embedded server, and on $RECSYS_TEST_REDIS_URL too when that is set."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator

import pytest
import redis

from feature_store import EmbeddedServer, Event, OnlineStore

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
