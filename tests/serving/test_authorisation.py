"""Every operation of the API by every role, walked from the OpenAPI document: a new operation has to be judged here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from guarded import Guarded, guarded_app

from feature_store import OnlineStore
from serving.app import create_app
from serving.guard.roles import PUBLIC_PATHS, ROLE_OF_OPERATION, ROLES, is_public
from serving.runtime import RecommenderRuntime
from serving.settings import ServingSettings

KNOWN_OPERATIONS = Path(__file__).with_name("operations.txt")


def _operations(app: FastAPI) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in app.openapi()["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


@pytest.fixture
def guarded(runtime: RecommenderRuntime, store: OnlineStore, tmp_path: Path) -> Iterator[Guarded]:
    with guarded_app(runtime, store, tmp_path) as guarded:
        yield guarded


def _ask(client: TestClient, method: str, path: str, headers: dict[str, str]) -> int:
    response = client.request(
        method, re.sub(r"{\w+}", "x", path), headers=headers, json={} if method in ("POST", "PUT") else None
    )
    if response.status_code in (401, 403):
        assert response.headers["content-type"] == "application/problem+json"
        assert "role" in response.json()["detail"] or "recsys keys create" in response.json()["detail"]
    return response.status_code


def test_every_operation_is_open_to_its_roles_and_to_no_others(guarded: Guarded) -> None:
    wrong = []
    for method, path, operation in _operations(guarded.app):
        needed = ROLE_OF_OPERATION[operation["operationId"]]
        nobody = {
            "no key": {},
            "another key": {"Authorization": "Bearer recsys_admin_guess"},
            "basic": {"Authorization": "Basic eDp5"},
        }
        for who, headers in nobody.items():
            status = _ask(guarded.client, method, path, headers)
            if (status == 401) != (needed is not None):
                wrong.append((method, path, who, status))
        for role in ROLES:
            status = _ask(guarded.client, method, path, guarded.as_(role))
            may = needed is None or ROLES.index(role) >= ROLES.index(needed)
            if (status == 403) == may or status == 401:
                wrong.append((method, path, role, status))
    assert wrong == []


def test_operations_their_names_and_their_roles_change_only_on_purpose(app: FastAPI) -> None:
    """Clients are generated from operation ids: a change here is a change of theirs. Edit operations.txt with care."""
    now = [
        f"{method} {path} {operation['operationId']} {operation.get('x-required-role', 'public')}"
        for method, path, operation in _operations(app)
    ]
    assert sorted(now) == KNOWN_OPERATIONS.read_text().splitlines()


def test_public_operations_are_those_on_public_paths(app: FastAPI) -> None:
    for _, path, operation in _operations(app):
        assert is_public(path) == (ROLE_OF_OPERATION[operation["operationId"]] is None), path
        assert ("security" in operation) != is_public(path)


def test_an_operation_without_a_role_is_the_administrators_alone(guarded: Guarded) -> None:
    @guarded.app.get("/v1/forgotten", operation_id="forgotten")
    def forgotten() -> str:
        return "secret"

    statuses = {role: _ask(guarded.client, "GET", "/v1/forgotten", guarded.as_(role)) for role in ROLES}
    assert statuses == {"read": 403, "write": 403, "admin": 200}


def test_unknown_paths_say_nothing_to_strangers(guarded: Guarded) -> None:
    assert guarded.client.get("/v1/nothing").status_code == 401
    assert guarded.client.get("/v1/nothing", headers=guarded.as_("read")).status_code == 404
    assert guarded.client.put("/v1/recommend").status_code == 401
    assert guarded.client.get("/dashboard/../v1/model").status_code == 401
    assert guarded.client.get("/dashboard/%2e%2e/v1/model").status_code in (401, 404)


def test_the_pages_need_no_key_and_hold_no_data(guarded: Guarded) -> None:
    for path in (*PUBLIC_PATHS, "/dashboard/app.js"):
        assert guarded.client.get(path).status_code == 200


def test_refusals_are_counted_and_challenge_as_the_standard_says(guarded: Guarded) -> None:
    missing = guarded.client.get("/v1/model")
    assert missing.headers["www-authenticate"] == 'Bearer realm="recsys"'
    unknown = guarded.client.get("/v1/model", headers={"Authorization": "Bearer nope"})
    assert 'error="invalid_token"' in unknown.headers["www-authenticate"]
    guarded.client.post("/v1/events", json={}, headers=guarded.as_("read"))
    lines = guarded.client.get("/metrics", headers=guarded.as_("read")).text.splitlines()
    for reason in ("no_key", "unknown_key", "role"):
        assert f'recsys_refused_total{{reason="{reason}"}} 1.0' in lines
    assert 'recsys_requests_total{method="GET",route="unmatched",status="401"} 2.0' in lines


def test_bytes_that_are_no_text_are_no_key(guarded: Guarded) -> None:
    for value in (b"Bearer \xff\xfe", b"Bearer", b"Bearer ", b"bearer \xc3\xbc" * 50, b"\x80"):
        assert guarded.client.get("/v1/model", headers={b"Authorization": value}).status_code == 401


def test_without_keys_a_local_service_answers_only_to_its_own_names(
    runtime: RecommenderRuntime, store: OnlineStore
) -> None:
    with TestClient(create_app(runtime, store, loopback_only=True)) as client:
        for host, status in (
            ("localhost:8000", 200),
            ("127.0.0.1", 200),
            ("[::1]:80", 200),
            ("evil.example", 421),
            ("localhost.evil.example", 421),
            ("", 421),
        ):
            assert client.get("/v1/model", headers={"host": host}).status_code == status, host


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:8000", 409),
        ("http://[::1]:8000", 409),
        ("https://shop.example", 409),
        (None, 409),
        ("https://evil.example", 403),
        ("http://localhost.evil.example", 403),
        ("null", 403),
    ],
)
def test_foreign_pages_change_nothing_in_a_local_service_without_keys(
    runtime: RecommenderRuntime, store: OnlineStore, origin: str | None, status: int
) -> None:
    settings = ServingSettings.model_validate({"guard": {"cors_origins": ["https://shop.example"]}})
    with TestClient(create_app(runtime, store, settings, loopback_only=True), base_url="http://localhost") as client:
        # A browser asks no permission for a POST without a body; 409: there is no model to go back to.
        response = client.post("/v1/admin/models:rollback", headers={} if origin is None else {"Origin": origin})
    assert response.status_code == status


def test_other_pages_may_call_the_api_only_if_named(
    runtime: RecommenderRuntime, store: OnlineStore, tmp_path: Path
) -> None:
    settings = ServingSettings.model_validate({"guard": {"cors_origins": ["https://shop.example"]}})
    with guarded_app(runtime, store, tmp_path, settings) as guarded:
        asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        ours = guarded.client.options("/v1/recommend", headers=asked | {"Origin": "https://shop.example"})
        assert (ours.status_code, ours.headers["access-control-allow-origin"]) == (200, "https://shop.example")
        others = guarded.client.options("/v1/recommend", headers=asked | {"Origin": "https://evil.example"})
        assert others.status_code == 400
        assert "access-control-allow-origin" not in others.headers
        got = guarded.client.get("/v1/model", headers=guarded.as_("read") | {"Origin": "https://shop.example"})
        assert "Retry-After" in got.headers["access-control-expose-headers"]
