"""The weights of a generator's objectives, chosen by each request."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from feature_store import OnlineStore
from recsys.generator import GenerativeRecommender
from serving.app import create_app
from serving.runtime import RecommenderRuntime

OBJECTIVES = ["accuracy", "novelty"]
HISTORY = ["i1", "i2", "i3"]


@pytest.fixture(scope="module")
def headed(make_runtime) -> GenerativeRecommender:
    """Two heads that differ much."""
    plain = make_runtime().all_stages[0].recommender
    assert isinstance(plain, GenerativeRecommender)
    return plain.with_objectives(OBJECTIVES, noise=0.5)


@pytest.fixture
def client(make_runtime, headed: GenerativeRecommender, store: OnlineStore) -> Iterator[TestClient]:
    with TestClient(create_app(make_runtime(headed), store)) as client:
        yield client


def _ask(client: TestClient, **further: object) -> list[tuple[str, float]]:
    response = client.post("/v1/recommend", json={"history": HISTORY, "k": 8, **further})
    assert response.status_code == 200, response.text
    assert response.json()["source"] == "generator"
    return [(item["item_id"], pytest.approx(item["score"], abs=1e-4)) for item in response.json()["items"]]


def test_a_request_weighs_the_objectives_and_the_next_one_is_as_before(
    client: TestClient, make_runtime, headed: GenerativeRecommender
) -> None:
    before = _ask(client)
    for weights in ({"accuracy": 1.0}, {"novelty": 2.0}, {"accuracy": 1.0, "novelty": 3.0}):
        alone: RecommenderRuntime = make_runtime(headed.weighted(weights))
        expected = [(f"i{pick.item}", pick.score) for pick in alone.recommend(HISTORY, k=8).picks]
        assert _ask(client, objectives=weights) == expected
    assert _ask(client, objectives={"accuracy": 1.0}) != _ask(client, objectives={"novelty": 1.0})
    assert _ask(client) == before


def test_the_model_says_what_can_be_weighed(client: TestClient) -> None:
    assert client.get("/v1/model").json()["objectives"] == {"accuracy": 0.5, "novelty": 0.5}


@pytest.mark.parametrize(
    ("objectives", "said"),
    [
        ({"speed": 1.0}, "'speed' is no objective of this model; it has accuracy, novelty"),
        ({"accuracy": 0.0}, "one above 0"),
        ({"accuracy": -1.0}, "greater than or equal to 0"),
    ],
)
def test_weights_that_make_no_sense_are_refused(client: TestClient, objectives: dict[str, float], said: str) -> None:
    response = client.post("/v1/recommend", json={"history": HISTORY, "objectives": objectives})
    assert response.status_code == 422
    assert said in response.text
    assert response.json()["fields"][0]["field"].startswith("objectives")


def test_a_model_with_one_head_and_the_mode_with_reasons_have_nothing_to_weigh(
    client: TestClient, make_runtime, store: OnlineStore
) -> None:
    request = {"history": HISTORY, "objectives": {"accuracy": 1.0}}
    assert "objectives" in client.post("/v1/recommend", json={**request, "mode": "reason"}).json()["detail"]
    with TestClient(create_app(make_runtime(), store)) as plain:
        assert plain.get("/v1/model").json()["objectives"] == {}
        response = plain.post("/v1/recommend", json=request)
    assert (response.status_code, response.json()["fields"][0]["field"]) == (422, "objectives")
