"""An app with keys, for the tests of what guards it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from fastapi import FastAPI
from fastapi.testclient import TestClient

from feature_store import OnlineStore
from serving.app import create_app
from serving.guard.keys import KeyRing, create_key
from serving.guard.roles import ROLES, Role
from serving.runtime import RecommenderRuntime
from serving.seeding import Seeding
from serving.settings import ServingSettings


@dataclass(frozen=True, kw_only=True)
class Guarded:
    """An app, a client of it, the file of its keys and one key of each role, of clients named as the role."""

    app: FastAPI
    client: TestClient
    path: Path
    keys: dict[Role, str]

    def as_(self, role: Role) -> dict[str, str]:
        """Headers of a client with this role."""
        return {"Authorization": f"Bearer {self.keys[role]}"}


@contextmanager
def guarded_app(
    runtime: RecommenderRuntime, store: OnlineStore, folder: Path, settings: ServingSettings | None = None
) -> Iterator[Guarded]:
    """An app with keys over `store`."""
    path = folder / "keys.json"
    keys = {role: create_key(path, role, role) for role in ROLES}
    app = create_app(runtime, store, settings, seeding=Seeding(store, "v1", {"carla": ["i0"]}), keys=KeyRing(path))
    with TestClient(app) as client:
        yield Guarded(app=app, client=client, path=path, keys=keys)


class InProcess(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """Requests go to the app of a test client, in both colours."""

    def __init__(self, client: TestClient) -> None:
        self._app = client

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        headers = {name: value for name, value in request.headers.items() if name != "host"}
        answer = self._app.request(
            request.method, request.url.raw_path.decode(), content=request.read(), headers=headers
        )
        return httpx.Response(answer.status_code, headers=dict(answer.headers), content=answer.content)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        return await asyncio.to_thread(self.handle_request, request)
