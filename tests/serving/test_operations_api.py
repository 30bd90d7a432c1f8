from __future__ import annotations

import json
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from structlog.testing import capture_logs

from feature_store import OnlineStore
from serving.app import create_app
from serving.runtime import RecommenderRuntime
from serving.seeding import Seeding
from serving.settings import ServingSettings


def test_health_readiness_model_and_report(client: TestClient) -> None:
    assert client.get("/healthz").json()["status"] == "ok"
    assert client.get("/startupz").json()["status"] == "ok"
    assert client.get("/readyz").json() == {"status": "ok", "checks": {"phase": "ok", "model": "ok", "store": "ok"}}
    model = client.get("/v1/model").json()
    assert (model["name"], model["model_version"], model["num_items"]) == ("toy", "abc123", 24)
    assert client.get("/v1/report").json()["models"]["generator"]["ndcg@10"]["value"] == 0.1


def test_without_a_store_histories_of_the_request_still_work(storeless_client: TestClient) -> None:
    response = storeless_client.post("/v1/recommend", json={"history": ["i1"], "k": 3})
    assert response.status_code == 200
    assert len(response.json()["items"]) == 3
    assert storeless_client.get("/healthz").status_code == 200
    assert storeless_client.get("/v1/items/i1").status_code == 200


def test_without_a_store_a_user_gets_popular_items(storeless_client: TestClient) -> None:
    response = storeless_client.post("/v1/recommend", json={"user_id": "ann", "k": 2})
    assert response.status_code == 200
    answer = response.json()
    assert [item["item_id"] for item in answer["items"]] == ["i0", "i1"]
    assert (answer["source"], answer["fallback_reason"], answer["degraded"]) == (
        "popularity",
        "store_unavailable",
        True,
    )


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/events", {"event_id": "e", "user_id": "ann", "item_id": "i1"}),
        ("GET", "/v1/users/ann", None),
        ("GET", "/v1/users", None),
    ],
)
def test_what_needs_the_store_is_503_with_a_time_to_retry(
    storeless_client: TestClient, method: str, path: str, body: dict | None
) -> None:
    response = storeless_client.request(method, path, json=body)
    assert response.status_code == 503
    assert response.headers["retry-after"] == "2"
    assert response.headers["content-type"] == "application/problem+json"
    assert "retry is safe" in response.json()["detail"]
    assert "recsys_store_errors_total 1.0" in storeless_client.get("/metrics").text


def test_a_store_that_comes_back_is_seeded_then(runtime: RecommenderRuntime, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    store = OnlineStore.connect(f"unix://{tmp_path}/s/valkey.sock")
    app = create_app(runtime, store, seeding=Seeding(store, "v1", {"ann": ["i1"]}))
    with TestClient(app) as client:
        assert client.get("/readyz").json()["status"] == "degraded"
        server = OnlineStore.embedded(tmp_path / "s")
        assert client.get("/v1/users/ann").json()["history"][0]["item_id"] == "i1"
        assert client.get("/readyz").json()["status"] == "ok"
        server.close()


def test_metrics_count_every_status_by_route_template(client: TestClient) -> None:
    client.post("/v1/recommend", json={"history": ["i1"]})
    client.post("/v1/recommend", json={"history": []})
    client.post("/v1/recommend", json={"user_id": "nobody"})
    client.get("/v1/items/i1")
    client.get("/v1/items/i2")
    client.get("/no/such/path")
    client.get("/dashboard/app.js")
    client.get("/dashboard/nothing.js")
    client.post("/v1/events", json={"event_id": "e", "user_id": "ann", "item_id": "i1"})
    lines = client.get("/metrics").text.splitlines()
    for line in [
        'recsys_requests_total{method="POST",route="/v1/recommend",status="200"} 2.0',
        'recsys_requests_total{method="POST",route="/v1/recommend",status="404"} 1.0',
        'recsys_requests_total{method="GET",route="/v1/items/{item_id}",status="200"} 2.0',
        'recsys_requests_total{method="GET",route="unmatched",status="404"} 1.0',
        'recsys_requests_total{method="GET",route="/dashboard",status="200"} 1.0',
        'recsys_requests_total{method="GET",route="/dashboard",status="404"} 1.0',
        'recsys_recommendations_total{fallback_reason="",source="generator"} 1.0',
        'recsys_recommendations_total{fallback_reason="empty_history",source="popularity"} 1.0',
        'recsys_events_total{outcome="accepted"} 1.0',
        'recsys_model_info{model_version="abc123",name="toy"} 1.0',
        'recsys_stage_seconds_count{stage="decode"} 1.0',
    ]:
        assert line in lines


def test_a_request_keeps_its_harmless_id_and_gets_a_new_one_otherwise(client: TestClient) -> None:
    assert client.get("/healthz", headers={"X-Request-ID": "abc-1"}).headers["x-request-id"] == "abc-1"
    for bad in ("a b", "x" * 101, ""):
        assert len(client.get("/healthz", headers={"X-Request-ID": bad}).headers["x-request-id"]) == 32


def test_a_body_that_is_too_long_is_refused_declared_or_streamed(
    runtime: RecommenderRuntime, store: OnlineStore
) -> None:
    body = json.dumps({"history": ["i1"] * 50}).encode()
    headers = {"content-type": "application/json"}
    for limit, expected in ((len(body), 200), (len(body) - 1, 413)):
        with TestClient(create_app(runtime, store, ServingSettings(max_body_bytes=limit))) as client:
            declared = client.post("/v1/recommend", content=body, headers=headers)
            streamed = client.post("/v1/recommend", content=iter([body[:40], body[40:]]), headers=headers)
        assert (declared.status_code, streamed.status_code) == (expected, expected)
        if expected == 413:
            assert declared.json() == streamed.json()
            assert "several requests" in declared.json()["detail"]


def test_a_crash_is_a_500_problem_with_the_request_id_and_a_log_line(app: FastAPI) -> None:
    @app.get("/crash")
    def crash() -> None:
        raise RuntimeError("boom")

    with TestClient(app) as client, capture_logs() as logs:
        response = client.get("/crash")
        metrics = client.get("/metrics").text
    assert response.status_code == 500
    assert response.headers["x-request-id"] in response.json()["detail"]
    assert "boom" not in response.text
    assert any(entry["event"] == "request failed" for entry in logs)
    assert 'route="/crash",status="500"} 1.0' in metrics


def test_every_answer_keeps_the_browser_to_our_own_files(client: TestClient) -> None:
    for path in ("/", "/docs", "/v1/items", "/nope"):
        headers = client.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert (headers.get("cache-control") == "no-store") == path.startswith("/v1/")


def test_unknown_paths_and_methods_are_problems(client: TestClient) -> None:
    for response, status in ((client.get("/nope"), 404), (client.put("/v1/recommend"), 405)):
        assert response.status_code == status
        assert response.headers["content-type"] == "application/problem+json"
        assert "/docs" in response.json()["detail"]
