"""Experiments in the request path: who is in which arm, what that changes, and who may choose."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from guarded import guarded_app
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from feature_store import OnlineStore
from recsys.errors import ConfigError
from serving.answers import Answer, Pick, Pinned, Reason
from serving.app import create_app
from serving.experiments import OVERRIDE_HEADER
from serving.models import ServedModel
from serving.path_metrics import PathMetrics
from serving.runtime import RecommenderRuntime
from serving.seeding import Seeding
from serving.settings import ServingSettings, load_settings
from serving.shown import best, draw

HISTORIES = {"ann": ["i0", "i1", "i2"]}


def _plan(**variants: Mapping[str, Any]) -> dict[str, Any]:
    """One experiment `ranker`; everybody is in the variant named first."""
    first = next(iter(variants))
    return {
        "layers": [
            {"name": "l", "experiments": {"ranker": {"variants": variants}}, "splits": [{f"ranker/{first}": 10_000}]}
        ]
    }


def _settings(**variants: Mapping[str, Any]) -> ServingSettings:
    return ServingSettings.model_validate({"experiments": _plan(**variants)})


def _service(runtime: RecommenderRuntime, store: OnlineStore, settings: ServingSettings, **options: Any) -> TestClient:
    seeding = Seeding(store, "v1", HISTORIES)
    return TestClient(create_app(runtime, store, settings, seeding=seeding, **options), base_url="http://localhost")


def _ask(client: TestClient, variant: str | None = None, **body: Any) -> Any:
    headers = {} if variant is None else {OVERRIDE_HEADER: f"ranker={variant}"}
    response = client.post("/v1/recommend", json={"user_id": "ann", "k": 20} | body, headers=headers)
    return response.json() | {"http": response.status_code}


@pytest.fixture
def client(runtime: RecommenderRuntime, store: OnlineStore) -> Iterator[TestClient]:
    settings = _settings(capped={"max_per_category": 1}, control={})
    with _service(runtime, store, settings, loopback_only=True) as client:
        yield client


def _evens(answer: Mapping[str, Any]) -> int:
    return sum("even" in item["categories"] for item in answer["items"])


def test_an_arm_changes_what_the_request_leaves_open(client: TestClient) -> None:
    capped = _ask(client)
    assert capped["variants"] == {"ranker": "capped"}
    assert _evens(capped) == 1
    own = _ask(client, max_per_category=3)
    assert (own["variants"], _evens(own)) == ({"ranker": "capped"}, 3)


def test_an_arm_has_rules_of_its_own(runtime: RecommenderRuntime, store: OnlineStore) -> None:
    even = {"contains": {"column": "categories", "value": "even"}}
    low = {"contains": {"column": "categories", "value": "low"}}
    plan = _plan(varied={"max_per": {"brand": 1}, "diversity": 1.0, "filter": "even"}, control={})
    settings = ServingSettings.model_validate({"experiments": plan, "filters": {"even": even}})
    with _service(runtime, store, settings, loopback_only=True) as client:
        arm = _ask(client)
        assert _evens(arm) == len(arm["items"]) == 3
        assert sorted(int(item["item_id"][1:]) % 3 for item in arm["items"]) == [0, 1, 2]
        # A request's own cap wins, its own filter holds as well.
        own = _ask(client, max_per={"brand": 2}, diversity=0, filter=low)
        assert [item["item_id"] for item in own["items"]] == ["i4"]
        assert len(_ask(client, "control")["items"]) == 20


def test_arms_with_rules_that_a_model_cannot_follow_are_refused_with_it(
    runtime: RecommenderRuntime, make_runtime: Callable[..., RecommenderRuntime], store: OnlineStore
) -> None:
    with pytest.raises(ConfigError, match=r"ranker/a has max_per of 'color', but there are the columns item_id"):
        create_app(runtime, store, _settings(a={"max_per": {"color": 1}}))
    later = _settings(a={"max_per": {"color": 1}, "model_version": "later"})
    with _service(runtime, store, later) as client:
        assert _ask(client)["http"] == 200, "until that model is there, another one answers as it can"
    with pytest.raises(ConfigError, match=r"ranker/a has max_per of 'color'"):
        ServedModel(make_runtime(version="later"), later, PathMetrics(CollectorRegistry()))
    with pytest.raises(ValueError, match=r"ranker/a: no filter is named 'fresh'; there are: none"):
        _settings(a={"filter": "fresh"})


def test_nobody_known_is_in_no_experiment(client: TestClient) -> None:
    body = {"history": ["i0", "i1"], "k": 20}
    answer = client.post("/v1/recommend", json=body).json()
    assert answer["variants"] == {}
    assert _evens(answer) > 1
    forced = client.post("/v1/recommend", json=body, headers={OVERRIDE_HEADER: "ranker=control"})
    assert (forced.status_code, "user_id" in forced.json()["detail"]) == (422, True)


def test_on_the_loopback_address_without_keys_anybody_may_choose(client: TestClient) -> None:
    control = _ask(client, "control")
    assert (control["variants"], _evens(control) > 1) == ({"ranker": "control"}, True)
    assert _ask(client, "none")["http"] == 422
    assert client.post("/v1/recommend", json={}, headers={OVERRIDE_HEADER: "ranker"}).status_code == 422
    batch = {"requests": [{"user_id": "ann"}, {"history": ["i1"]}]}
    results = client.post("/v1/recommend:batch", json=batch, headers={OVERRIDE_HEADER: "ranker=control"}).json()
    assert [each["status"] for each in results["results"]] == [200, 422]
    assert results["results"][0]["answer"]["variants"] == {"ranker": "control"}


def test_with_keys_only_an_administrator_may_choose(
    runtime: RecommenderRuntime, store: OnlineStore, tmp_path: Path
) -> None:
    with guarded_app(runtime, store, tmp_path, _settings(control={}, capped={"max_per_category": 1})) as guarded:
        found = {}
        for role in ("read", "write", "admin"):
            headers = guarded.as_(role) | {OVERRIDE_HEADER: "ranker=capped"}
            found[role] = guarded.client.post("/v1/recommend", json={"user_id": "carla"}, headers=headers)
    assert {role: response.status_code for role, response in found.items()} == {"read": 403, "write": 403, "admin": 200}
    assert found["admin"].json()["variants"] == {"ranker": "capped"}


def test_an_open_service_that_others_reach_lets_nobody_choose(runtime: RecommenderRuntime, store: OnlineStore) -> None:
    with _service(runtime, store, _settings(control={})) as client:
        assert _ask(client, "control")["http"] == 403


def test_the_holdout_is_in_no_experiment(runtime: RecommenderRuntime, store: OnlineStore) -> None:
    plan = _plan(capped={"max_per_category": 1}) | {"holdout": 10_000}
    with _service(runtime, store, ServingSettings.model_validate({"experiments": plan})) as client:
        answer = _ask(client)
    assert (answer["variants"], _evens(answer) > 1) == ({}, True)


def test_an_arm_has_a_model_of_its_own_once_that_is_loaded(
    make_runtime: Callable[..., RecommenderRuntime], store: OnlineStore
) -> None:
    with _service(make_runtime(version="old"), store, _settings(new={"model_version": "new"})) as client:
        assert _ask(client)["model_version"] == "old"
        context = client.app.state.context  # type: ignore[attr-defined]
        other = ServedModel(make_runtime(version="new"), context.settings, context.path_metrics)
        context.models._held["new"] = other
        assert _ask(client)["model_version"] == "new"
        assert client.post("/v1/recommend", json={"history": ["i1"]}).json()["model_version"] == "old"
        assert other.in_flight == 0


def test_what_no_request_can_say_is_no_setting_of_an_arm(tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(
        "experiments: {layers: [{name: l, splits: [{e/a: 1}], experiments: {e: {variants: {a: {beams: 3}}}}}]}\n"
    )
    with pytest.raises(ConfigError, match=r"e\.a\.beams: .*an arm may set mode, max_per_category, max_per"):
        load_settings(path)


def test_an_arm_in_a_mode_that_the_model_lacks_is_refused_at_the_start(
    runtime: RecommenderRuntime, store: OnlineStore
) -> None:
    with pytest.raises(ConfigError, match="ranker/new asks for mode reason, but this model gives no reasons"):
        create_app(runtime, store, _settings(control={}, new={"mode": "reason"}))


def test_an_arm_explores(runtime: RecommenderRuntime, store: OnlineStore, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = itertools.count()
    monkeypatch.setattr("serving.shown.secrets.randbits", lambda _: next(seeds))
    with _service(runtime, store, _settings(bold={"epsilon": 1.0}, control={}), loopback_only=True) as client:
        lists = {tuple(item["item_id"] for item in _ask(client)["items"]) for _ in range(5)}
        assert len(lists) > 1
        assert all(len(set(each)) == 20 for each in lists)
        control = {tuple(item["item_id"] for item in _ask(client, "control")["items"]) for _ in range(3)}
        assert len(control) == 1
        pages = _ask(client, k=3, depth=8)
        rest = client.post("/v1/recommend:next", json={"cursor": pages["next_cursor"], "k": 10}).json()
        whole = [item["item_id"] for item in (*pages["items"], *rest["items"])]
        assert len(set(whole)) == len(whole) == 8


def _answer(scores: list[float], *pins: Pinned) -> Answer:
    reason = Reason(text="")
    return Answer(
        picks=[Pick(item=item, score=score, reason=reason) for item, score in enumerate(scores)],
        pins=pins,
        source="fusion",
        fallback_reason=None,
        chains=(),
        unknown_items=[],
        used_profile=False,
        timings_ms={},
    )


@given(st.lists(st.floats(-20, 0), min_size=1, max_size=8), st.integers(1, 8), st.integers(0, 1000))
def test_the_best_list_is_the_answers_own_whatever_its_scores(scores: list[float], k: int, seed: int) -> None:
    answer = _answer(scores)
    shown = draw(answer, k, 0.0, seed=seed)
    assert shown.answer == best(answer, k).answer
    assert shown.conditional.tolist() == best(answer, k).conditional.tolist() == [1.0] * min(k, len(scores))
    drawn = draw(answer, k, 0.5, seed=seed)
    assert ((drawn.conditional > 0) & (drawn.conditional <= 1)).all()
    assert {pick.item for pick in drawn.answer.picks} <= set(range(len(scores)))


@given(st.lists(st.floats(-20, 0), min_size=1, max_size=6), st.integers(2, 8), st.integers(0, 1000))
def test_what_is_pinned_has_probability_one_and_the_others_those_of_a_list_without_it(
    scores: list[float], k: int, seed: int
) -> None:
    pins = (Pinned(item=90, position=2), Pinned(item=91, position=k))[: 1 if k == 2 else 2]
    for epsilon in (0.0, 0.5):
        shown = draw(_answer(scores, *pins), k, epsilon, seed=seed)
        rest = draw(_answer(scores), k - len(pins), epsilon, seed=seed) if k > len(pins) else None
        items = [pick.item for pick in shown.answer.picks]
        assert len(items) == min(k, len(scores) + len(pins)) == len(set(items))
        is_pinned = np.isin(items, [90, 91])
        assert shown.conditional[is_pinned].tolist() == shown.marginal[is_pinned].tolist() == [1.0] * len(pins)
        others = [] if rest is None else [pick.item for pick in rest.answer.picks]
        assert [item for item in items if item < 90] == others
        if rest is not None:
            assert shown.conditional[~is_pinned].tolist() == rest.conditional.tolist()
            assert shown.marginal[~is_pinned].tolist() == rest.marginal.tolist()
        if len(scores) >= k:
            assert [items[pin.position - 1] for pin in pins] == [pin.item for pin in pins]
    assert best(_answer(scores, *pins), k).answer.items == draw(_answer(scores, *pins), k, 0.0, seed=seed).answer.items
