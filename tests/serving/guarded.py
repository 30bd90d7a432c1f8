"""An app with keys, for the tests of what guards it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI
from fastapi.testclient import TestClient

from feature_store import OnlineStore
from serving.app import create_app
from serving.guard.keys import KeyRing, create_key
from serving.guard.roles import ROLES, Role
from serving.runtime import RecommenderRuntime
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
    app = create_app(
        runtime, store, settings, seed=lambda: store.seed_histories("v1", [("carla", ["i0"])]), keys=KeyRing(path)
    )
    with TestClient(app) as client:
        yield Guarded(app=app, client=client, path=path, keys=keys)
