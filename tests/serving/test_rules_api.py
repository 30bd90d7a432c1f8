"""Business rules of a request: filters hold whatever answers; what is seen, capped or pinned; what cannot be met."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_bundle import write_toy_bundle

from feature_store import OnlineStore
from recsys.bundle import Bundle
from recsys.errors import ConfigError
from recsys.generator.filters import Node
from serving.answers import Query
from serving.app import create_app
from serving.runtime import RecommenderRuntime
from serving.seeding import Seeding
from serving.settings import ServingSettings, load_settings

NUM_ITEMS = 24
PRICES = [None if i % 7 == 6 else f"${10 + i}.50" for i in range(NUM_ITEMS)]
STOCK = [str(i % 3) for i in range(NUM_ITEMS)]
COLUMNS = {"price": PRICES, "stock": STOCK}
IN_STOCK = {"range": {"column": "stock", "min": 1}}
CHEAP = {"range": {"column": "price", "max": 20}}
BOOST = {"weight": 1, "filter": CHEAP}

Runtimes = Callable[..., RecommenderRuntime]


@pytest.fixture
def priced(make_runtime: Runtimes) -> RecommenderRuntime:
    return make_runtime(columns=COLUMNS)


def _service(runtime: RecommenderRuntime, store: OnlineStore, **values: Any) -> TestClient:
    seeding = Seeding(store, "v1", {"ann": ["i0", "i1", "i2", "i3"]})
    return TestClient(create_app(runtime, store, ServingSettings.model_validate(values), seeding=seeding))


@pytest.fixture
def client(priced: RecommenderRuntime, store: OnlineStore) -> Iterator[TestClient]:
    with _service(priced, store, filters={"in_stock": IN_STOCK, "cheap": CHEAP}) as client:
        yield client


def _ask(client: TestClient, **body: Any) -> dict[str, Any]:
    response = client.post("/v1/recommend", json={"history": ["i1", "i4"], "k": 24} | body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def _ids(answer: dict[str, Any]) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


# --- filters ---------------------------------------------------------------------------------------------------------


def test_a_filter_holds_inside_decoding_and_keeps_the_order_of_the_model(client: TestClient) -> None:
    both = {"and": [{"named": "cheap"}, {"contains": {"column": "categories", "value": "even"}}]}
    allowed = {f"i{i}" for i in range(0, 10, 2) if i != 6}
    everything = _ids(_ask(client, exclude_seen=False))
    assert len(everything) == NUM_ITEMS
    assert _ids(_ask(client, filter=both, exclude_seen=False)) == [item for item in everything if item in allowed]
    assert len(_ids(_ask(client, filter=both, exclude_seen=False, k=3))) == 3
    assert set(_ids(_ask(client, filter=both, categories=["low"], exclude_seen=False))) == {"i0", "i2", "i4"}
    assert _ids(_ask(client, filter={"not": {"exists": {"column": "item_id"}}})) == []


_leaves = st.sampled_from(
    [
        {"range": {"column": "year", "min": 1955, "max": 1970}},
        {"eq": {"column": "year", "value": 1960}},
        {"in": {"column": "categories", "values": ["Drama", "Noir"]}},
        {"contains": {"column": "categories", "value": "Comedy"}},
        {"in": {"column": "item_id", "values": ["i1", "i2", "i30"]}},
        {"exists": {"column": "title"}},
    ]
)
_asked = st.recursive(
    _leaves,
    lambda inner: st.one_of(
        st.fixed_dictionaries({"and": st.lists(inner, min_size=1, max_size=2)}),
        st.fixed_dictionaries({"or": st.lists(inner, min_size=1, max_size=2)}),
        st.fixed_dictionaries({"not": inner}),
    ),
    max_leaves=4,
)


def _holds(found: Any, item: int) -> bool:
    """The twin: what a filter of `_asked` says of one item of the toy bundle."""
    ((kind, asked),) = found.items()
    if kind == "not":
        return not _holds(asked, item)
    if kind in ("and", "or"):
        return (all if kind == "and" else any)(_holds(part, item) for part in asked)
    if asked["column"] == "year":
        return item == 10 if kind == "eq" else 5 <= item <= 20
    if asked["column"] == "categories":
        return item % 4 == 1 if kind == "contains" else item % 4 in (0, 3)
    return asked["column"] == "title" or item in (1, 2, 30)


@pytest.fixture(scope="module")
def every_source(tmp_path_factory: pytest.TempPathFactory) -> RecommenderRuntime:
    """Fusion, generator, SASRec over Faiss, counter."""
    path = tmp_path_factory.mktemp("bundle")
    write_toy_bundle(path / "bundle", fusion=path / "fusion")
    return RecommenderRuntime.from_bundle(Bundle.load(path / "bundle"))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(found=_asked, history=st.lists(st.integers(0, 39), max_size=3), k=st.integers(1, 8))
def test_no_item_of_any_source_violates_the_filter(
    every_source: RecommenderRuntime, found: Any, history: list[int], k: int
) -> None:
    query = Query(history=[f"i{item}" for item in history], k=k, filter=_filter(found))
    asked, _ = every_source.ask(query)
    permitted = {item for item in range(40) if _holds(found, item)} - set(history)
    assert set(every_source.popular(asked).items.tolist()) <= permitted
    assert len(every_source.popular(asked).items) == min(k, len(permitted))
    for stage in every_source.stages(query) if history else ():
        (listed,) = stage.lists([asked])
        assert listed is not None
        assert set(listed.items.tolist()) <= permitted, stage.name
        if stage.name in ("fusion", "generator", "dense"):
            assert len(listed.items) == min(k, len(permitted)), stage.name


def _filter(found: Any) -> Node:
    node: Node = ServingSettings.model_validate({"filters": {"f": found}}).filters["f"]
    return node


def test_requests_with_different_filters_share_a_call(every_source: RecommenderRuntime) -> None:
    filters = [
        {"range": {"column": "year", "max": 1960}},
        {"contains": {"column": "categories", "value": "Noir"}},
        None,
    ]
    queries = [Query(history=["i1"], k=5, filter=None if found is None else _filter(found)) for found in filters]
    stage = every_source.stages(queries[0])[0]
    asked = [every_source.ask(query)[0] for query in queries]
    assert len({stage.key(one) for one in asked}) == 1
    for together, one in zip(stage.lists(asked), asked, strict=True):
        (alone,) = stage.lists([one])
        assert together is not None
        assert alone is not None
        assert together.items.tolist() == alone.items.tolist()


def test_named_filters_that_always_hold_hold_for_popularity_too(priced: RecommenderRuntime, store: OnlineStore) -> None:
    with _service(priced, store, filters={"in_stock": IN_STOCK}, always=["in_stock"]) as client:
        for history in (["i1"], []):
            assert {int(item[1:]) % 3 for item in _ids(_ask(client, history=history))} == {1, 2}
        cheap = _ids(_ask(client, filter=CHEAP, exclude_seen=False))
    assert sorted(cheap) == sorted(f"i{i}" for i in range(10) if i % 3 and i != 6)


@pytest.mark.parametrize(
    ("body", "field", "detail"),
    [
        ({"filter": {"eq": {"column": "color", "value": "red"}}}, "filter.eq.column", "there are: item_id, title"),
        ({"filter": {"and": [{"range": {"column": "brand", "min": 1}}]}}, "filter.and[0].range.column", "no numbers"),
        ({"filter": {"named": "fresh"}}, "filter.named", "no filter is named 'fresh'; there are: cheap, in_stock"),
        ({"filter": {"range": {"column": "price"}}}, "filter.range", "give min, max or both"),
        ({"filter": {"like": {}}}, "filter", "one of the keys and, or, not"),
        ({"filter": {"and": [{"eq": {"column": "price"}}]}}, "filter.and[0].eq.value", "Field required"),
        ({"boosts": [{"weight": 1, "filter": {"named": "x"}}]}, "boosts[0].filter.named", "no filter is named"),
        (
            {"boosts": [{"weight": 1, "filter": {"contains": {"column": "brand", "value": "x"}}}]},
            "boosts[0].filter.contains.column",
            "holds no lists",
        ),
        ({"boosts": [{"weight": 1}]}, "boosts[0]", "give either filter or item_ids"),
        (
            {"filter": {"not": CHEAP}, "boosts": [{"weight": 1, "filter": {"or": [CHEAP] * 48}}] * 2 + [BOOST]},
            "body",
            "may have 100 conditions together, got 101",
        ),
        ({"max_per": {"color": 1}}, "max_per.color", "no column 'color'"),
        ({"max_per": {"brand": 0}}, "max_per.brand", "greater than or equal to 1"),
        ({"exclude_seen": "window"}, "body", "give both or neither"),
        ({"seen_window": 3}, "body", "give both or neither"),
        ({"pins": [{"item_id": "i1", "position": 6}]}, "body", "in the list, 1 to 5, got 6"),
        ({"pins": [{"item_id": "i1", "position": 1}, {"item_id": "i1", "position": 2}]}, "body", "different items"),
        ({"pins": [{"item_id": "i1", "position": 1}], "exclude": ["i1"]}, "body", "in pins and in exclude"),
        ({"diversity": 1.5}, "diversity", "less than or equal to 1"),
    ],
)
def test_a_rule_that_cannot_be_met_names_the_field(
    client: TestClient, body: dict[str, Any], field: str, detail: str
) -> None:
    response = client.post("/v1/recommend", json={"history": ["i1"], "k": 5} | body)
    assert response.status_code == 422, response.text
    assert [entry["field"] for entry in response.json()["fields"]] == [field]
    assert detail in response.json()["detail"]


def test_one_bad_filter_in_a_batch_fails_alone(client: TestClient) -> None:
    requests = [{"history": ["i1"], "filter": each} for each in ({"named": "cheap"}, {"named": "x"}, {"eq": 1})]
    results = client.post("/v1/recommend:batch", json={"requests": requests}).json()["results"]
    assert [each["status"] for each in results] == [200, 422, 422]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("filters: {a: {eq: {column: x, value: 1}}, b: {not: {named: a}}}", "b: a named filter may not use another"),
        ("filters: {a: {eq: {column: x}}}", "filters.a.eq.eq.value"),
        ("always: [fresh]", "no filter is named 'fresh'; there are: none"),
    ],
)
def test_settings_with_filters_that_are_none_are_refused(tmp_path: Path, values: str, message: str) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(values)
    with pytest.raises(ConfigError, match=message):
        load_settings(path)


def test_a_catalogue_that_lacks_the_column_of_a_named_filter_is_not_served(
    runtime: RecommenderRuntime, store: OnlineStore
) -> None:
    with pytest.raises(ConfigError, match=r"filters\.in_stock\.range\.column: there is no column 'stock'"):
        _service(runtime, store, filters={"in_stock": IN_STOCK})


# --- what was seen, and caps -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "left_out"),
    [
        ({}, {"i0", "i1", "i2", "i3"}),
        ({"exclude_seen": "all"}, {"i0", "i1", "i2", "i3"}),
        ({"exclude_seen": "window", "seen_window": 2}, {"i2", "i3"}),
        ({"exclude_seen": "none"}, set()),
        ({"exclude_seen": False}, set()),
    ],
)
def test_what_was_seen_is_left_out_as_far_back_as_asked(
    client: TestClient, rules: dict[str, Any], left_out: set[str]
) -> None:
    answer = client.post("/v1/recommend", json={"user_id": "ann", "k": 24} | rules).json()
    assert {f"i{i}" for i in range(NUM_ITEMS)} - set(_ids(answer)) == left_out


@pytest.mark.parametrize("history", [["i23"], []])
def test_columns_are_capped_like_categories(client: TestClient, history: list[str]) -> None:
    items = _ask(client, history=history, max_per={"brand": 2, "categories": 1}, max_per_category=3)["items"]
    brands = Counter(f"brand {int(item['item_id'][1:]) % 3}" for item in items)
    assert set(brands.values()) == {2}
    assert max(Counter(category for item in items for category in item["categories"]).values()) == 1
    assert _ids(_ask(client, history=history, max_per={"categories": 2})) == _ids(
        _ask(client, history=history, max_per_category=2)
    )


# --- pins, boosts, diversity -----------------------------------------------------------------------------------------


def test_pins_stand_at_their_places_and_nowhere_else(client: TestClient) -> None:
    plain = _ids(_ask(client, k=6))
    pins = [{"item_id": plain[0], "position": 3}, {"item_id": "i1", "position": 1}]  # i1 was seen
    answer = _ask(client, k=6, pins=pins)
    assert _ids(answer) == ["i1", plain[1], plain[0], *plain[2:5]]
    first = answer["items"][0]
    assert (first["source"], first["score"], first["reason"]["text"]) == ("pin", None, "Pinned to place 1")
    assert answer["items"][1]["source"] == answer["source"] == "generator"
    everything = [{"item_id": f"i{i}", "position": 3 - i} for i in range(3)]
    assert _ids(_ask(client, k=3, pins=everything)) == ["i2", "i1", "i0"]
    cold = _ask(client, history=[], k=3, pins=[{"item_id": "i0", "position": 2}])
    assert _ids(cold) == ["i1", "i0", "i2"]


def test_a_pin_that_cannot_stand_is_left_out_and_reported(client: TestClient) -> None:
    pins = [{"item_id": "i6", "position": 1}, {"item_id": "gone", "position": 2}, {"item_id": "i2", "position": 9}]
    answer = _ask(
        client,
        k=10,
        filter={"and": [{"named": "cheap"}, {"contains": {"column": "categories", "value": "low"}}]},
        pins=pins,
    )
    assert answer["dropped_pins"] == ["i6", "gone"]
    assert answer["unknown_items"] == ["gone"]
    assert _ids(answer)[-1] == "i2", "a list that is too short has it at its end"
    assert sorted(_ids(answer)) == ["i0", "i2", "i3", "i5"]


def test_pins_count_in_caps(client: TestClient) -> None:
    pins = [{"item_id": "i3", "position": 1}, {"item_id": "i7", "position": 4}]
    items = _ask(client, k=6, max_per={"brand": 2}, pins=pins)["items"]
    assert (items[0]["item_id"], items[3]["item_id"], len(items)) == ("i3", "i7", 6)
    assert Counter(int(item["item_id"][1:]) % 3 for item in items) == {0: 2, 1: 2, 2: 2}


@pytest.mark.parametrize("history", [["i23"], []])
def test_an_item_that_a_pin_makes_impossible_takes_no_place(client: TestClient, history: list[str]) -> None:
    """i1 is low; the others that are, even ones too, would keep i8 out if they were listed before the pin counts."""
    found = {"in": {"column": "item_id", "values": ["i0", "i1", "i2", "i4", "i8"]}}
    pins = [{"item_id": "i1", "position": 2}]
    assert _ids(_ask(client, history=history, k=4, filter=found, max_per={"categories": 1}, pins=pins)) == ["i8", "i1"]


def test_pages_of_a_list_with_pins_are_the_list(client: TestClient) -> None:
    body = {"pins": [{"item_id": "i9", "position": 2}, {"item_id": "i8", "position": 5}], "diversity": 0.5}
    whole = _ask(client, k=6, **body)
    first = _ask(client, k=3, depth=6, **body)
    rest = client.post("/v1/recommend:next", json={"cursor": first["next_cursor"], "k": 3}).json()
    assert _ids(first) + _ids(rest) == _ids(whole)
    assert [item["source"] for item in rest["items"]] == ["generator", "pin", "generator"]
    assert rest["items"][1]["reason"] == {
        "text": "Pinned",
        "because": None,
        "similarity": None,
        "tags": [],
        "evidence": [],
    }


def test_boosts_are_added_to_the_scores_of_candidates(client: TestClient) -> None:
    plain = {item["item_id"]: item["score"] for item in _ask(client)["items"]}
    boosts = [
        {"weight": 1.5, "filter": {"contains": {"column": "categories", "value": "low"}}},
        {"weight": -20, "item_ids": ["i2", "i3", "nope"]},
    ]
    answer = _ask(client, k=22, boosts=boosts)
    expected = {item: score + 1.5 * (int(item[1:]) < 6) - 20 * (item in ("i2", "i3")) for item, score in plain.items()}
    assert {item["item_id"]: item["score"] for item in answer["items"]} == pytest.approx(expected, abs=1e-4)
    assert _ids(answer) == sorted(expected, key=lambda item: -expected[item])
    assert answer["unknown_items"] == ["nope"]
    assert _ids(_ask(client, k=1, boosts=[{"weight": 100, "item_ids": ["i17"]}])) == ["i17"]


def test_a_boost_reaches_the_candidates_alone(priced: RecommenderRuntime, store: OnlineStore) -> None:
    with _service(priced, store, rerank_candidates=4) as client:
        plain = _ids(_ask(client))
        for place, first in ((3, plain[3]), (4, plain[0])):
            assert _ids(_ask(client, k=1, boosts=[{"weight": 100, "item_ids": [plain[place]]}])) == [first]


def test_a_diverse_list_begins_with_the_best_item_and_differs_more(client: TestClient) -> None:
    plain = _ids(_ask(client, k=8))
    assert _ids(_ask(client, k=8, diversity=0)) == plain
    diverse = _ids(_ask(client, k=8, diversity=1))
    assert diverse[0] == plain[0]
    assert set(diverse) != set(plain)
