"""Similar items, given items ranked, and items found by words: each against its slow twin, under the same rules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from scored_catalogue import score_catalogue
from structlog.testing import capture_logs
from tiny_lm import save_tiny_lm
from toy_bundle import write_toy_bundle

from feature_store import OnlineStore
from recsys.bundle import Bundle
from recsys.encoder import TextEncoder
from recsys.errors import ArtifactError, AssetError
from recsys.generator import Constraints, GenerativeRecommender, GeneratorConfig, ModelConfig, build_model
from recsys.retrieval.index import ItemIndex
from serving.app import create_app
from serving.lookups import PromptStage, TextStage
from serving.runtime import RecommenderRuntime
from serving.settings import ServingSettings

NUM_ITEMS = 24
VECTORS = np.random.default_rng(0).normal(size=(NUM_ITEMS, 8))  # as the toy's embeddings
Runtimes = Callable[..., RecommenderRuntime]


def _post(client: TestClient, path: str, status: int = 200, **body: Any) -> dict[str, Any]:
    response = client.post(f"/v1/{path}", json=body)
    assert response.status_code == status, response.text
    answer: dict[str, Any] = response.json()
    return answer


def _ids(answer: dict[str, Any]) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


def _scores(answer: dict[str, Any]) -> list[float]:
    return [item["score"] for item in answer["items"]]


def _directions() -> np.ndarray:
    return (VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)).astype(np.float32)


def _cosines(item: int) -> np.ndarray:
    return _directions() @ _directions()[item]


# --- similar items ---------------------------------------------------------------------------------------------------


def test_similar_items_are_those_of_the_nearest_vectors(client: TestClient) -> None:
    answer = _post(client, "similar-items", item_id="i4", k=23)
    cosines = _cosines(4)
    assert _ids(answer) == [f"i{item}" for item in np.argsort(-cosines) if item != 4]
    assert _scores(answer) == pytest.approx(sorted(np.delete(cosines, 4), reverse=True), abs=1e-5)
    assert (answer["source"], answer["fallback_reason"], answer["degraded"]) == ("dense", None, False)
    assert {item["reason"]["because"]["item_id"] for item in answer["items"]} == {"i4"}


def test_similar_items_keep_the_rules(client: TestClient) -> None:
    best = [f"i{item}" for item in np.argsort(-_cosines(4)) if item != 4]
    rules = {"filter": {"contains": {"column": "categories", "value": "even"}}, "exclude": ["i0"]}
    expected = [item for item in best if int(item[1:]) % 2 == 0 and item != "i0"]
    assert _ids(_post(client, "similar-items", item_id="i4", k=24, **rules)) == expected
    answer = _post(
        client, "similar-items", item_id="i4", k=6, max_per={"brand": 2}, pins=[{"item_id": best[-1], "position": 1}]
    )
    brands = [int(item[1:]) % 3 for item in _ids(answer)]
    assert _ids(answer)[0] == best[-1]
    assert sorted(brands) == [0, 0, 1, 1, 2, 2]


def test_what_the_catalogue_lacks_is_like_nothing(client: TestClient) -> None:
    problem = _post(client, "similar-items", 404, item_id="gone")
    assert [entry["field"] for entry in problem["fields"]] == ["item_id"]
    problem = _post(client, "similar-items", 422, item_id="i1", filter={"exists": {"column": "color"}})
    assert [entry["field"] for entry in problem["fields"]] == ["filter.exists.column"]


# --- ranking ---------------------------------------------------------------------------------------------------------


def _generator(runtime: RecommenderRuntime) -> GenerativeRecommender:
    stage = next(stage for stage in runtime.all_stages if stage.name == "rank")
    recommender: GenerativeRecommender = stage.recommender  # type: ignore[attr-defined]
    return recommender


@pytest.mark.parametrize("history", [["i1", "i5", "i2"], []])
def test_given_items_are_ranked_by_their_exact_probability(
    client: TestClient, runtime: RecommenderRuntime, history: list[str]
) -> None:
    items = ["i7", "i1", "i22", "gone", "i3", "i7"]
    answer = _post(client, "rank", history=history, items=items)
    exact = score_catalogue(_generator(runtime), np.array([int(item[1:]) for item in history], dtype=np.int64))
    expected = sorted([7, 1, 22, 3], key=lambda item: -exact[item])
    assert _ids(answer) == [f"i{item}" for item in expected]
    assert _scores(answer) == pytest.approx(exact[expected].tolist(), abs=1e-4)
    assert (answer["source"], answer["unknown_items"]) == ("generator", ["gone"])


def test_ranks_agree_with_recommendations_and_know_users(client: TestClient) -> None:
    listed = _post(client, "recommend", user_id="ann", k=8)
    answer = _post(client, "rank", user_id="ann", items=sorted(_ids(listed)))
    assert _ids(answer) == _ids(listed)
    assert _scores(answer) == pytest.approx(_scores(listed), abs=1e-4)
    assert _post(client, "rank", 404, user_id="nobody", items=["i1"])["fields"][0]["field"] == "user_id"
    assert _post(client, "rank", 422, items=["i1"])["detail"] == "body: give either user_id or history"


def test_items_of_which_none_is_known_are_no_list(client: TestClient) -> None:
    answer = _post(client, "rank", history=["i1"], items=["gone", "lost"])
    assert (_ids(answer), answer["unknown_items"]) == ([], ["gone", "lost"])


def test_ranking_that_fails_is_by_popularity(
    runtime: RecommenderRuntime, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_generator(runtime), "score", lambda *_, **__: 1 / 0)
    with capture_logs():
        answer = _post(client, "rank", history=["i1"], items=["i9", "i3", "i5"])
    assert _ids(answer) == ["i3", "i5", "i9"]
    assert (answer["source"], answer["fallback_reason"], answer["degraded"]) == (
        "popularity",
        "generator_failed",
        True,
    )


def test_ranking_without_the_store_is_of_nobody_in_particular(storeless_client: TestClient) -> None:
    answer = _post(storeless_client, "rank", user_id="ann", items=["i1", "i2"])
    assert (sorted(_ids(answer)), answer["fallback_reason"]) == (["i1", "i2"], "store_unavailable")


# --- search ----------------------------------------------------------------------------------------------------------


def test_words_are_found_in_titles_under_the_rules(client: TestClient) -> None:
    answer = _post(client, "search", query="item 1", k=5)
    listed = client.get("/v1/items", params={"query": "item 1", "limit": 5}).json()
    assert _ids(answer) == _ids(listed)
    assert (answer["source"], answer["fallback_reason"]) == ("words", None)
    assert answer["items"][0]["reason"]["text"] == "Found for item 1"
    assert _scores(answer) == sorted(_scores(answer), reverse=True)
    odd = _post(
        client, "search", query="item 1", filter={"not": {"contains": {"column": "categories", "value": "even"}}}
    )
    assert _ids(odd) == ["i1", "i11", "i13", "i15", "i17", "i19", "i21"][: len(_ids(odd))]
    assert _ids(_post(client, "search", query="item", k=9, max_per={"brand": 1}, exclude=["i0"])) == ["i1", "i2", "i6"]
    assert _ids(_post(client, "search", query="unheard of")) == []
    assert _post(client, "search", 422, query=" ")["fields"][0]["field"] == "query"


def test_popular_items_in_place_of_a_search_are_not_said_to_be_found(
    runtime: RecommenderRuntime, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime.words, "matches", lambda _: 1 / 0)
    with capture_logs():
        answer = _post(client, "search", query="item 9", k=2)
    assert (_ids(answer), answer["source"], answer["degraded"]) == (["i0", "i1"], "popularity", True)
    assert [item["reason"]["text"] for item in answer["items"]] == [f"Popular: {n} interactions" for n in (24, 23)]


class _Encoder:
    """Every text is the vector of the item whose number it ends with."""

    fails = False

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        if self.fails:
            raise RuntimeError("out of memory")
        return np.stack([VECTORS[int(text.split()[-1]) if text != "a" else 0] for text in texts]).astype(np.float32)


@pytest.fixture
def encoder() -> _Encoder:
    return _Encoder()


@pytest.fixture
def dense_client(make_runtime: Runtimes, store: OnlineStore, encoder: _Encoder) -> Iterator[TestClient]:
    with TestClient(create_app(make_runtime(searches=[TextStage(encoder, ItemIndex(_directions()))]), store)) as client:
        yield client


def test_where_an_encoder_is_loaded_a_search_is_by_meaning(dense_client: TestClient) -> None:
    answer = _post(dense_client, "search", query="something like item 4", k=24)
    assert _ids(answer) == [f"i{item}" for item in np.argsort(-_cosines(4), kind="stable")]
    assert answer["source"] == "dense"
    rules = {"filter": {"contains": {"column": "categories", "value": "low"}}, "max_per": {"brand": 1}}
    low = [item for item in np.argsort(-_cosines(4)) if item < 6]
    expected = [item for place, item in enumerate(low) if item % 3 not in {other % 3 for other in low[:place]}]
    assert _ids(_post(dense_client, "search", query="item 4", **rules)) == [f"i{item}" for item in expected]


def test_an_encoder_that_fails_is_replaced_by_words(dense_client: TestClient, encoder: _Encoder) -> None:
    encoder.fails = True
    with capture_logs():
        answer = _post(dense_client, "search", query="item 4")
    assert _ids(answer) == ["i4", "i14"]
    assert (answer["source"], answer["fallback_reason"], answer["degraded"]) == ("words", "dense_failed", True)


def test_a_language_model_generates_what_it_was_taught_to_find(
    make_runtime: Runtimes, store: OnlineStore, tmp_path: Path
) -> None:
    config = GeneratorConfig(
        model=ModelConfig.model_validate(
            {"shape": "flat", "max_history": 4, "lm": {"name": str(save_tiny_lm(tmp_path / "lm"))}}
        )
    )
    codes = np.stack([np.arange(NUM_ITEMS) // 4, np.arange(NUM_ITEMS) % 4], axis=1)
    torch.manual_seed(0)
    reader = GenerativeRecommender(config, codes, (6, 4), None, build_model(config, codes, (6, 4), None))
    expected = reader.search(["red shoes"], 5, constraints=Constraints(allow=np.arange(NUM_ITEMS) < 6))
    with TestClient(create_app(make_runtime(searches=[PromptStage(reader)]), store)) as client:
        answer = _post(client, "search", query="red shoes", k=5, categories=["low"])
    assert _ids(answer) == [f"i{item}" for item in expected.items[0]]
    assert answer["source"] == "generator"


def test_a_bundles_encoder_is_loaded_where_the_settings_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_toy_bundle(tmp_path)
    calls = []

    def encode(_: TextEncoder, texts: list[str]) -> np.ndarray:
        calls.append(texts)
        return np.ones((len(texts), 16), dtype=np.float32)

    monkeypatch.setattr(TextEncoder, "_encode", encode)
    names = [stage.name for stage in RecommenderRuntime.from_bundle(Bundle.load(tmp_path)).all_stages]
    assert (names[-3:], calls) == (["similar", "rank", "words"], [])
    assert ServingSettings().search.by == "words"
    dense = RecommenderRuntime.from_bundle(Bundle.load(tmp_path), search_by="text_encoder")
    assert [stage.name for stage in dense.all_stages][-4:] == ["similar", "rank", "search", "words"]
    assert calls == [["a"]]

    with pytest.raises(ArtifactError, match=r"knows no words; set search\.by to words or text_encoder"):
        RecommenderRuntime.from_bundle(Bundle.load(tmp_path), search_by="generator")

    def fail(_: TextEncoder, texts: list[str]) -> np.ndarray:
        raise AssetError("no such model")

    monkeypatch.setattr(TextEncoder, "_encode", fail)
    with pytest.raises(ArtifactError, match="the text encoder of toy cannot be used: no such model"):
        RecommenderRuntime.from_bundle(Bundle.load(tmp_path), search_by="text_encoder")
