"""Items that come, change and go while a real bundle is served, over a real store, by one process and by two."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from toy_bundle import NUM_ITEMS, write_toy_bundle
from toy_encoder import write_toy_encoder

from feature_store import EmbeddedServer, OnlineStore
from recsys.bundle import Bundle
from recsys.errors import AssetError
from serving.answers import Query
from serving.app import create_app
from serving.runtime import RecommenderRuntime
from serving.settings import CatalogueSettings, ServingSettings

HISTORY = ["i3", "i7", "i11"]
HEAT = {"title": "Film number 99", "categories": ["Heist"], "attributes": {"year": "1995"}}
WORDS = ("film", "number", "drama", "comedy", "noir", "heist", "year", *map(str, range(100)))


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A bundle of each kind."""
    folder = tmp_path_factory.mktemp("live")
    encoder = write_toy_encoder(folder, WORDS, 16)
    write_toy_bundle(folder / "plain", encoder=encoder)
    write_toy_bundle(folder / "fused", encoder=encoder, fusion=folder / "fusion")
    return {"plain": folder / "plain", "fused": folder / "fused"}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    server = EmbeddedServer(tmp_path / "data")
    server.ensure_running()
    yield server
    server.stop()


@contextmanager
def serving(
    bundle: Bundle, server: EmbeddedServer, poll_s: float = 0.05, settings: ServingSettings | None = None
) -> Iterator[TestClient]:
    """A service of its own over the shared store."""
    store = OnlineStore.connect(f"unix://{server.socket_path}")
    settings = settings or ServingSettings(catalogue=CatalogueSettings(poll_s=poll_s))
    runtime = RecommenderRuntime.from_bundle(bundle, search_by=settings.search.by)
    with TestClient(create_app(runtime, store, settings)) as client:
        yield client


def wait_for(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.02)


def is_generatable(client: TestClient, item_id: str) -> bool:
    found = client.get(f"/v1/items/{item_id}")
    return found.status_code == 200 and found.json()["status"] == "generatable"


def listed(client: TestClient, **request: object) -> list[str]:
    answer = client.post("/v1/recommend", json={"history": HISTORY, "k": 10} | request)
    assert answer.status_code == 200, answer.text
    return [item["item_id"] for item in answer.json()["items"]]


@pytest.mark.parametrize("kind", ["plain", "fused"])
def test_an_item_comes_is_recommended_and_goes_in_every_process(
    paths: dict[str, Path], kind: str, server: EmbeddedServer
) -> None:
    bundle = Bundle.load(paths[kind])
    with serving(bundle, server) as client, serving(Bundle.load(paths[kind]), server) as other:
        assert client.post("/v1/recommend", json={"history": HISTORY, "categories": ["Heist"]}).status_code == 422
        change = client.put("/v1/items/heat", json=HEAT).json()
        assert change == {"item_id": "heat", "outcome": "created", "status": "retrievable", "catalog_version": 1}
        assert client.get("/v1/items/heat").json()["title"] == HEAT["title"]
        assert client.get("/v1/items", params={"query": "number 99"}).json()["items"][0]["item_id"] == "heat"
        wait_for(lambda: is_generatable(client, "heat"))
        item = client.get("/v1/items/heat").json()
        assert len(item["sid"]) == 2
        assert item["attributes"] == {"year": "1995"}
        answer = client.post("/v1/recommend", json={"history": HISTORY, "categories": ["Heist"]}).json()
        assert [entry["item_id"] for entry in answer["items"]] == ["heat"]
        assert answer["source"] == ("generator" if kind == "plain" else "fusion")
        assert answer["catalog_version"] == 2
        assert "heat" in listed(client, k=NUM_ITEMS + 1), "without a filter too"
        event = {"event_id": "1", "user_id": "zoe", "item_id": "heat"}
        assert client.post("/v1/events", json=event).json()["accepted"] == 1
        assert listed(client, history=["heat"]), "it is read in histories"

        wait_for(lambda: is_generatable(other, "heat"))
        assert other.get("/v1/items/heat").json() == item, "one semantic ID for all processes"
        assert listed(other, categories=["Heist"]) == ["heat"]

        cheaper = HEAT | {"title": "Film number 99, restored", "categories": ["Heist", "Drama"]}
        assert client.put("/v1/items/heat", json=cheaper).json()["outcome"] == "changed"
        assert client.put("/v1/items/heat", json=cheaper).json()["outcome"] == "unchanged"
        assert client.get("/v1/items/heat").json()["sid"] == item["sid"], "a change of the text moves nothing"
        assert "heat" in listed(client, categories=["Drama"], k=20)

        gone = other.delete("/v1/items/heat").json()
        assert (gone["outcome"], gone["status"]) == ("removed", "removed")
        assert other.delete("/v1/items/heat").json()["outcome"] == "unchanged"
        assert other.delete("/v1/items/i0").json()["outcome"] == "removed"
        wait_for(lambda: client.get("/v1/items/heat").status_code == 404 == client.get("/v1/items/i0").status_code)
    with serving(bundle, server) as client:
        for request in ({}, {"history": []}, {"history": ["heat", "i0"]}, {"categories": ["Drama"]}):
            assert not {"heat", "i0"} & set(listed(client, k=NUM_ITEMS + 1, exclude_seen=False, **request))
        assert client.get("/v1/items", params={"query": "film number 99"}).json()["items"] == []
        assert client.post("/v1/recommend", json={"history": HISTORY, "categories": ["Heist"]}).status_code == 422
        event = {"event_id": "2", "user_id": "zoe", "item_id": "i0"}
        assert client.post("/v1/events", json=event).json()["accepted"] == 1
        titles = [entry["title"] for entry in client.get("/v1/users/zoe").json()["history"]]
        assert titles == ["Film number 99, restored", "Film number 0"]
        assert client.get("/v1/model").json()["num_items"] == NUM_ITEMS - 1
        back = client.put("/v1/items/heat", json=HEAT).json()
        assert (back["outcome"], back["status"]) == ("created", "generatable")
        assert client.get("/v1/items/heat").json()["sid"] == item["sid"]


@pytest.mark.parametrize(
    ("kind", "with_it", "without_it"),
    [
        ("plain", {"generator", "generator_half", "generator_quarter", "dense", "similar", "words"}, set()),
        # Their dense stage is SASRec, which has learned a vector for each item that it knows.
        ("fused", {"fusion", "fusion_half", "fusion_quarter", "generator", "similar", "words"}, {"dense", "counter"}),
    ],
)
def test_every_source_knows_what_came_and_what_went(
    paths: dict[str, Path], server: EmbeddedServer, kind: str, with_it: set[str], without_it: set[str]
) -> None:
    with serving(Bundle.load(paths[kind]), server) as client:
        client.put("/v1/items/heat", json=HEAT)
        wait_for(lambda: is_generatable(client, "heat"))
        client.delete("/v1/items/i3")
        context = client.app.state.context  # type: ignore[attr-defined]
        runtime: RecommenderRuntime = context.runtime
        (heat,) = runtime.catalog.index_of(["heat"]).tolist()
        asked, _ = runtime.ask(Query(history=HISTORY[1:], k=NUM_ITEMS + 1, exclude_seen=False))
        stages = [stage for stage in runtime.all_stages if stage.name != "rank"]
        lists = {stage.name: answer.items for stage in stages if (answer := stage.lists([asked])[0])}
        assert {name for name, items in lists.items() if heat in items} == with_it
        assert {name for name, items in lists.items() if heat not in items} == without_it
        assert not any(3 in items for items in lists.values())
        assert 3 not in runtime.popular(asked).items
        assert heat in runtime.popular(asked).items


def test_an_item_that_waits_is_listed_by_all_but_the_generator(
    paths: dict[str, Path], server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.placing.BundlePlacer.vectors", lambda *_: time.sleep(3) or 1 / 0)
    with serving(Bundle.load(paths["plain"]), server) as client:
        client.put("/v1/items/waits", json={"title": "Film number 98", "categories": ["Drama", "Heist"]})
        runtime: RecommenderRuntime = client.app.state.context.runtime  # type: ignore[attr-defined]
        (waits,) = runtime.catalog.index_of(["waits"]).tolist()
        assert client.get("/v1/items/waits").json()["sid"] == []
        assert "waits" not in listed(client, k=NUM_ITEMS + 1)
        assert listed(client, categories=["Heist"]) == [], "the generator has nothing there, and says so"
        asked, _ = runtime.ask(Query(history=HISTORY, k=NUM_ITEMS + 1))
        dense = next(stage for stage in runtime.all_stages if stage.name == "dense")
        (found,) = dense.lists([asked])
        assert found is not None
        assert waits in found.items
        ranked = client.post("/v1/rank", json={"history": HISTORY, "items": ["i1", "waits"]}).json()
        assert ([item["item_id"] for item in ranked["items"]], ranked["unknown_items"]) == (["i1"], ["waits"])
        similar = client.post("/v1/similar-items", json={"item_id": "i1", "k": NUM_ITEMS}).json()
        assert "waits" in [item["item_id"] for item in similar["items"]]
        text = client.get("/metrics").text
        assert 'recsys_catalog_items{status="retrievable"} 1.0' in text


@pytest.mark.parametrize("kind", ["plain", "fused"])
def test_rules_and_further_lists_follow_the_catalogue(
    paths: dict[str, Path], server: EmbeddedServer, kind: str
) -> None:
    late = {"range": {"column": "year", "min": 1985}}
    settings = ServingSettings.model_validate({"filters": {"late": late}, "search": {"by": "text_encoder"}})
    with serving(Bundle.load(paths[kind]), server, settings=settings) as client:

        def ids(path: str, **request: object) -> tuple[set[str], dict[str, Any]]:
            answer = client.post(path, json=request)
            assert answer.status_code == 200, answer.text
            return {item["item_id"] for item in answer.json()["items"]}, answer.json()

        everything = {"history": HISTORY, "k": NUM_ITEMS, "exclude_seen": "none"}
        for asked in (late, {"named": "late"}):
            assert ids("/v1/recommend", **everything, filter=asked)[0] == {"i35", "i36", "i37", "i38", "i39"}
        moved = {"title": "Film number 4", "categories": ["Heist"], "attributes": {"year": "2030"}}
        assert client.put("/v1/items/i4", json=moved).json()["outcome"] == "changed"
        client.delete("/v1/items/i36")
        for asked in (late, {"named": "late"}):
            assert ids("/v1/recommend", **everything, filter=asked)[0] == {"i4", "i35", "i37", "i38", "i39"}
        assert ids("/v1/recommend", **everything, categories=["Heist"])[0] == {"i4"}
        pinned, answer = ids("/v1/recommend", **everything, pins=[{"item_id": "i36", "position": 1}])
        assert ("i36" in pinned, answer["dropped_pins"], answer["unknown_items"]) == (False, ["i36"], ["i36"])
        batch = client.post("/v1/recommend:batch", json={"requests": [everything]}).json()
        assert "i36" not in json.dumps(batch)
        assert client.post("/v1/similar-items", json={"item_id": "i36"}).status_code == 404
        assert "i36" not in ids("/v1/similar-items", item_id="i35", k=NUM_ITEMS)[0]
        ranked, answer = ids("/v1/rank", history=HISTORY, items=["i35", "i36"])
        assert (ranked, answer["unknown_items"]) == ({"i35"}, ["i36"])
        client.put("/v1/items/heat", json=HEAT)
        wait_for(lambda: is_generatable(client, "heat"))
        found, answer = ids("/v1/search", query="film number 99 heist", k=NUM_ITEMS)
        assert answer["source"] == "dense"
        assert "heat" in found
        assert "i36" not in found


def test_without_an_encoder_an_item_stands_where_its_categories_are(
    paths: dict[str, Path], server: EmbeddedServer
) -> None:
    bundle = Bundle.load(paths["plain"])

    class Missing:
        def encode_few(self, *_: object) -> np.ndarray:
            raise AssetError("the model is nowhere")

    bundle.__dict__["text_encoder"] = Missing()
    with serving(bundle, server) as client:
        client.put("/v1/items/new", json={"title": "Film number 98", "categories": ["Drama"]})
        wait_for(lambda: is_generatable(client, "new"))
        runtime: RecommenderRuntime = client.app.state.context.runtime  # type: ignore[attr-defined]
        mean = bundle.embeddings.vectors[::4].mean(axis=0)
        np.testing.assert_allclose(runtime.nearness.vectors.further[-1], mean, atol=1e-6)
        client.put("/v1/items/odd", json={"title": "Film number 97", "categories": ["Unheard of"]})
        time.sleep(0.3)
        assert client.get("/v1/items/odd").json()["status"] == "retrievable", "nothing tells where it belongs"


def test_a_store_that_is_gone_changes_nothing(paths: dict[str, Path], server: EmbeddedServer) -> None:
    with serving(Bundle.load(paths["plain"]), server) as client:
        client.delete("/v1/items/i0")
        server.stop()
        time.sleep(0.2)
        assert client.put("/v1/items/i1", json=HEAT).status_code == 503
        assert client.delete("/v1/items/i1").status_code == 503
        assert "i0" not in listed(client, k=NUM_ITEMS)
        assert client.get("/v1/items/i0").status_code == 404
        restarted = EmbeddedServer(server.data_dir)
        restarted.ensure_running()
        assert client.put("/v1/items/i1", json=HEAT).json()["outcome"] == "changed"
        restarted.stop()


def test_pages_go_on_over_changes_of_the_catalogue(paths: dict[str, Path], server: EmbeddedServer) -> None:
    with (
        serving(Bundle.load(paths["plain"]), server) as client,
        serving(Bundle.load(paths["plain"]), server, poll_s=1000) as other,
    ):
        client.put("/v1/items/heat", json=HEAT)
        wait_for(lambda: is_generatable(client, "heat"))
        first = client.post("/v1/recommend", json={"history": HISTORY, "k": 2, "depth": 38}).json()
        whole = listed(client, k=38)
        # This one has never looked: the cursor tells it that there is more than it knows.
        page = other.post("/v1/recommend:next", json={"cursor": first["next_cursor"], "k": 36}).json()
        assert [entry["item_id"] for entry in page["items"]] == whole[2:]
        assert page["catalog_version"] == 2
        client.delete(f"/v1/items/{whole[5]}")
        page = client.post("/v1/recommend:next", json={"cursor": first["next_cursor"], "k": 36}).json()
        assert [entry["item_id"] for entry in page["items"]] == whole[2:5] + whole[6:]
        assert page["next_cursor"] is None


def test_lines_are_judged_one_by_one(paths: dict[str, Path], server: EmbeddedServer) -> None:
    lines = [
        {"item_id": "i1", "title": "Renamed"},
        {"item_id": "n1", "title": "Film number 41", "categories": ["Noir"]},
        {"title": "nameless"},
        {"item_id": "n2", "price": 3},
        {"item_id": "n3", "attributes": {"price": "3"}},
        {"item_id": "n4", "attributes": {"year": ["1995"]}},
    ]
    body = "\n".join([*map(json.dumps, lines), "", "{", "\ud800"]).encode("utf-8", "surrogatepass")
    with serving(Bundle.load(paths["plain"]), server) as client:
        answer = client.post("/v1/items:bulk", content=body).json()
        assert [answer[name] for name in ("created", "changed", "unchanged", "rejected")] == [1, 1, 0, 6]
        assert [(entry["line"], entry["item_id"], entry["outcome"]) for entry in answer["results"][:3]] == [
            (1, "i1", "changed"),
            (2, "n1", "created"),
            (3, None, "rejected"),
        ]
        reasons = [entry["reason"] for entry in answer["results"] if entry["reason"]]
        assert reasons[0].startswith("item_id: Field required")
        assert reasons[2] == "attributes.price: the catalogue has no such column; it has year"
        assert reasons[3] == "attributes.year: must be a text"
        assert [entry["line"] for entry in answer["results"]] == [1, 2, 3, 4, 5, 6, 8, 9]
        again = client.post("/v1/items:bulk", content=body).json()
        assert [again[name] for name in ("created", "changed", "unchanged", "rejected")] == [0, 0, 2, 6]
        for wrong in (b"", b"\n\n", b"{}\n" * 5001):
            refused = client.post("/v1/items:bulk", content=wrong)
            assert refused.status_code == 422
            assert "1 to 5000 lines" in refused.json()["detail"]
        assert client.post("/v1/items:bulk", content=b"x" * 1_000_001).status_code == 413
        wait_for(lambda: is_generatable(client, "n1"))


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"attributes": {"title": "x"}}, "attributes.title"),
        ({"attributes": {"price": "3"}}, "attributes.price"),
        ({"attributes": {"year": 1995}}, "attributes.year"),
        ({"title": ""}, "title"),
        ({"categories": "Drama"}, "categories"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_what_is_no_item_of_the_catalogue_is_refused(
    client: TestClient, paths: dict[str, Path], server: EmbeddedServer, body: dict[str, object], field: str
) -> None:
    with serving(Bundle.load(paths["plain"]), server) as live:
        refused = live.put("/v1/items/i1", json=body)
        assert refused.status_code == 422
        assert refused.json()["fields"][0]["field"].startswith(field)


def test_a_model_that_takes_no_new_items_says_so_and_changes_those_it_has(client: TestClient) -> None:
    refused = client.put("/v1/items/new", json={"title": "x"})
    assert refused.status_code == 422
    assert "takes no new ones" in refused.json()["detail"]
    assert client.delete("/v1/items/new").status_code == 404
    assert client.put("/v1/items/i1", json={"title": "Renamed"}).json()["status"] == "generatable"
    assert client.get("/v1/items/i1").json()["title"] == "Renamed"


def test_a_model_that_is_loaded_knows_the_changes(
    paths: dict[str, Path], server: EmbeddedServer, tmp_path: Path
) -> None:
    write_toy_bundle(tmp_path / "next", seed=3)
    store = OnlineStore.connect(f"unix://{server.socket_path}")
    app = create_app(RecommenderRuntime.from_bundle(Bundle.load(paths["plain"])), store, bundles=tmp_path)
    with TestClient(app) as client:
        client.put("/v1/items/i5", json={"title": "Renamed"})
        client.delete("/v1/items/i0")
        assert client.post("/v1/admin/models:load", json={"bundle": "next"}).status_code == 200
        version = client.get("/v1/admin/models").json()["models"][1]["model_version"]
        assert client.post("/v1/admin/models:activate", json={"model_version": version}).status_code == 200
        assert client.get("/v1/model").json()["catalog_version"] == 2
        assert "i0" not in listed(client, k=NUM_ITEMS)
        assert client.get("/v1/items/i5").json()["title"] == "Renamed"


def test_processes_that_place_the_same_items_at_once_agree(
    paths: dict[str, Path], server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("feature_store.items.ItemLog.lease", lambda *_: True)
    with serving(Bundle.load(paths["plain"]), server) as one, serving(Bundle.load(paths["plain"]), server) as other:
        ids = [f"n{number}" for number in range(12)]
        # The same text is the same vector, so that all of them would like the same semantic ID.
        lines = [json.dumps(HEAT | {"item_id": item_id}) for item_id in ids]
        with ThreadPoolExecutor(2) as pool:
            for client, part in ((one, lines[:7]), (other, lines[5:])):
                pool.submit(client.post, "/v1/items:bulk", content="\n".join(part))
        wait_for(lambda: all(is_generatable(client, item_id) for client in (one, other) for item_id in ids))
        sids = [[client.get(f"/v1/items/{item_id}").json()["sid"] for item_id in ids] for client in (one, other)]
        assert sids[0] == sids[1]
        bundle = Bundle.load(paths["plain"])
        everything = [*map(tuple, sids[0]), *map(tuple, bundle.semantic_ids.codes.tolist())]
        assert len(set(everything)) == len(everything)


def test_changes_under_load_fail_no_request_and_no_answer_mixes_versions(
    paths: dict[str, Path], server: EmbeddedServer
) -> None:
    answers: list[dict[str, Any]] = []
    with serving(Bundle.load(paths["fused"]), server) as client:
        ends = threading.Event()

        def ask() -> None:
            while not ends.is_set():
                response = client.post("/v1/recommend", json={"history": HISTORY, "k": 20})
                assert response.status_code == 200
                answers.append(response.json())

        with ThreadPoolExecutor(3) as pool:
            asking = [pool.submit(ask) for _ in range(3)]
            removed = {client.delete(f"/v1/items/i{item}").json()["catalog_version"]: f"i{item}" for item in range(8)}
            client.put("/v1/items/heat", json=HEAT)
            wait_for(lambda: is_generatable(client, "heat"))
            ends.set()
            for each in asking:
                each.result()
    assert len({answer["catalog_version"] for answer in answers}) > 1
    for answer in answers:
        gone = {item for version, item in removed.items() if version <= answer["catalog_version"]}
        assert gone.isdisjoint(item["item_id"] for item in answer["items"])
        assert not answer["degraded"], answer["fallback_reason"]


def test_a_store_that_lost_everything_is_believed(paths: dict[str, Path], server: EmbeddedServer) -> None:
    with serving(Bundle.load(paths["plain"]), server) as client:
        client.put("/v1/items/heat", json=HEAT)
        wait_for(lambda: is_generatable(client, "heat"))  # else it is placed in the empty store, which is a change
        client.delete("/v1/items/i0")
        store = OnlineStore.connect(f"unix://{server.socket_path}")
        store.connection.client.flushall()
        store.close()
        wait_for(lambda: client.get("/v1/items/i0").status_code == 200)
        assert client.get("/v1/items/heat").status_code == 404
        assert client.get("/v1/model").json()["catalog_version"] == 0
        assert client.put("/v1/items/heat", json=HEAT).json()["outcome"] == "created"
