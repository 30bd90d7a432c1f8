from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from structlog.testing import capture_logs
from toy_bundle import GENRES, write_toy_bundle

from feature_store import OnlineStore
from recsys.bundle import Bundle
from recsys.data import Catalog
from recsys.errors import ArtifactError
from recsys.generator import Constraints, Recommendations
from serving.app import create_app
from serving.runtime import ModelInfo, RecommenderRuntime
from serving.warming import warm_up


def _ids(response: dict) -> list[str]:
    return [item["item_id"] for item in response["items"]]


def test_a_user_gets_unseen_items_with_everything_the_page_shows(client: TestClient) -> None:
    response = client.post("/v1/recommend", json={"user_id": "ann", "k": 5}).json()
    assert len(set(_ids(response))) == 5
    assert not set(_ids(response)) & {"i0", "i1", "i2"}
    assert response["source"] == "generator"
    assert response["fallback_reason"] is None
    assert response["model_version"] == "abc123"
    assert len(response["recommendation_id"]) == 32
    assert {"history", "constraints", "queue", "decode", "reasons", "total"} == set(response["timings_ms"])
    first = response["items"][0]
    index = int(first["item_id"][1:])
    assert first["sid"] == [index // 4, index % 4]
    assert first["source"] == "generator"
    assert first["score"] < 0
    assert first["reason"]["because"]["item_id"] in {"i0", "i1", "i2"}
    assert -1 <= first["reason"]["similarity"] <= 1
    scores = [item["score"] for item in response["items"]]
    assert scores == sorted(scores, reverse=True)


def test_an_ad_hoc_history_equals_the_same_stored_one(client: TestClient) -> None:
    stored = client.post("/v1/recommend", json={"user_id": "ann"}).json()
    ad_hoc = client.post("/v1/recommend", json={"history": ["i0", "i1", "i2"]}).json()
    assert ad_hoc["items"] == stored["items"]
    assert "history" not in ad_hoc["timings_ms"]


def test_filters_are_applied_inside_decoding_so_the_list_stays_full(client: TestClient) -> None:
    body = {"history": ["i1"], "k": 4, "categories": ["low"], "exclude": ["i4"]}
    assert sorted(_ids(client.post("/v1/recommend", json=body).json())) == ["i0", "i2", "i3", "i5"]


def test_a_list_is_shorter_only_when_nothing_else_is_permitted(client: TestClient) -> None:
    body = {"history": ["i1", "i0"], "k": 10, "categories": ["low"]}
    assert len(_ids(client.post("/v1/recommend", json=body).json())) == 4
    body["exclude_seen"] = False
    assert len(_ids(client.post("/v1/recommend", json=body).json())) == 6


@pytest.mark.parametrize("history", [["i23"], []])
def test_no_category_has_more_items_than_it_may(client: TestClient, history: list[str]) -> None:
    body = {"history": history, "k": 24, "max_per_category": 2}
    items = client.post("/v1/recommend", json=body).json()["items"]
    counts = Counter(category for item in items for category in item["categories"])
    assert counts == {"even": 2, "low": 2}
    # Odd items above the first six have no category, and no limit.
    assert {f"i{i}" for i in range(7, 23, 2)} <= {item["item_id"] for item in items}


def test_a_fusion_keeps_the_limit_of_a_category(tmp_path: Path) -> None:
    write_toy_bundle(tmp_path / "bundle", fusion=tmp_path / "fusion")
    runtime = RecommenderRuntime.from_bundle(Bundle.load(tmp_path / "bundle"))
    answer = runtime.recommend(["i1", "i2"], k=9, max_per_category=2)
    assert answer.source == "fusion"
    counts = Counter(category for pick in answer.picks for category in runtime.categories_of(pick.item))
    assert counts == dict.fromkeys(GENRES, 2)


def test_several_categories_are_a_union(client: TestClient) -> None:
    body = {"history": ["i23"], "k": 100, "categories": ["low", "even"]}
    expected = {f"i{i}" for i in range(24) if i < 6 or i % 2 == 0}
    assert set(_ids(client.post("/v1/recommend", json=body).json())) == expected


@pytest.mark.parametrize(("history", "reason"), [([], "empty_history"), (["nope"], "unknown_items")])
def test_without_a_usable_history_the_most_popular_items_are_the_answer(
    client: TestClient, history: list[str], reason: str
) -> None:
    body = {"history": history, "k": 3, "exclude": ["i1"], "categories": ["low"]}
    response = client.post("/v1/recommend", json=body).json()
    assert _ids(response) == ["i0", "i2", "i3"]
    assert response["source"] == response["items"][0]["source"] == "popularity"
    assert response["fallback_reason"] == reason
    assert response["unknown_items"] == history
    assert response["items"][0]["reason"] == {
        "text": "Popular: 24 interactions",
        "because": None,
        "similarity": None,
        "tags": [],
        "evidence": [],
    }


def test_a_user_whose_items_left_the_catalogue_gets_popular_ones(client: TestClient) -> None:
    response = client.post("/v1/recommend", json={"user_id": "ancient", "k": 1}).json()
    assert _ids(response) == ["i0"]
    assert response["fallback_reason"] == "unknown_items"


def test_unknown_items_are_ignored_and_named(client: TestClient) -> None:
    response = client.post("/v1/recommend", json={"history": ["i0", "x", "x"], "exclude": ["y"]}).json()
    assert response["unknown_items"] == ["x", "y"]
    assert response["source"] == "generator"


class BrokenRecommender:
    is_broken = False

    def recommend(self, histories, k: int, *, constraints: Constraints | None = None, sessions=None) -> Recommendations:
        if self.is_broken:
            raise RuntimeError("out of memory")
        return Recommendations(
            items=np.zeros((len(histories), k), dtype=np.int64), scores=np.zeros((len(histories), k), dtype=np.float32)
        )


def test_a_generator_that_always_fails_keeps_the_service_from_starting(make_runtime, store: OnlineStore) -> None:
    broken = BrokenRecommender()
    broken.is_broken = True
    with (
        pytest.raises(ArtifactError, match=r"the generator of toy cannot answer.*out of memory"),
        TestClient(create_app(make_runtime(broken), store)),
    ):
        pass


def test_an_empty_catalogue_keeps_the_service_from_starting() -> None:
    runtime = RecommenderRuntime(
        info=ModelInfo(name="toy", model_version="0", created_at=datetime(2026, 1, 1, tzinfo=UTC), libraries={}),
        catalog=Catalog(
            frame=pl.DataFrame(schema={"item_id": pl.String, "title": pl.String, "categories": pl.List(pl.String)})
        ),
        recommender=BrokenRecommender(),
        embeddings=np.empty((0, 2), dtype=np.float32),
        codes=np.empty((0, 2), dtype=np.int64),
        item_counts=np.empty(0, dtype=np.int64),
        report={},
    )
    with pytest.raises(ArtifactError, match="has no items"):
        warm_up(runtime)


def test_a_generator_that_fails_is_replaced_by_popularity(make_runtime, store: OnlineStore) -> None:
    broken = BrokenRecommender()
    with TestClient(create_app(make_runtime(broken), store)) as client:
        broken.is_broken = True
        response = client.post("/v1/recommend", json={"history": ["i0"], "k": 2})
    assert response.status_code == 200
    assert _ids(response.json()) == ["i1", "i2"]
    assert response.json()["fallback_reason"] == "generator_failed"


def test_an_unknown_user_is_a_404_that_says_what_to_do(client: TestClient) -> None:
    response = client.post("/v1/recommend", json={"user_id": "nobody"})
    assert response.status_code == 404
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["status"] == 404
    assert problem["fields"][0]["field"] == "user_id"
    assert "post an event" in problem["detail"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"user_id": "ann", "k": 0}, "k"),
        ({"user_id": "ann", "k": 101}, "k"),
        ({"user_id": "ann", "k": "many"}, "k"),
        ({"user_id": "ann", "history": []}, "body"),
        ({}, "body"),
        ({"history": ["i0", ""]}, "history[1]"),
        ({"history": ["i0"] * 501}, "history"),
        ({"user_id": "ann", "categories": ["nope"]}, "categories"),
        ({"user_id": "ann", "color": "red"}, "color"),
    ],
)
def test_a_bad_request_names_the_field(client: TestClient, body: dict, field: str) -> None:
    response = client.post("/v1/recommend", json=body)
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"
    assert [entry["field"] for entry in response.json()["fields"]] == [field]


def test_broken_json_is_a_problem_too(client: TestClient) -> None:
    response = client.post("/v1/recommend", content=b"{", headers={"content-type": "application/json"})
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"


def test_concurrent_requests_answer_as_single_ones_do(app: FastAPI) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with TestClient(app) as client:
        bodies = [{"history": [f"i{i}"], "k": 5} for i in range(12)]
        single = [client.post("/v1/recommend", json=body).json()["items"] for body in bodies]
        with ThreadPoolExecutor(6) as pool:
            together = list(pool.map(lambda body: client.post("/v1/recommend", json=body).json()["items"], bodies))
    for batched, alone in zip(together, single, strict=True):
        assert [item["item_id"] for item in batched] == [item["item_id"] for item in alone]
        # The same request in a batch of another size differs in its last bits.
        assert [item["score"] for item in batched] == pytest.approx([item["score"] for item in alone], abs=1e-5)


def test_a_fusion_is_asked_first_and_replaced_by_the_generator_then_by_popularity(
    make_runtime, store: OnlineStore
) -> None:
    fused, generator = BrokenRecommender(), BrokenRecommender()
    # Rendering a traceback for a terminal takes longer than a request may.
    with capture_logs(), TestClient(create_app(make_runtime(generator, fused), store)) as client:
        answers = []
        for fused.is_broken, generator.is_broken in ((False, False), (True, False), (True, True)):
            answers.append(client.post("/v1/recommend", json={"history": ["i0"], "k": 2}).json())
    assert [(answer["source"], answer["fallback_reason"]) for answer in answers] == [
        ("fusion", None),
        ("generator", "fusion_failed"),
        ("popularity", "generator_failed"),
    ]
    assert {item["source"] for item in answers[0]["items"]} == {"fusion"}
    assert all(_ids(answer) for answer in answers)


def test_a_fusion_that_fails_keeps_the_service_from_starting(make_runtime) -> None:
    broken = BrokenRecommender()
    broken.is_broken = True
    with pytest.raises(ArtifactError, match="the fusion of toy cannot answer"):
        warm_up(make_runtime(fused=broken))


class RecordingRecommender:
    def __init__(self) -> None:
        self.sessions: list[object] = []

    def recommend(self, histories, k: int, *, constraints: Constraints | None = None, sessions=None) -> Recommendations:
        self.sessions.append(sessions)
        return Recommendations(
            items=np.zeros((len(histories), k), dtype=np.int64), scores=np.zeros((len(histories), k), dtype=np.float32)
        )


def test_a_users_history_is_named_so_that_it_can_stay_encoded(make_runtime, store: OnlineStore) -> None:
    recorder = RecordingRecommender()
    with TestClient(create_app(make_runtime(recorder), store)) as client:
        recorder.sessions.clear()
        event = {"event_id": "e1", "user_id": "zoe", "item_id": "i1", "event_type": "click"}
        assert client.post("/v1/events", json=event).status_code < 300
        client.post("/v1/recommend", json={"user_id": "zoe"})
        client.post("/v1/recommend", json={"history": ["i0"]})
    assert recorder.sessions == [["zoe"], None]
