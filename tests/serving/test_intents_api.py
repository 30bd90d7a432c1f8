"""Reasons by intent and the interests of users, over a real bundle with the table that `recsys intents build` makes."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from chat_server import serve_chat
from fastapi.testclient import TestClient
from toy_bundle import write_toy_bundle
from typer.testing import CliRunner

from feature_store import OnlineStore
from recsys.bundle import Bundle, read_manifest
from recsys.cli.main import build_app
from recsys.data import Catalog
from recsys.profile.attributes import ItemAttributes
from recsys.profile.intents.table import IntentTable
from serving.app import create_app
from serving.intents import UserIntents
from serving.runtime import RecommenderRuntime
from serving.seeding import Seeding
from serving.settings import ServingSettings

SETTINGS = "tags: {max_share: 0.3}\n"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose bundle has intents."""
    folder = tmp_path_factory.mktemp("run")
    write_toy_bundle(folder / "bundle")
    (folder / "intents.yaml").write_text(SETTINGS)
    result = CliRunner().invoke(
        build_app(), ["intents", "build", str(folder), "--settings", str(folder / "intents.yaml"), "--json"]
    )
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert (facts["explainer"], facts["explanations_passed"], facts["users"]) == ("rules", 1.0, 12)
    return folder


@pytest.fixture(scope="module")
def bundle(run_dir: Path) -> Bundle:
    return Bundle.load(run_dir / "bundle")


@pytest.fixture(scope="module")
def told(bundle: Bundle) -> RecommenderRuntime:
    return RecommenderRuntime.from_bundle(bundle)


@contextmanager
def serving(
    runtime: RecommenderRuntime, bundle: Bundle, folder: Path, settings: ServingSettings | None = None
) -> Iterator[TestClient]:
    store = OnlineStore.embedded(folder / "store")
    seeding = Seeding(store, "v1", bundle.users)
    try:
        with TestClient(create_app(runtime, store, settings, seeding=seeding)) as client:
            yield client
    finally:
        store.close()


@pytest.fixture
def client(told: RecommenderRuntime, bundle: Bundle, tmp_path: Path) -> Iterator[TestClient]:
    with serving(told, bundle, tmp_path) as client:
        yield client


def asked(client: TestClient, **request: Any) -> list[dict[str, Any]]:
    response = client.post("/v1/recommend", json={"user_id": "u1", "k": 10, **request})
    assert response.status_code == 200, response.text
    items: list[dict[str, Any]] = response.json()["items"]
    return items


def test_an_item_is_explained_by_a_tag_of_the_users_interests(client: TestClient) -> None:
    interests = client.get("/v1/interests/u1").json()["interests"]
    tags = {tag["name"] for interest in interests for tag in interest["tags"]}
    history = [entry["item_id"] for entry in client.get("/v1/users/u1").json()["history"]]
    items = asked(client, explain="intent")
    explained = [item for item in items if item["reason"]["tags"]]
    assert len(explained) >= 5
    for item in explained:
        (tag,) = item["reason"]["tags"]
        assert tag in tags
        assert item["reason"]["text"].startswith(f"Fits your interest in {tag}")
        assert tag.split()[-1] in item["categories"]
        assert 1 <= len(item["reason"]["evidence"]) <= 3
        assert {each["item_id"] for each in item["reason"]["evidence"]} <= set(history)


@pytest.mark.parametrize("suffix", ["/interests", "/", "/a/b"])
def test_every_user_id_has_interests_and_a_history(client: TestClient, suffix: str) -> None:
    user = f"new{suffix}"
    events = [{"event_id": item, "user_id": user, "item_id": item} for item in ("i1", "i2")]
    assert client.post("/v1/events", json=events).json()["accepted"] == 2
    assert [entry["item_id"] for entry in client.get(f"/v1/users/{user}").json()["history"]] == ["i1", "i2"]
    assert client.get(f"/v1/interests/{user}").json()["user_id"] == user


def test_a_changed_item_is_explained_by_what_it_is_now(client: TestClient) -> None:
    changed = next(item for item in asked(client, explain="intent") if item["reason"]["tags"])
    item_id, (old,) = changed["item_id"], changed["reason"]["tags"]
    body = {"title": changed["title"], "categories": ["Documentary"]}
    assert client.put(f"/v1/items/{item_id}", json=body).json()["outcome"] == "changed"
    model = lambda: client.app.state.context.model  # type: ignore[attr-defined]  # noqa: E731
    deadline, was_old = time.monotonic() + 30, True
    while was_old:  # once more after they are renewed
        was_old = model().has_old_texts
        (now,) = [item for item in asked(client, explain="intent", k=40) if item["item_id"] == item_id]
        assert old not in now["reason"]["tags"]
        assert now["reason"]["text"].startswith("Similar to")
        assert time.monotonic() < deadline
    assert not model().intents.is_old


def test_what_fits_no_tag_keeps_its_evidence(client: TestClient) -> None:
    history = ["i0", "i4", "i8"]  # dramas
    items = asked(client, user_id=None, history=history, explain="intent", k=20)
    other = [item for item in items if "Drama" not in item["categories"] and not item["reason"]["tags"]]
    assert other
    for item in other:
        assert item["reason"]["text"].startswith("Similar to Film number")
        assert {each["item_id"] for each in item["reason"]["evidence"]} <= set(history)


def test_by_default_reasons_are_those_of_before_with_evidence(client: TestClient) -> None:
    assert asked(client) == asked(client, explain="evidence")
    for item in asked(client):
        reason = item["reason"]
        assert reason["text"] == f"Similar to {reason['because']['title']}"
        assert reason["evidence"][0] == reason["because"]
        assert len(reason["evidence"]) == 3
        assert reason["tags"] == []


def test_no_reasons_are_given_to_who_wants_none(client: TestClient) -> None:
    assert {item["reason"] for item in asked(client, explain="none")} == {None}


def test_without_a_history_there_are_no_intents(client: TestClient) -> None:
    items = asked(client, user_id=None, history=[], explain="intent")
    assert {(tuple(item["reason"]["tags"]), tuple(item["reason"]["evidence"])) for item in items} == {((), ())}
    assert items[0]["reason"]["text"].startswith("Popular: ")


def test_further_pages_are_explained_too(client: TestClient) -> None:
    whole = asked(client, explain="intent", k=8)
    first = client.post("/v1/recommend", json={"user_id": "u1", "k": 4, "depth": 8, "explain": "intent"}).json()
    rest = client.post("/v1/recommend:next", json={"cursor": first["next_cursor"], "k": 4, "explain": "intent"}).json()
    assert [item["reason"] for item in first["items"] + rest["items"]] == [item["reason"] for item in whole]


def test_a_model_without_a_table_says_how_to_make_one(
    runtime: RecommenderRuntime, bundle: Bundle, tmp_path: Path
) -> None:
    with serving(runtime, bundle, tmp_path) as client:
        missing = client.get("/v1/interests/u1")
        assert (missing.status_code, "recsys intents build" in missing.json()["detail"]) == (404, True)


def test_a_model_without_a_table_explains_by_evidence(
    runtime: RecommenderRuntime, bundle: Bundle, tmp_path: Path
) -> None:
    """A rollback to an older bundle must not cost those who want intents their lists."""
    with serving(runtime, bundle, tmp_path) as client:
        request = {"user_id": None, "history": ["i0", "i4"], "k": 5}
        assert asked(client, **request, explain="intent") == asked(client, **request)
        assert 'recsys_explanations_total{origin="no_table"} 5.0' in client.get("/metrics").text


def test_an_unknown_user_has_no_interests(client: TestClient) -> None:
    missing = client.get("/v1/interests/nobody")
    assert (missing.status_code, missing.json()["fields"][0]["field"]) == (404, "user_id")


def test_the_table_is_a_verified_part_of_the_bundle_and_changes_its_version(run_dir: Path, tmp_path: Path) -> None:
    plain = write_toy_bundle(tmp_path / "plain")
    manifest = read_manifest(run_dir / "bundle")
    assert {file for file in manifest.files if file.startswith("intents/")} == {
        "intents/intents.json",
        "intents/parts.parquet",
        "intents/explanations.parquet",
    }
    assert manifest.model_version != plain.model_version
    assert (manifest.name, manifest.metrics, manifest.config) == (plain.name, plain.metrics, plain.config)


def test_a_table_that_is_older_than_the_catalogue_tells_no_lies(bundle: Bundle) -> None:
    """i20 was a drama when the table was made; now it is a comedy."""
    frame = bundle.catalog.frame.with_columns(
        categories=pl.when(pl.col("item_id") == "i20").then(pl.lit(["Comedy"])).otherwise("categories")
    )
    changed, table = Catalog(frame=frame), bundle.intents
    assert table is not None
    history = bundle.catalog.index_of(["i0", "i4", "i24", "i28"]).tolist()
    before = UserIntents(bundle.catalog, ItemAttributes(bundle.catalog), table).explain([20], history).reasons[0]
    assert before is not None
    assert (before.tag.name, before.origin) == ("Drama", "table")
    assert UserIntents(changed, ItemAttributes(changed), table).explain([20], history).reasons == [None]
    comedies = bundle.catalog.index_of(["i1", "i5", "i25", "i21"]).tolist()
    after = UserIntents(changed, ItemAttributes(changed), table).explain([20], comedies).reasons[0]
    assert after is not None
    assert (after.text, after.origin) == ("Fits your interest in Comedy, from the 1970s.", "written")


def test_a_text_of_the_table_that_breaks_the_rubric_is_not_shown(bundle: Bundle) -> None:
    table = bundle.intents
    assert table is not None
    lies = dict.fromkeys(table.texts, "The best Comedy that is a Drama!")
    broken: list[str] = []
    forged = IntentTable(
        config=table.config, vocabulary=table.vocabulary, texts=lies, explainer="x", metrics=table.metrics
    )
    intents = UserIntents(bundle.catalog, ItemAttributes(bundle.catalog), forged, on_broken=broken.append)
    reason = intents.explain([20], bundle.catalog.index_of(["i0", "i4", "i24", "i28"]).tolist()).reasons[0]
    assert reason is not None
    assert (reason.text, reason.origin) == ("Fits your interest in Drama, from the 1970s.", "written")
    assert broken == ["factual", "safe"]


class Chat:
    """A chat model behind a URL that says what it is told to say of a tag, when it may."""

    def __init__(self) -> None:
        self.says = "Because you asked for {tag}."
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.requests = 0

    @contextmanager
    def running(self) -> Iterator[str]:
        with serve_chat(self._answer) as url:
            yield url
            self.may_answer.set()

    def _answer(self, body: dict[str, Any]) -> str:
        self.requests += 1
        self.may_answer.wait(20)
        tag = body["messages"][0]["content"].splitlines()[0].removeprefix("Somebody is interested in: ")
        return self.says.format(tag=tag)


@pytest.fixture
def chat() -> Chat:
    return Chat()


@pytest.fixture
def asking(bundle: Bundle, chat: Chat, tmp_path: Path) -> Iterator[TestClient]:
    """A service whose table is empty and whose explanations a chat model writes."""
    table = bundle.intents
    assert table is not None
    untold = RecommenderRuntime.from_bundle(bundle)
    untold.intents = IntentTable(
        config=table.config, vocabulary=table.vocabulary, texts={}, explainer="x", metrics=table.metrics
    )
    with chat.running() as url:
        settings = ServingSettings.model_validate(
            {
                "explanations": {
                    "chat": {"base_url": url, "model": "m", "cache": tmp_path / "answers.jsonl", "retries": 0}
                }
            }
        )
        with serving(untold, bundle, tmp_path, settings) as client:
            yield client


def test_what_the_table_lacks_a_chat_model_writes_once(asking: TestClient, chat: Chat) -> None:
    told = [item["reason"] for item in asked(asking, explain="intent")]
    written = [reason for reason in told if reason["tags"]]
    assert len(written) >= 5
    assert {reason["text"] for reason in written} == {f"Because you asked for {each['tags'][0]}." for each in written}
    requests = chat.requests
    assert [item["reason"] for item in asked(asking, explain="intent")] == told
    assert chat.requests == requests
    counted = 'recsys_explanations_total{origin="written"} ' + f"{2.0 * len(written)}"
    assert counted in asking.get("/metrics").text


def test_what_breaks_the_rubric_is_counted_and_evidence_stands_in(asking: TestClient, chat: Chat) -> None:
    chat.says = "The best {tag} there is!"
    told = [item["reason"] for item in asked(asking, explain="intent")]
    assert all(reason["text"].startswith("Similar to ") for reason in told)
    tagged = sum(bool(reason["tags"]) for reason in told)
    requests = chat.requests
    asked(asking, explain="intent")
    assert chat.requests == requests  # it is not asked again for what was refused
    assert f'recsys_explanation_faults_total{{principle="safe"}} {tagged:.1f}' in asking.get("/metrics").text


def test_a_slow_chat_model_does_not_hold_up_the_answer(asking: TestClient, chat: Chat) -> None:
    chat.may_answer.clear()
    response = asking.post(
        "/v1/recommend", json={"user_id": "u1", "explain": "intent"}, headers={"X-Deadline-Ms": "1500"}
    )
    assert response.status_code == 200
    assert all(item["reason"]["text"].startswith("Similar to ") for item in response.json()["items"])
    chat.may_answer.set()


def test_a_disk_that_keeps_no_answers_costs_nobody_a_list(asking: TestClient, tmp_path: Path) -> None:
    (tmp_path / "answers.jsonl").mkdir()
    items = asked(asking, explain="intent")
    assert all(item["reason"]["text"].startswith("Similar to ") for item in items)
    assert any(item["reason"]["tags"] for item in items)


def test_a_dead_chat_model_costs_nobody_a_list(bundle: Bundle, tmp_path: Path) -> None:
    table = bundle.intents
    assert table is not None
    untold = RecommenderRuntime.from_bundle(bundle)
    untold.intents = IntentTable(
        config=table.config, vocabulary=table.vocabulary, texts={}, explainer="x", metrics=table.metrics
    )
    nobody = {"base_url": "http://127.0.0.1:9/v1", "model": "m", "cache": tmp_path / "a.jsonl", "retries": 0}
    with serving(
        untold, bundle, tmp_path, ServingSettings.model_validate({"explanations": {"chat": nobody}})
    ) as client:
        items = asked(client, explain="intent")
        assert all(item["reason"]["text"].startswith("Similar to ") for item in items)
        assert any(item["reason"]["tags"] for item in items)
