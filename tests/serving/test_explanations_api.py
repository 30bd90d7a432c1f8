"""What an answer says of how its list came about: codes, evidence, the stage, and the rules that touched it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from feature_store import OnlineStore
from recsys.data import Sequences
from recsys.generator import GenerativeRecommender
from serving.app import create_app
from serving.runtime import RecommenderRuntime
from serving.seeding import Seeding
from serving.settings import ExplorationSettings, ServingSettings

SNAPSHOT = Path(__file__).parent / "explanation.json"
"""Made of the toy model's answer to `REQUEST`. When it has to change, put what the failing test prints in its place."""
REQUEST = {
    "history": ["i1", "i4", "i9"],
    "k": 5,
    "details": True,
    "filter": {"contains": {"column": "categories", "value": "even"}},
    "exclude": ["i10"],
    "max_per": {"brand": 3},
    "pins": [{"item_id": "i8", "position": 2}, {"item_id": "i9", "position": 3}],
    "boosts": [
        {"weight": 0.4, "filter": {"eq": {"column": "brand", "value": "brand 2"}}},
        {"weight": -0.2, "item_ids": ["i16"]},
        {"weight": 5, "item_ids": ["i5"]},
    ],
    "diversity": 0.9,
}
SETTINGS = ServingSettings.model_validate(
    {"filters": {"titled": {"exists": {"column": "title"}}}, "always": ["titled"], "rerank_candidates": 20}
)


@pytest.fixture
def client(runtime: RecommenderRuntime, store: OnlineStore) -> Iterator[TestClient]:
    seeding = Seeding(store, "v1", {"ann": ["i0", "i1", "i2"]})
    with TestClient(create_app(runtime, store, SETTINGS, seeding=seeding)) as client:
        yield client


def _post(client: TestClient, operation: str, body: Mapping[str, Any]) -> dict[str, Any]:
    response = client.post(f"/v1/{operation}", json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def _rules(answer: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {rule["field"]: rule for rule in answer["details"]["rules"]}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 2)
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list) else value


def test_an_explained_list_is_the_one_that_was_written_down(client: TestClient) -> None:
    answer = _post(client, "recommend", REQUEST)
    kept = {"items": answer["items"], "details": answer["details"], "source": answer["source"]}
    found = json.dumps(_rounded(kept), indent=1)
    assert json.loads(found) == json.loads(SNAPSHOT.read_text()), found


def test_details_are_given_to_who_asks(client: TestClient) -> None:
    plain = _post(client, "recommend", {**REQUEST, "details": False})
    detailed = _post(client, "recommend", REQUEST)
    assert plain["details"] is None
    assert {item["code_log_probs"] for item in plain["items"]} == {None}
    assert [item["item_id"] for item in plain["items"]] == [item["item_id"] for item in detailed["items"]]


def test_the_codes_of_an_item_make_its_score(client: TestClient, runtime: RecommenderRuntime) -> None:
    answer = _post(client, "recommend", {"history": ["i1", "i4", "i9"], "k": 20, "details": True})
    assert isinstance(runtime.generator, GenerativeRecommender)
    history = Sequences.from_lists([runtime.catalog.index_of(["i1", "i4", "i9"])])
    items = runtime.catalog.index_of([item["item_id"] for item in answer["items"]])
    (expected,) = runtime.generator.score_codes(history, [items])
    np.testing.assert_allclose([item["code_log_probs"] for item in answer["items"]], expected, atol=1e-3)
    for item in answer["items"]:
        assert len(item["code_log_probs"]) == len(item["sid"])
        assert sum(item["code_log_probs"]) == pytest.approx(item["score"], abs=1e-3)


@pytest.mark.parametrize("rule", [{"diversity": 0.7}, {"boosts": [{"weight": 1, "item_ids": ["i3", "i7", "i22"]}]}])
def test_a_rule_that_moves_items_says_where_they_would_stand(client: TestClient, rule: dict[str, Any]) -> None:
    body = {"history": ["i1", "i4"], "k": 6, "details": True, "pins": [{"item_id": "i5", "position": 2}]}
    plain, moved = _post(client, "recommend", {**body, "k": 20}), _post(client, "recommend", body | rule)
    before, after = (
        {item["item_id"]: place for place, item in enumerate(answer["items"], 1)} for answer in (plain, moved)
    )
    ((field, fired),) = [
        each for each in _rules(moved).items() if each[0] not in ("pins[0]", "exclude_seen", "always.titled")
    ]
    assert field in ("diversity", "boosts[0]")
    assert fired["left_out"] == len([item for item, place in before.items() if place <= 6 and item not in after])
    assert {item["item_id"]: (item["place"], item["without"]) for item in fired["items"]} == {
        item: (place, before[item]) for item, place in after.items() if before[item] != place
    }
    assert fired["items"]


def test_what_exploration_draws_is_no_rules_doing(runtime: RecommenderRuntime, store: OnlineStore) -> None:
    settings = SETTINGS.model_copy(update={"exploration": ExplorationSettings(epsilon=1.0)})
    body = {"history": ["i1", "i4"], "k": 10, "details": True, "boosts": [{"weight": 0, "item_ids": ["i3"]}]}
    with TestClient(create_app(runtime, store, settings)) as client:
        assert _rules(_post(client, "recommend", body)).keys() == {"always.titled", "exclude_seen"}


def test_rules_without_effect_are_not_told_of(client: TestClient) -> None:
    body = {"history": ["i1"], "k": 3, "details": True, "exclude_seen": False, "max_per_category": 3, "exclude": ["no"]}
    body |= {"boosts": [{"weight": 1, "item_ids": ["i3"]}], "filter": {"exists": {"column": "brand"}}}
    assert _rules(_post(client, "recommend", body)).keys() == {"always.titled"}
    body["max_per_category"] = 1
    full = _rules(_post(client, "recommend", body))["max_per_category"]
    assert "even" in full["effect"]
    assert full["items"]


def test_similar_ranked_and_found_items_are_explained(client: TestClient) -> None:
    similar = _post(client, "similar-items", {"item_id": "i3", "k": 3, "details": True, "exclude": ["i4"]})
    assert (similar["details"]["stage"], similar["source"]) == ("similar", "dense")
    assert _rules(similar).keys() == {"always.titled", "exclude"}
    assert {item["code_log_probs"] for item in similar["items"]} == {None}
    assert [each["item_id"] for each in similar["items"][0]["reason"]["evidence"]] == ["i3"]
    ranked = _post(client, "rank", {"user_id": "ann", "items": ["i5", "i7"], "details": True})
    assert ranked["details"] == {"stage": "rank", "rules": []}
    for item in ranked["items"]:
        assert sum(item["code_log_probs"]) == pytest.approx(item["score"], abs=1e-3)
        assert len(item["reason"]["evidence"]) == 3
    found = _post(client, "search", {"query": "item 7", "k": 2, "details": True, "diversity": 0.5})
    assert found["details"]["stage"] == "words"
    for operation, body in [
        ("similar-items", {"item_id": "i3"}),
        ("rank", {"history": ["i1"], "items": ["i5"]}),
        ("search", {"query": "item"}),
    ]:
        assert _post(client, operation, {**body, "explain": "none"})["items"][0]["reason"] is None
        told = _post(client, operation, {**body, "explain": "intent"})
        assert told["items"][0]["reason"]["text"], "without a table evidence stands in"
        assert told["details"] is None


def test_the_stage_is_told_of_lists_that_no_generator_made(client: TestClient) -> None:
    popular = _post(client, "recommend", {"history": [], "details": True})
    assert popular["details"] == {"stage": "popularity", "rules": [_rules(popular)["always.titled"]]}
    assert {item["code_log_probs"] for item in popular["items"]} == {None}


def test_details_belong_to_the_first_page_and_to_entries_of_batches(client: TestClient) -> None:
    body = {"history": ["i1"], "k": 2, "depth": 4, "details": True}
    (entry,) = _post(client, "recommend:batch", {"requests": [body]})["results"]
    assert entry["answer"]["details"]["stage"] == "generator"
    page = _post(client, "recommend:next", {"cursor": entry["answer"]["next_cursor"]})
    assert (page["details"], page["items"][0]["code_log_probs"]) == (None, None)


def test_a_list_is_there_without_the_codes_that_cannot_be_told(
    client: TestClient, runtime: RecommenderRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(runtime.generator, "score_codes", fail)
    answer = _post(client, "recommend", {"history": ["i1"], "details": True})
    assert (answer["degraded"], answer["details"]["stage"]) == (False, "generator")
    assert {item["code_log_probs"] for item in answer["items"]} == {None}


def test_codes_that_take_for_ever_take_one_thread(
    client: TestClient, runtime: RecommenderRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, goes_on = [], threading.Event()

    def hang(*_: object, **__: object) -> None:
        begun.append(1)
        goes_on.wait()

    monkeypatch.setattr(runtime.generator, "score_codes", hang)
    try:
        for _ in range(3):
            body = {"history": ["i1"], "details": True}
            answer = client.post("/v1/recommend", json=body, headers={"X-Deadline-Ms": "300"})
            assert answer.status_code == 200
            assert {item["code_log_probs"] for item in answer.json()["items"]} == {None}
        assert len(begun) <= 1
    finally:
        goes_on.set()
