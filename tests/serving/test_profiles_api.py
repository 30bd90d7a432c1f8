from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from httpx import Response
from tiny_lm import save_tiny_lm

from feature_store import OnlineStore
from recsys.errors import ArtifactError
from recsys.generator import GenerativeRecommender, GeneratorConfig, ModelConfig, build_model
from recsys.generator.config import LanguageModelConfig
from recsys.profile.profile import Profile, Statement
from serving.app import create_app
from serving.profiles import UserProfiles
from serving.runtime import RecommenderRuntime
from serving.seeding import Seeding
from serving.warming import warm_up

NUM_ITEMS = 24
RuntimeFactory = Callable[..., RecommenderRuntime]


def view(client: TestClient, user: str, item: str, number: int) -> None:
    event = {"event_id": f"{user}{number}", "user_id": user, "item_id": item, "timestamp": 1_000_000_000 + number}
    assert client.post("/v1/events", json=event).status_code == 200


def put(client: TestClient, user: str, statements: list[str]) -> Response:
    """Edit what stands there now."""
    revision = client.get(f"/v1/profiles/{user}").json().get("revision", "none")
    return client.put(f"/v1/profiles/{user}", json={"statements": statements, "revision": revision})


def texts(profile: dict[str, Any]) -> list[str]:
    return [statement["text"] for statement in profile["statements"]]


def test_a_profile_comes_from_the_history_with_its_evidence(client: TestClient) -> None:
    profile = client.get("/v1/profiles/ann").json()
    assert texts(profile)[:2] == ["Likes low (3 of 3).", "Likes even (2 of 3)."]
    assert profile["statements"][1]["source"] == "template"
    assert profile["statements"][1]["evidence"] == [
        {"event": 0, "item_id": "i0", "title": "The item 0"},
        {"event": 2, "item_id": "i2", "title": "The item 2"},
    ]
    assert (profile["upto"], profile["edited"], profile["used_by_model"]) == (3, False, False)


def test_edits_survive_a_restart(runtime: RecommenderRuntime, tmp_path: Path) -> None:
    def started() -> TestClient:
        store = OnlineStore.embedded(tmp_path / "kept")
        return TestClient(create_app(runtime, store, seeding=Seeding(store, "v1", {"ann": ["i0", "i2"]})))

    with started() as client:
        before = put(client, "ann", ["Nothing odd"]).json()
    with started() as client:
        assert client.get("/v1/profiles/ann").json() == before


def test_edits_survive_events(client: TestClient, store: OnlineStore) -> None:
    edited = put(client, "ann", ["Nothing odd", "Likes even (2 of 3)."])
    assert edited.status_code == 200
    assert [(each["text"], each["source"]) for each in edited.json()["statements"]] == [
        ("Nothing odd", "edited"),
        ("Likes even (2 of 3).", "template"),
    ]
    view(client, "ann", "i4", 1)
    after = client.get("/v1/profiles/ann").json()
    assert texts(after)[:2] == ["Nothing odd", "Likes even (3 of 4)."]
    assert not any("low" in text for text in texts(after))  # removed by the user, though i4 is low
    assert (after["upto"], after["edited"], after["version"]) == (4, True, edited.json()["version"] + 1)
    assert client.get("/v1/profiles/ann").json() == after  # reading changes nothing
    assert "Nothing odd" in (store.profile("ann") or "")


def test_a_user_whose_id_looks_like_a_path_has_a_page_and_a_profile(client: TestClient) -> None:
    view(client, "a/profile", "i4", 1)
    view(client, "a", "i6", 1)
    assert client.get("/v1/users/a%2Fprofile").json()["user_id"] == "a/profile"
    assert client.get("/v1/profiles/a%2Fprofile").json()["user_id"] == "a/profile"
    assert client.get("/v1/profiles/a").json()["user_id"] == "a"


def test_an_edit_of_what_has_changed_meanwhile_is_refused_and_dismisses_nothing(
    client: TestClient, store: OnlineStore
) -> None:
    read = client.get("/v1/profiles/ann").json()
    edit = {"statements": [*texts(read), "Nothing odd"], "revision": read["revision"]}
    view(client, "ann", "i4", 1)
    refused = client.put("/v1/profiles/ann", json=edit)
    assert (refused.status_code, refused.json()["fields"][0]["field"]) == (409, "revision")
    assert "read it again" in refused.json()["detail"]
    assert store.profile("ann") is None
    now = client.get("/v1/profiles/ann").json()
    edit = {"statements": [*texts(now), "Nothing odd"], "revision": now["revision"]}
    accepted = client.put("/v1/profiles/ann", json=edit).json()
    assert [each["source"] for each in accepted["statements"]] == ["template"] * len(texts(now)) + ["edited"]
    # Of two edits of the same profile the second is refused too.
    assert client.put("/v1/profiles/ann", json=edit).status_code == 409


def test_deleting_gives_back_what_the_history_says(client: TestClient, store: OnlineStore) -> None:
    before = client.get("/v1/profiles/ann").json()
    put(client, "ann", [])
    assert client.get("/v1/profiles/ann").json()["statements"] == []
    assert client.delete("/v1/profiles/ann").json() == before
    assert store.profile("ann") is None


def test_deleting_succeeds_also_when_the_history_is_gone(client: TestClient, store: OnlineStore) -> None:
    put(client, "ann", ["Nothing odd"])
    stored = store.profile("ann")
    assert stored is not None
    store.put_profile("gone", stored)
    assert texts(client.get("/v1/profiles/gone").json()) == ["Nothing odd"]
    deleted = client.delete("/v1/profiles/gone")
    assert (deleted.status_code, texts(deleted.json())) == (200, [])
    assert client.delete("/v1/profiles/gone").status_code == 404


def test_only_who_has_edited_something_has_an_edited_profile(
    client: TestClient, store: OnlineStore, runtime: RecommenderRuntime
) -> None:
    profiles = UserProfiles(runtime.catalog)
    put(client, "ann", ["Nothing odd"])
    edited = profiles.edited(store.user_state("ann"))
    assert edited is not None
    assert edited.statements[0].text == "Nothing odd"
    assert profiles.edited(store.user_state("bob")) is None


def test_edits_survive_when_the_history_has_moved_on(client: TestClient, store: OnlineStore) -> None:
    put(client, "bob", ["Nothing odd"])
    for number in range(4):
        view(client, "bob", f"i{2 * number}", number)
    store.max_history = 3  # the entry that the profile had read last is out of reach
    profile = client.get("/v1/profiles/bob").json()
    assert texts(profile)[0] == "Nothing odd"
    assert profile["upto"] == 3


def test_who_is_unknown_has_no_profile(client: TestClient) -> None:
    for response in (
        client.get("/v1/profiles/nobody"),
        put(client, "nobody", ["x"]),
        client.delete("/v1/profiles/nobody"),
    ):
        assert response.status_code == 404
        assert "post an event" in response.json()["detail"]


@pytest.mark.parametrize(
    ("statements", "message"),
    [
        (["  "], "statements[0]: has 0 characters"),
        (["a", " a"], "statements[1]: 'a' stands there twice"),
        (["x" * 501], "statements[0]"),
        (["x"] * 51, "statements"),
    ],
)
def test_edits_have_limits(client: TestClient, statements: list[str], message: str) -> None:
    response = put(client, "ann", statements)
    assert response.status_code == 422
    assert message in response.json()["detail"]


def test_a_profile_of_another_version_is_a_conflict_that_deleting_mends(client: TestClient, store: OnlineStore) -> None:
    client.get("/v1/users/ann")
    store.put_profile("ann", '{"profile": {"format": 9}}')
    for response in (
        client.get("/v1/profiles/ann"),
        put(client, "ann", ["a"]),
    ):
        assert response.status_code == 409
        assert "delete it" in response.json()["detail"]
    assert client.delete("/v1/profiles/ann").status_code == 200


@pytest.fixture
def lm_generator(tmp_path: Path) -> GenerativeRecommender:
    index = np.arange(NUM_ITEMS)
    codes = np.stack([index // 4, index % 4], axis=1)
    lm = LanguageModelConfig(name=str(save_tiny_lm(tmp_path / "lm")), tuning="frozen")
    config = GeneratorConfig(model=ModelConfig(lm=lm, max_history=8, text_input=False), beams=24)
    torch.manual_seed(0)
    return GenerativeRecommender(config, codes, (6, 4), None, build_model(config, codes, (6, 4), None))


def test_a_generator_that_knows_words_reads_what_the_user_wrote(
    make_runtime: RuntimeFactory, store: OnlineStore, lm_generator: GenerativeRecommender
) -> None:
    app = create_app(make_runtime(lm_generator), store, seeding=Seeding(store, "v1", {"ann": ["i0", "i1"]}))
    with TestClient(app) as client:
        asked = {"user_id": "ann", "k": 22}
        before = client.post("/v1/recommend", json=asked).json()
        assert not before["used_profile"]
        profile = put(client, "ann", ["The quick brown fox " * 20]).json()
        assert profile["used_by_model"]
        after = client.post("/v1/recommend", json=asked).json()
        assert after["used_profile"]
        assert after["source"] == "generator"
        assert len(after["items"]) == 22
        scores = {item["item_id"]: item["score"] for item in before["items"]}
        assert any(abs(item["score"] - scores[item["item_id"]]) > 1e-3 for item in after["items"])
        client.delete("/v1/profiles/ann")
        again = client.post("/v1/recommend", json=asked).json()
        assert [item["item_id"] for item in again["items"]] == [item["item_id"] for item in before["items"]]


EDITED = Profile(statements=(Statement(text="The quick brown fox.", source="edited"),))


def test_lists_with_a_profile_hold_new_items_too(
    make_runtime: RuntimeFactory, lm_generator: GenerativeRecommender
) -> None:
    plain = make_runtime(lm_generator).recommend(["i0", "i1"], k=5, profile=EDITED)
    new = next(item for item in range(2, NUM_ITEMS) if item not in [pick.item for pick in plain.picks])
    lm_generator.model.learned[new] = False
    lm_generator.config = lm_generator.config.model_copy(update={"new_item_slots": 1})
    answer = make_runtime(lm_generator).recommend(["i0", "i1"], k=5, profile=EDITED)
    assert answer.used_profile
    assert [pick.item for pick in answer.picks] == [*(pick.item for pick in plain.picks[:4]), new]


def test_a_profile_of_which_nothing_fits_is_not_said_to_be_read(
    make_runtime: RuntimeFactory, lm_generator: GenerativeRecommender
) -> None:
    long = Profile(statements=(Statement(text="§" * 500, source="edited"),))
    runtime = make_runtime(lm_generator)
    without, answer = (runtime.recommend(["i0"], k=3, profile=profile) for profile in (None, long))
    assert not answer.used_profile
    assert [pick.item for pick in answer.picks] == [pick.item for pick in without.picks]


def test_a_start_finds_out_that_profiles_cannot_be_read(
    make_runtime: RuntimeFactory, lm_generator: GenerativeRecommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = make_runtime(lm_generator)
    warm_up(runtime)
    monkeypatch.setattr(lm_generator, "complete", lambda *_, **__: 1 / 0)
    with pytest.raises(ArtifactError, match="the reader of profiles of toy cannot answer"):
        warm_up(runtime)


def test_profiles_are_read_by_the_model_itself_when_an_export_decodes(
    make_runtime: RuntimeFactory, lm_generator: GenerativeRecommender
) -> None:
    class Export:
        """Reads items alone."""

        def recommend(self, *arguments: Any, **options: Any) -> Any:
            return lm_generator.recommend(*arguments, **options)

    runtime = make_runtime(Export(), reader=lm_generator)
    assert runtime.recommend(["i0"], k=3, profile=EDITED).used_profile
    assert not make_runtime(Export()).reads_profiles


def test_reasoning_asks_for_no_profile_and_categories_stay_capped_with_one(
    make_runtime: RuntimeFactory,
    store: OnlineStore,
    lm_generator: GenerativeRecommender,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runtime = make_runtime(lm_generator, reasoner=lm_generator)
    app = create_app(runtime, store, seeding=Seeding(store, "v1", {"ann": ["i0", "i1"]}))
    with TestClient(app) as client:
        put(client, "ann", ["The quick brown fox."])
        asked = {"user_id": "ann", "k": 6, "max_per_category": 1}
        capped = client.post("/v1/recommend", json=asked).json()
        assert capped["used_profile"]
        assert sum("even" in item["categories"] for item in capped["items"]) == 1
        monkeypatch.setattr(UserProfiles, "edited", lambda *_: pytest.fail("asked for the profile"))
        reasoned = client.post("/v1/recommend", json=asked | {"mode": "reason"}).json()
        assert not reasoned["used_profile"]
