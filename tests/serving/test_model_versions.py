"""Models come and go while the service answers: verified, warmed up, swapped at once, rolled back, shadowed."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import toy_bundle
from fastapi.testclient import TestClient
from toy_bundle import write_toy_bundle

from feature_store import OnlineStore
from recsys.bundle import Bundle
from recsys.generator import GenerativeRecommender, Recommendations
from serving.answers import Query
from serving.app import create_app
from serving.context import ServingContext
from serving.runtime import RecommenderRuntime
from serving.settings import ServingSettings


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs with bundles of different weights."""
    root = tmp_path_factory.mktemp("runs")
    for seed in range(3):
        write_toy_bundle(root / f"run-{seed}" / "bundle", seed=seed)
    return root


@pytest.fixture
def client(runs: Path, store: OnlineStore) -> Iterator[TestClient]:
    runtime = RecommenderRuntime.from_bundle(Bundle.load(runs / "run-0" / "bundle"))
    with TestClient(create_app(runtime, store, bundles=runs)) as client:
        yield client


def _version(runs: Path, name: str) -> str:
    return str(json.loads((runs / name / "bundle" / "manifest.json").read_text())["model_version"])


def _post(client: TestClient, action: str, **body: object) -> dict[str, str]:
    response = client.post(f"/v1/admin/models:{action}", json=body)
    assert response.status_code == 200, response.text
    return {model["model_version"]: model["state"] for model in response.json()["models"]}


def _ask(client: TestClient, history: list[str]) -> tuple[str, tuple[str, ...]]:
    response = client.post("/v1/recommend", json={"history": history, "k": 5})
    assert response.status_code == 200, response.text
    answer = response.json()
    return answer["model_version"], tuple(item["item_id"] for item in answer["items"])


def test_a_model_is_loaded_activated_and_rolled_back(client: TestClient, runs: Path) -> None:
    old, new = _version(runs, "run-0"), _version(runs, "run-1")
    assert _post(client, "load", bundle="run-1") == {old: "active", new: "loaded"}
    assert _ask(client, ["i1"])[0] == old
    assert _post(client, "activate", model_version=new) == {old: "previous", new: "active"}
    assert _ask(client, ["i1"])[0] == new
    assert client.get("/v1/model").json()["model_version"] == new
    info = [line for line in client.get("/metrics").text.splitlines() if line.startswith("recsys_model_info{")]
    assert info == [f'recsys_model_info{{model_version="{new}",name="toy"}} 1.0']
    assert _post(client, "rollback") == {old: "active", new: "previous"}
    assert _ask(client, ["i1"])[0] == old
    assert _post(client, "unload", model_version=new) == {old: "active"}


def test_requests_in_progress_are_counted_by_their_model(client: TestClient, runs: Path) -> None:
    old, new = _version(runs, "run-0"), _version(runs, "run-1")
    _post(client, "load", bundle="run-1")
    with client.app.state.context.models.find(new).use():  # type: ignore[attr-defined]
        models = client.get("/v1/admin/models").json()["models"]
        assert {model["model_version"]: model["in_flight"] for model in models} == {old: 0, new: 1}
        assert f'recsys_model_requests_in_flight{{model_version="{new}"}} 1.0' in client.get("/metrics").text
    _post(client, "unload", model_version=new)
    assert f'recsys_model_requests_in_flight{{model_version="{new}"' not in client.get("/metrics").text


def test_a_request_may_name_a_loaded_model_and_then_is_answered_by_it(client: TestClient, runs: Path) -> None:
    old, new = _version(runs, "run-0"), _version(runs, "run-1")
    unknown = client.post("/v1/recommend", json={"history": ["i1"], "model_version": new})
    assert unknown.status_code == 422
    assert unknown.json()["fields"][0]["field"] == "model_version"
    assert f"there are: {old}" in unknown.json()["detail"]
    _post(client, "load", bundle="run-1")
    assert client.get("/v1/model").json()["loaded"] == [old, new]
    answers = {}
    for version in (old, new):
        answer = client.post("/v1/recommend", json={"history": ["i1"], "k": 5, "model_version": version}).json()
        assert answer["model_version"] == version
        answers[version] = tuple(item["item_id"] for item in answer["items"])
    assert _ask(client, ["i1"]) == (old, answers[old])
    _post(client, "activate", model_version=new)
    assert _ask(client, ["i1"]) == (new, answers[new])
    forced = client.post(
        "/v1/recommend", json={"history": ["i1"], "model_version": old}, headers={"X-Recsys-Variant": "a=b"}
    )
    assert forced.status_code == 403


def test_swaps_under_load_fail_no_request_and_every_answer_is_wholly_of_one_model(
    client: TestClient, runs: Path
) -> None:
    _post(client, "load", bundle="run-1")
    versions = [_version(runs, "run-0"), _version(runs, "run-1")]
    histories = [[f"i{item}"] for item in range(6)]
    expected = {}
    for version in versions:
        _post(client, "activate", model_version=version)
        expected |= {(version, tuple(history)): _ask(client, history)[1] for history in histories}
    done = Event()

    def keep_asking(history: list[str]) -> list[tuple[str, tuple[str, ...]]]:
        answers = []
        while not done.is_set():
            answers.append(_ask(client, history))
        return answers

    with ThreadPoolExecutor(len(histories)) as pool:
        asking = [pool.submit(keep_asking, history) for history in histories]
        for turn in range(10):
            time.sleep(0.05)
            _post(client, "activate", model_version=versions[turn % 2])
        done.set()
        answered = [future.result() for future in asking]
    seen = set()
    for history, answers in zip(histories, answered, strict=True):
        for version, items in answers:
            assert items == expected[version, tuple(history)]
            seen.add(version)
    assert seen == set(versions)


def test_a_request_that_ends_after_a_swap_to_a_smaller_catalogue_is_answered_by_its_own_model(
    runs: Path, store: OnlineStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toy_bundle, "NUM_ITEMS", 8)
    small = write_toy_bundle(tmp_path / "small").model_version
    runtime = RecommenderRuntime.from_bundle(Bundle.load(runs / "run-0" / "bundle"))
    began, swapped = Event(), Event()
    with TestClient(create_app(runtime, store, bundles=tmp_path)) as client, ThreadPoolExecutor(1) as pool:
        _post(client, "load", bundle="small")
        recommend = GenerativeRecommender.recommend

        def wait_for_the_swap(*asked: Any, **further: Any) -> Recommendations:
            began.set()
            assert swapped.wait(5)
            return recommend(*asked, **further)

        monkeypatch.setattr(GenerativeRecommender, "recommend", wait_for_the_swap)
        asked = {"history": ["i30"], "k": 20}
        asking = pool.submit(client.post, "/v1/recommend", json=asked, headers={"X-Deadline-Ms": "9000"})
        assert began.wait(5)
        _post(client, "activate", model_version=small)
        swapped.set()
        response = asking.result()
    assert response.status_code == 200
    assert response.json()["model_version"] == _version(runs, "run-0")
    assert len(response.json()["items"]) == 20


@pytest.mark.parametrize(
    ("damage", "status", "message"),
    [
        ("changed", 422, "catalog.parquet was changed"),
        ("missing", 422, "has no 'damaged'"),
        ("other data", 409, "is a model of 'books'"),
    ],
)
def test_a_bundle_that_cannot_serve_is_refused_and_the_old_one_goes_on(
    client: TestClient, runs: Path, tmp_path: Path, damage: str, status: int, message: str
) -> None:
    bundle = runs / "damaged"
    if damage != "missing":
        write_toy_bundle(bundle, seed=9)
    if damage == "changed":
        (bundle / "catalog.parquet").write_bytes(b"damaged")
    if damage == "other data":
        manifest = json.loads((bundle / "manifest.json").read_text())
        (bundle / "manifest.json").write_text(json.dumps(manifest | {"name": "books"}))
    response = client.post("/v1/admin/models:load", json={"bundle": "damaged"})
    if damage != "missing":
        bundle.rename(tmp_path / "gone")
    assert response.status_code == status
    assert message in response.json()["detail"]
    assert response.json()["fields"][0]["field"] == "bundle"
    assert _ask(client, ["i1"])[0] == _version(runs, "run-0")
    assert len(client.get("/v1/admin/models").json()["models"]) == 1


@pytest.mark.parametrize(
    ("action", "body", "message"),
    [
        ("load", {"bundle": "../run-0"}, "leads out"),
        ("load", {"bundle": "run-0"}, "in memory already"),
        ("activate", {"model_version": "nope"}, "no model 'nope'"),
        ("rollback", {}, "no model was active before"),
        ("shadow", {"model_version": "nope"}, "no model 'nope'"),
    ],
)
def test_what_is_impossible_is_a_conflict_that_says_why(
    client: TestClient, action: str, body: dict, message: str
) -> None:
    response = client.post(f"/v1/admin/models:{action}", json=body)
    assert response.status_code == 409
    assert message in response.json()["detail"]


@pytest.mark.parametrize("name", ["run-0\x00", "x" * 256])
def test_what_no_directory_can_be_called_is_refused(client: TestClient, name: str) -> None:
    response = client.post("/v1/admin/models:load", json={"bundle": name})
    assert response.status_code == 422
    assert response.json()["fields"][0]["field"] == "bundle"


def test_the_active_model_is_neither_unloaded_nor_its_own_shadow(client: TestClient, runs: Path) -> None:
    version = _version(runs, "run-0")
    for action in ("unload", "shadow"):
        response = client.post(f"/v1/admin/models:{action}", json={"model_version": version})
        assert response.status_code == 409
        assert "is active" in response.json()["detail"]


def test_a_shadow_sees_requests_and_answers_none(client: TestClient, runs: Path) -> None:
    active, shadow = _version(runs, "run-0"), _version(runs, "run-2")
    _post(client, "load", bundle="run-2")
    assert _post(client, "shadow", model_version=shadow, share=1.0) == {active: "active", shadow: "shadow"}
    for item in range(4):
        assert _ask(client, [f"i{item}"])[0] == active
        count = f'recsys_shadow_agreement_count{{model_version="{shadow}"}} {item + 1:.1f}'
        ends = time.monotonic() + 30
        while count not in client.get("/metrics").text:
            assert time.monotonic() < ends
    assert _post(client, "shadow", model_version=None) == {active: "active", shadow: "loaded"}
    _ask(client, ["i1"])
    time.sleep(0.05)
    assert count in client.get("/metrics").text


def test_a_service_without_a_directory_of_bundles_loads_none(runtime: RecommenderRuntime, store: OnlineStore) -> None:
    with TestClient(create_app(runtime, store)) as client:
        response = client.post("/v1/admin/models:load", json={"bundle": "x"})
    assert response.status_code == 409
    assert "recsys serve" in response.json()["detail"]


def test_a_shadow_that_is_unloaded_at_once_still_ends_what_it_was_shown(runs: Path, store: OnlineStore) -> None:
    runtime = RecommenderRuntime.from_bundle(Bundle.load(runs / "run-0" / "bundle"))
    context = ServingContext(runtime, store, ServingSettings(), bundles=runs)

    async def scenario() -> str:
        shadow = await context.models.load("run-1")
        query = Query(history=["i1"], k=3)
        context.models.set_shadow(shadow.version, 1.0)
        context.models.show_to_shadow(query, runtime.recommend(["i1"], k=3), str)
        context.models.unload(shadow.version)
        assert shadow.in_flight == 1
        async with asyncio.timeout(5):
            while shadow.in_flight:
                await asyncio.sleep(0.005)
        return context.metrics.render().decode()

    metrics = asyncio.run(scenario())
    assert re.search(r"recsys_batch_size_count\{[^}]*\} 1\.0", metrics)
    assert "recsys_shadow_agreement_count" in metrics
    assert "recsys_shadow_failures_total{" not in metrics
