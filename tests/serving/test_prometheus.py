from __future__ import annotations

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from serving.metrics import Metrics
from serving.runtime import RecommenderRuntime


def _series(client: TestClient) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    families = text_string_to_metric_families(client.get("/metrics").text)
    return {(sample.name, tuple(sorted(sample.labels.items()))) for family in families for sample in family.samples}


def _visit(client: TestClient, name: str) -> None:
    client.post("/v1/events", json={"event_id": name, "user_id": name, "item_id": "i1"})
    client.post("/v1/recommend", json={"user_id": name, "k": 3})
    client.post("/v1/recommend", json={"user_id": name + "?"})
    client.post("/v1/recommend", json={"history": [], "categories": [name]})
    for path in ("/v1/users/", "/v1/items/", "/v1/profiles/", "/dashboard/", "/", "/v1/users?query=", "/v1/"):
        client.get(path + name)
        client.request(name.upper(), path + name)
    client.get("/v1/model", headers={"X-Request-ID": name, "Authorization": f"Bearer {name}", "User-Agent": name})


def test_the_number_of_series_does_not_grow_with_users_paths_methods_or_headers(client: TestClient) -> None:
    _visit(client, "first")
    client.get("/metrics")
    before = _series(client)
    for number in range(8):
        _visit(client, f"visitor{number}")
    assert _series(client) == before
    assert len(before) < 1000


def test_requests_in_progress_are_counted_and_none_is_left_behind(app: FastAPI) -> None:
    seen = []

    @app.get("/look")
    def look() -> None:
        seen.append(app.state.context.metrics.registry.get_sample_value("recsys_requests_in_flight"))
        raise RuntimeError("boom")

    with TestClient(app, raise_server_exceptions=False) as client, capture_logs():
        client.get("/look")
    assert seen == [1]
    assert app.state.context.metrics.registry.get_sample_value("recsys_requests_in_flight") == 0


def test_served_items_are_counted_by_popularity(client: TestClient) -> None:
    client.post("/v1/recommend", json={"history": [], "k": 24})
    text = client.get("/metrics").text
    for decile, items in enumerate([3, 2, 3, 2, 2, 3, 2, 3, 2, 2]):
        assert f'recsys_recommended_items_total{{popularity_decile="{decile}"}} {items}.0' in text
    assert 'recsys_recommendation_drift{over="popularity"} NaN' in text


def test_drift_is_exported_once_there_is_enough_to_compare(
    runtime: RecommenderRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    metrics = Metrics(runtime.info)
    monkeypatch.setattr("serving.drift.ServedDrift.__init__.__defaults__", (lambda: now[0], 3600.0))
    metrics.watch_items(runtime.item_counts, runtime.codes.whole())
    for item in (0, 23):
        for _ in range(100):
            metrics.observe_recommendation(source="generator", fallback_reason=None, timings_ms={}, items=[item] * 10)
        now[0] += 3600
    assert metrics.registry.get_sample_value("recsys_recommendation_drift", {"over": "popularity"}) == 1
    assert metrics.registry.get_sample_value("recsys_recommendation_drift", {"over": "first_code"}) == 1


def test_every_metric_is_named_and_explained_as_prometheus_wants(client: TestClient) -> None:
    for family in text_string_to_metric_families(client.get("/metrics").text):
        if family.name.startswith("recsys_"):
            assert family.documentation.endswith("."), family.name
            assert not family.name.endswith(("_ms", "_milliseconds")), "seconds are the unit"
