"""The summary of the metrics that the page draws: the numbers of /metrics, without what only machines read."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from serving.path_metrics import PathMetrics
from serving.traffic import model_requests, traffic_of


def test_requests_lists_and_batches_are_counted(client: TestClient) -> None:
    for k in (1, 2, 3):
        assert client.post("/v1/recommend", json={"user_id": "ann", "k": k}).status_code == 200
    client.post("/v1/recommend", json={"history": []})
    client.post("/v1/recommend", json={"user_id": "nobody"})
    client.post("/v1/events", json={"event_id": "e", "user_id": "ann", "item_id": "i9"})
    client.get("/healthz")
    traffic = client.get("/v1/traffic").json()
    routes = {(each["method"], each["route"]): each for each in traffic["routes"]}
    assert set(routes) == {("POST", "/v1/recommend"), ("POST", "/v1/events")}
    recommend = routes["POST", "/v1/recommend"]
    assert recommend["statuses"] == {"200": 4, "404": 1}
    seconds = recommend["seconds"]
    assert seconds["count"] == 5
    assert seconds["counts"] == sorted(seconds["counts"])
    assert len(seconds["counts"]) == len(seconds["bounds"])
    assert seconds["counts"][-1] == 5
    assert 0 < seconds["sum"] < 50
    lists = {(each["source"], each["fallback_reason"]): each["lists"] for each in traffic["sources"]}
    assert lists == {("generator", None): 3, ("popularity", "empty_history"): 1}
    (stage,) = [each for each in traffic["stages"] if each["stage"] == "generator"]
    assert stage["batch_size"]["count"] == stage["batch_size"]["sum"] == 3
    assert stage["wait_seconds"]["count"] == 3
    assert traffic["certified"] == {"yes": 3}
    assert traffic["events"]["accepted"] == 1
    assert traffic["breakers"]["store"] == "closed"
    assert traffic["in_flight"] == 1
    assert traffic["at"] >= traffic["started"] > 0
    assert traffic["processes"] == [traffic["started"]]


def test_what_nobody_knows_is_null(client: TestClient) -> None:
    traffic = client.get("/v1/traffic").json()
    assert traffic["drift"] == {"popularity": None, "first_code": None}
    assert traffic["store"] == {"errors": 0, "offline_running": None, "lag_entries": None, "lag_seconds": None}
    assert traffic["sources"] == []


def test_a_distribution_is_that_of_its_observations() -> None:
    registry = CollectorRegistry()
    metrics = PathMetrics(registry)
    metrics.batch_ran("generator", size=3, seconds=0.1, waited_s=[0.002, 0.2, 7.0])
    metrics.queue_changed("generator", 4)
    traffic = traffic_of(registry.collect(), now=5.0)
    (stage,) = traffic.stages
    assert (stage.stage, stage.waiting, traffic.at, traffic.started) == ("generator", 4, 5.0, None)
    assert (stage.batch_size.count, stage.batch_size.sum) == (1, 3)
    upto = dict(zip(stage.batch_size.bounds, stage.batch_size.counts, strict=True))
    assert (upto[2], upto[4], upto[64]) == (0, 1, 1)
    waited = stage.wait_seconds
    assert (waited.count, waited.sum) == (3, pytest.approx(7.202))
    upto = dict(zip(waited.bounds, waited.counts, strict=True))
    assert (upto[0.001], upto[0.0025], upto[0.25], upto[5.0]) == (0, 1, 2, 2)


def test_what_several_processes_counted_is_taken_together() -> None:
    text = """\
# TYPE recsys_requests counter
recsys_requests_total{method="POST",route="/v1/recommend",status="200",worker="1"} 3.0
recsys_requests_total{method="POST",route="/v1/recommend",status="200",worker="2"} 4.0
# TYPE recsys_request_seconds histogram
recsys_request_seconds_bucket{le="0.1",method="POST",route="/v1/recommend",worker="1"} 2.0
recsys_request_seconds_bucket{le="+Inf",method="POST",route="/v1/recommend",worker="1"} 3.0
recsys_request_seconds_count{method="POST",route="/v1/recommend",worker="1"} 3.0
recsys_request_seconds_sum{method="POST",route="/v1/recommend",worker="1"} 0.5
recsys_request_seconds_bucket{le="0.1",method="POST",route="/v1/recommend",worker="2"} 4.0
recsys_request_seconds_bucket{le="+Inf",method="POST",route="/v1/recommend",worker="2"} 4.0
recsys_request_seconds_count{method="POST",route="/v1/recommend",worker="2"} 4.0
recsys_request_seconds_sum{method="POST",route="/v1/recommend",worker="2"} 0.25
# TYPE recsys_model_requests_in_flight gauge
recsys_model_requests_in_flight{model_version="a",worker="1"} 2.0
recsys_model_requests_in_flight{model_version="b",worker="1"} 0.0
recsys_model_requests_in_flight{model_version="a",worker="2"} 3.0
# TYPE recsys_offline_lag_seconds gauge
recsys_offline_lag_seconds{worker="1"} NaN
recsys_offline_lag_seconds{worker="2"} 1.5
# TYPE recsys_breaker_state gauge
recsys_breaker_state{part="store",worker="1"} 2.0
recsys_breaker_state{part="store",worker="2"} 0.0
# TYPE recsys_recommendation_drift gauge
recsys_recommendation_drift{over="popularity",worker="1"} NaN
# TYPE process_start_time_seconds gauge
process_start_time_seconds{worker="1"} 10.0
process_start_time_seconds{worker="2"} 20.0
"""
    assert model_requests(text_string_to_metric_families(text)) == {"a": 5, "b": 0}
    traffic = traffic_of(text_string_to_metric_families(text))
    (route,) = traffic.routes
    assert route.statuses == {"200": 7}
    assert (route.seconds.count, route.seconds.counts, route.seconds.sum) == (7, [6], 0.75)
    assert (traffic.started, traffic.processes, traffic.store.lag_seconds) == (10.0, [10.0, 20.0], 1.5)
    assert traffic.breakers == {"store": "open"}
    assert traffic.drift == {"popularity": None}
