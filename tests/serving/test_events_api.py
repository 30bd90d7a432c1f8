from __future__ import annotations

import time

import pytest
from fastapi.testclient import TestClient

EVENT = {"event_id": "e1", "user_id": "ann", "item_id": "i9"}


def test_an_event_changes_the_next_recommendation_of_its_user_only(client: TestClient) -> None:
    def items(user: str) -> list[str]:
        response = client.post("/v1/recommend", json={"user_id": user, "k": 24}).json()
        return [item["item_id"] for item in response["items"]]

    before, other = items("ann"), items("bob")
    assert client.post("/v1/events", json=EVENT).json() == {"accepted": 1, "duplicates": 0, "rejected": []}
    assert "i9" in before
    assert "i9" not in items("ann")
    assert items("bob") == other


def test_an_event_posted_twice_counts_once(client: TestClient) -> None:
    client.post("/v1/events", json=EVENT)
    assert client.post("/v1/events", json=EVENT).json() == {"accepted": 0, "duplicates": 1, "rejected": []}
    history = client.get("/v1/users/ann").json()["history"]
    assert [entry["item_id"] for entry in history] == ["i0", "i1", "i2", "i9"]


def test_an_event_creates_an_unknown_user(client: TestClient) -> None:
    client.post("/v1/events", json=EVENT | {"user_id": "new"})
    assert client.post("/v1/recommend", json={"user_id": "new"}).json()["source"] == "generator"
    assert client.get("/v1/users", params={"query": "ne"}).json() == {"users": ["new"], "total": 1}


def test_events_of_a_list_are_judged_one_by_one(client: TestClient) -> None:
    client.post("/v1/events", json=EVENT)
    response = client.post(
        "/v1/events",
        json=[
            EVENT,
            EVENT | {"event_id": "e2", "item_id": "i10"},
            EVENT | {"event_id": "e3", "item_id": "unknown"},
            EVENT | {"event_id": "e1", "item_id": "i11"},
            EVENT | {"event_id": "e4", "timestamp": time.time() + 10 * 86_400},
            EVENT | {"event_id": "e5", "timestamp": -5},
        ],
    )
    assert response.status_code == 200
    body = response.json()
    assert (body["accepted"], body["duplicates"]) == (1, 1)
    reasons = {entry["event_id"]: entry["reason"] for entry in body["rejected"]}
    assert set(reasons) == {"e1", "e3", "e4", "e5"}
    assert "different event" in reasons["e1"]
    assert "no item 'unknown'" in reasons["e3"]
    assert "future" in reasons["e4"]
    assert "timestamp" in reasons["e5"]


def test_when_all_events_are_rejected_the_answer_is_422_with_the_reasons(client: TestClient) -> None:
    response = client.post("/v1/events", json=EVENT | {"item_id": "unknown"})
    assert response.status_code == 422
    problem = response.json()
    assert problem["accepted"] == 0
    assert problem["rejected"] == [{"event_id": "e1", "reason": "item_id: the catalogue has no item 'unknown'"}]
    assert "no item 'unknown'" in problem["detail"]


def test_milliseconds_are_refused_with_the_unit(client: TestClient) -> None:
    response = client.post("/v1/events", json=EVENT | {"timestamp": 1_700_000_000_000})
    assert response.status_code == 422
    assert "seconds since 1970 UTC" in response.json()["detail"]


def test_histories_follow_event_time_not_arrival(client: TestClient) -> None:
    for event_id, item, moment in [
        ("a", "i3", "2024-01-01T00:00:00Z"),
        ("b", "i4", 1600000000),
        ("c", "i5", "2024-01-01T01:00:00+02:00"),
        ("d", "i6", "2024-01-01T00:00:01"),
    ]:
        event = {"event_id": event_id, "user_id": "u", "item_id": item, "timestamp": moment, "event_type": "buy"}
        assert client.post("/v1/events", json=event).json()["accepted"] == 1
    history = client.get("/v1/users/u").json()["history"]
    assert [entry["item_id"] for entry in history] == ["i4", "i5", "i3", "i6"]
    assert history[0]["timestamp"] == "2020-09-13T12:26:40Z"
    assert history[0]["event_type"] == "buy"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"user_id": "ann", "item_id": "i1"}, "event.event_id"),
        ([EVENT, {"user_id": "ann", "item_id": "i1"}], "events[1].event_id"),
        (EVENT | {"event_type": "two words"}, "event.event_type"),
        (EVENT | {"timestamp": "yesterday"}, "event.timestamp"),
        (EVENT | {"timestamp": 1_700_000_000_000}, "event.timestamp"),
        (EVENT | {"timestamp": "1700000000000"}, "event.timestamp"),
        ([], "events"),
        ([EVENT] * 1001, "events"),
    ],
)
def test_a_malformed_post_stores_nothing_and_names_the_field(client: TestClient, body: object, field: str) -> None:
    response = client.post("/v1/events", json=body)
    assert response.status_code == 422
    assert [entry["field"] for entry in response.json()["fields"]] == [field]
    assert len(client.get("/v1/users/ann").json()["history"]) == 3
