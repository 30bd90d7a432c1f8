"""Mode `reason`: a real, tiny language model writes; the texts come with the list, and nobody else waits."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from tiny_lm import save_tiny_lm

from feature_store import OnlineStore
from recsys.data import Sequences
from recsys.generator import Constraints, GenerativeRecommender, GeneratorConfig, ModelConfig, build_model
from recsys.generator.lm.reason import ReasonConfig, recommend_with_reasons
from serving import stages as serving_stages
from serving.app import create_app
from serving.runtime import NoReasonsError, RecommenderRuntime
from serving.settings import ServingSettings

REASON = ReasonConfig(chains=2, max_tokens=5)


@pytest.fixture(scope="module")
def reasoner(tmp_path_factory: pytest.TempPathFactory) -> GenerativeRecommender:
    source = save_tiny_lm(tmp_path_factory.mktemp("lm"))
    config = GeneratorConfig(
        model=ModelConfig.model_validate({"shape": "flat", "max_history": 4, "lm": {"name": str(source)}})
    )
    index = np.arange(24)
    codes = np.stack([index // 4, index % 4], axis=1)
    torch.manual_seed(0)
    return GenerativeRecommender(config, codes, (6, 4), None, build_model(config, codes, (6, 4), None))


@pytest.fixture
def reasoning_client(make_runtime, reasoner: GenerativeRecommender, store: OnlineStore) -> Iterator[TestClient]:
    with TestClient(create_app(make_runtime(reasoner=reasoner), store, ServingSettings(reason=REASON))) as client:
        yield client


def test_the_answer_holds_the_reasons_and_what_follows_from_them(
    reasoning_client: TestClient, reasoner: GenerativeRecommender
) -> None:
    body = {"history": ["i0", "i5"], "k": 4, "mode": "reason", "categories": ["low"]}
    response = reasoning_client.post("/v1/recommend", json=body).json()
    allow = np.arange(24) < 6
    expected = recommend_with_reasons(
        reasoner,
        Sequences.from_lists([[0, 5]]),
        4,
        REASON,
        constraints=Constraints(allow=allow, deny=[np.array([0, 5])]),
    )
    assert response["chains"] == expected.chains[0]
    assert len(response["chains"]) == 2
    items = expected.recommendations.items[0]
    assert [item["item_id"] for item in response["items"]] == [f"i{item}" for item in items]
    assert {item["source"] for item in response["items"]} == {response["source"]} == {"reasoning"}
    assert response["fallback_reason"] is None


def test_directly_there_are_no_reasons(reasoning_client: TestClient) -> None:
    response = reasoning_client.post("/v1/recommend", json={"history": ["i0"], "k": 2}).json()
    assert (response["source"], response["chains"]) == ("generator", [])


def test_without_a_usable_history_nothing_is_reasoned_about(reasoning_client: TestClient) -> None:
    response = reasoning_client.post("/v1/recommend", json={"history": [], "k": 2, "mode": "reason"}).json()
    assert (response["source"], response["fallback_reason"], response["chains"]) == (
        "popularity",
        "empty_history",
        [],
    )


def test_a_model_that_cannot_reason_says_so_in_one_line(client: TestClient, runtime: RecommenderRuntime) -> None:
    response = client.post("/v1/recommend", json={"user_id": "ann", "mode": "reason"})
    assert response.status_code == 422
    problem = response.json()
    assert [entry["field"] for entry in problem["fields"]] == ["mode"]
    assert problem["detail"] == "this model gives no reasons in words; or ask with mode direct"
    with pytest.raises(NoReasonsError, match="gives no reasons"):
        runtime.recommend(["i0"], k=1, mode="reason")


def test_reasoning_that_fails_is_replaced_by_a_list_without_reasons(
    reasoning_client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(serving_stages, "recommend_with_reasons", fail)
    response = reasoning_client.post("/v1/recommend", json={"history": ["i0"], "k": 2, "mode": "reason"}).json()
    assert (response["source"], response["fallback_reason"], response["chains"]) == (
        "generator",
        "reasoning_failed",
        [],
    )


def test_other_requests_are_answered_while_reasons_are_written(
    reasoning_client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, end = threading.Event(), threading.Event()

    def slow(*arguments: object, **options: object) -> object:
        begun.set()
        assert end.wait(20)
        return recommend_with_reasons(*arguments, **options)

    monkeypatch.setattr(serving_stages, "recommend_with_reasons", slow)
    with ThreadPoolExecutor(4) as pool:
        body = {"history": ["i0"], "k": 2, "mode": "reason"}
        reasoned = [pool.submit(reasoning_client.post, "/v1/recommend", json=body) for _ in range(3)]
        assert begun.wait(20)
        try:
            direct = reasoning_client.post("/v1/recommend", json={"history": ["i0"], "k": 2})
            assert direct.json()["source"] == "generator"
            assert not any(future.done() for future in reasoned)
        finally:
            end.set()
        assert [future.result().json()["source"] for future in reasoned] == ["reasoning"] * 3


def test_a_request_for_reasons_makes_no_line_for_the_others(
    reasoning_client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, may_go_on = threading.Event(), threading.Event()

    def wait(*asked: Any, **further: Any) -> Any:
        began.set()
        assert may_go_on.wait(5)
        return recommend_with_reasons(*asked, **further)

    monkeypatch.setattr(serving_stages, "recommend_with_reasons", wait)
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(reasoning_client.post, "/v1/recommend", json={"history": ["i0"], "mode": "reason"})
        assert began.wait(5)
        metrics = reasoning_client.get("/metrics").text
        may_go_on.set()
        assert asking.result().json()["source"] == "reasoning"
    assert "recsys_requests_pending 0.0" in metrics
