"""Nothing that waits for the store, a model, a disk or a clock runs on the event loop, whatever is asked."""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis.connection
from fastapi import FastAPI
from fastapi.testclient import TestClient
from toy_bundle import write_toy_bundle

from feature_store import OnlineStore
from feature_store.connection import Connection
from recsys.bundle import Bundle
from serving.app import create_app
from serving.chain import AnswerChain
from serving.profiles import UserProfiles
from serving.runtime import RecommenderRuntime
from serving.search import CatalogSearch
from serving.seeding import Seeding
from serving.stages import RecommenderStage

BLOCKING: list[tuple[Any, str]] = [
    (Connection, "run"),
    (redis.connection.AbstractConnection, "send_packed_command"),
    (redis.connection.AbstractConnection, "read_response"),
    (RecommenderStage, "lists"),
    (CatalogSearch, "find"),
    (UserProfiles, "read"),
    (Bundle, "load"),
    (AnswerChain, "warm_up"),
    (time, "sleep"),
    (socket, "getaddrinfo"),
]


class Watch:
    """Counts calls of functions that block, on the event loop and off it."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.on_loop: Counter[str] = Counter()
        self.elsewhere: Counter[str] = Counter()
        for owner, name in BLOCKING:
            patch.setattr(owner, name, self._watched(f"{owner.__name__}.{name}", getattr(owner, name)))

    def _watched(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any, **named: Any) -> Any:
            try:
                asyncio.get_running_loop()
            except RuntimeError:
                self.elsewhere[name] += 1
            else:
                self.on_loop[name] += 1
            return function(*arguments, **named)

        return watched


def _example(app: FastAPI, schema: dict[str, Any]) -> Any:
    """The first example of a body, its own or that of the schema that it names."""
    while "$ref" in schema:
        schema = app.openapi()["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    if "examples" in schema:
        return schema["examples"][0]
    return _example(app, schema["anyOf"][0]) if "anyOf" in schema else {}


def _ask_everything(app: FastAPI, client: TestClient) -> dict[str, int]:
    """The status of every operation, asked as its documentation shows."""
    statuses = {}
    for path, methods in app.openapi()["paths"].items():
        for method, operation in methods.items():
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
            asked = None if body is None else _example(app, body)
            place = re.sub(r"{user_id}", "u1", re.sub(r"{item_id}", "i1", path))
            response = client.request(method.upper(), place, json=asked)
            statuses[operation["operationId"]] = response.status_code
    return statuses


def test_no_operation_blocks_the_event_loop(
    store: OnlineStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(2):
        write_toy_bundle(tmp_path / f"run-{seed}" / "bundle", seed=seed)
    bundle = Bundle.load(tmp_path / "run-0" / "bundle")
    runtime = RecommenderRuntime.from_bundle(bundle)
    app = create_app(
        runtime,
        store,
        seeding=Seeding(store, "v1", bundle.users),
        bundles=tmp_path,
        read_bundle=lambda path: Bundle.load(path),  # looked up when it is called: it is watched
    )
    watch = Watch(monkeypatch)
    with TestClient(app) as client:
        statuses = _ask_everything(app, client)
        version = write_toy_bundle(tmp_path / "run-2" / "bundle", seed=2).model_version
        for path, body in (
            ("/v1/recommend", {"user_id": "u2", "k": 3}),
            ("/v1/recommend:batch", {"requests": [{"user_id": "u3"}, {"history": ["i1"]}]}),
            ("/v1/events", {"event_id": "1", "user_id": "u2", "item_id": "i1"}),
            ("/v1/admin/models:load", {"bundle": "run-2"}),
            ("/v1/admin/models:activate", {"model_version": version}),
            ("/v1/recommend", {"user_id": "u2", "k": 3}),
        ):
            assert client.post(path, json=body).status_code == 200, path
    assert watch.on_loop == Counter()
    assert not {name for name, status in statuses.items() if status >= 500}
    for name in ("Connection.run", "RecommenderStage.lists", "CatalogSearch.find", "UserProfiles.read", "Bundle.load"):
        assert watch.elsewhere[name], f"nothing asked for {name}: the test proves nothing of it"


def test_the_watch_sees_what_blocks(monkeypatch: pytest.MonkeyPatch, app: FastAPI) -> None:
    watch = Watch(monkeypatch)

    @app.get("/block")
    async def block() -> None:
        time.sleep(0)

    with TestClient(app) as client:
        client.get("/block")
    assert watch.on_loop == {"time.sleep": 1}
