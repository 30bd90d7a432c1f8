"""The Python client against the app itself, and against services that fail."""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from guarded import Guarded, InProcess, guarded_app

from feature_store import OnlineStore
from serving.client import (
    ApiError,
    AsyncClient,
    BatchEntry,
    BatchResult,
    Boost,
    Client,
    ClientError,
    Event,
    EventsResult,
    FiredRule,
    HistoryItem,
    Interests,
    Item,
    ItemChange,
    ItemDetail,
    ItemLineResult,
    ItemPage,
    ItemsResult,
    ListDetails,
    Model,
    Neighbour,
    Neighbours,
    NewItem,
    Pin,
    Recommendations,
    RecommendedItem,
    RejectedEvent,
    Request,
    Retry,
    Rules,
    TouchedItem,
    UnreachableError,
    User,
    asynchronous,
    blocking,
)
from serving.client.retry import parse_retry_after
from serving.runtime import RecommenderRuntime

Answerer = Callable[[httpx.Request], httpx.Response]
URL = "http://service"


class Caller:
    """Either client, with one way to call it."""

    def __init__(self, colour: str, **options: Any) -> None:
        self.waits: list[float] = []
        self._colour = colour
        self._options = options

    def pages(self, *arguments: Any, **named: Any) -> list[Recommendations]:
        """All pages of a list."""
        if self._colour == "blocking":
            with Client(URL, **self._options) as client:
                return list(client.pages(*arguments, **named))

        async def call() -> list[Recommendations]:
            async with AsyncClient(URL, **self._options) as client:
                return [page async for page in client.pages(*arguments, **named)]

        return asyncio.run(call())

    def __call__(self, method: str, *arguments: Any, **named: Any) -> Any:
        if self._colour == "blocking":
            with Client(URL, sleep=self.waits.append, **self._options) as client:
                return getattr(client, method)(*arguments, **named)

        async def sleep(seconds: float) -> None:
            self.waits.append(seconds)

        async def call() -> Any:
            async with AsyncClient(URL, sleep=sleep, **self._options) as client:
                return await getattr(client, method)(*arguments, **named)

        return asyncio.run(call())


@pytest.fixture(params=["blocking", "asynchronous"])
def colour(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def guarded(runtime: RecommenderRuntime, store: OnlineStore, tmp_path: Path) -> Iterator[Guarded]:
    with guarded_app(runtime, store, tmp_path) as guarded:
        yield guarded


@pytest.fixture
def caller(guarded: Guarded, colour: str) -> Caller:
    return Caller(colour, key=guarded.keys["write"], transport=InProcess(guarded.client))


def test_the_way_of_a_user_through_the_api(caller: Caller) -> None:
    user = "dora/ü ?"
    events = [Event(user_id=user, item_id=item) for item in ("i1", "i2")]
    assert caller("send_events", events) == EventsResult(accepted=2, duplicates=0, rejected=())
    assert caller("send_events", events).duplicates == 2
    found = caller("recommend", user, k=3, exclude=["i4"], categories=["even"])
    assert isinstance(found, Recommendations)
    assert len(found.items) == 3
    assert {item.item_id for item in found.items}.isdisjoint({"i1", "i2", "i4"})
    assert all("even" in item.categories for item in found.items)
    assert found.items[0].reason is not None
    assert found.items[0].reason.evidence[0] == found.items[0].reason.because
    assert caller("recommend", user, explain="none").items[0].reason is None
    with pytest.raises(ApiError, match="recsys intents build"):
        caller("interests", user)
    assert [entry.item_id for entry in caller("user", user).history] == ["i1", "i2"]
    assert caller("recommend", history=[]).fallback_reason == "empty_history"
    assert caller("item", "i1").title == "The item 1"
    near = caller("neighbours", "i1", limit=2)
    assert [(each.item_id, each.shared) for each in near.neighbours] == [("i0", 1), ("i2", 1)]
    named = caller("recommend", user, model_version="abc123")
    assert named.model_version in caller("model").loaded
    assert caller("search_items", "item 1", limit=2).total >= 2
    assert caller("model").model_version == "abc123"
    assert caller.waits == []


def test_items_are_changed_and_removed_in_order(caller: Caller) -> None:
    item = NewItem(item_id="i9", title="Renamed", categories=("even",), attributes={"brand": "b"})
    assert caller("put_item", item) == ItemChange(
        item_id="i9", outcome="changed", status="generatable", catalog_version=1
    )
    assert caller("item", "i9").title == "Renamed"
    found = caller("import_items", [item, NewItem(item_id="i8"), NewItem(item_id="i7", attributes={"size": "L"})])
    assert (found.changed, found.unchanged, found.rejected, found.catalog_version) == (1, 1, 1, 2)
    assert found.results[2].reason == "attributes.size: the catalogue has no such column; it has brand"
    assert caller("delete_item", "i9").status == "removed"
    with pytest.raises(ApiError, match="404"):
        caller("item", "i9")
    assert caller("model").catalog_columns == ("brand",)


def test_rules_and_the_further_lists(caller: Caller) -> None:
    rules = Rules(
        filter={"contains": {"column": "categories", "value": "even"}},
        exclude=("i4",),
        max_per={"brand": 2},
        pins=(Pin(item_id="i8", position=2), Pin(item_id="i9", position=3)),
        boosts=(Boost(weight=50, item_ids=("i20",)),),
        diversity=0.2,
    )
    found = caller("recommend", history=["i1", "i2"], k=5, rules=rules, exclude_seen="window", seen_window=1)
    ids = [item.item_id for item in found.items]
    assert (ids[0], ids[1], found.dropped_pins) == ("i20", "i8", ("i9",))
    assert (found.items[1].source, found.items[1].score) == ("pin", None)
    assert {int(item[1:]) % 2 for item in ids} == {0}
    assert not {"i2", "i4"} & set(ids)
    assert caller("recommend", history=["i1"], exclude=["i20"], rules=rules).items[0].item_id != "i20"
    similar = caller("similar_items", "i3", k=4, rules=Rules(exclude=("i4",)))
    assert (similar.source, len(similar.items)) == ("dense", 4)
    assert not {"i3", "i4"} & {item.item_id for item in similar.items}
    ranked = caller("rank", ["i5", "i6", "gone"], history=["i1"])
    assert ({item.item_id for item in ranked.items}, ranked.unknown_items) == ({"i5", "i6"}, ("gone",))
    searched = caller("search", "item 1", k=2, rules=Rules(max_per_category=1))
    assert (searched.source, searched.items[0].item_id) == ("words", "i1")
    with pytest.raises(ApiError, match="404: the catalogue has no item 'gone'"):
        caller("similar_items", "gone")
    with pytest.raises(ApiError, match="give either user_id or history"):
        caller("rank", ["i1"])


def test_many_lists_at_once(caller: Caller) -> None:
    rules = Rules(exclude=("i4",), pins=(Pin(item_id="i8", position=1),))
    found = caller(
        "recommend_batch", [{"history": ["i1"], "k": 3, "rules": rules}, {"user_id": "nobody"}, {"history": [], "k": 0}]
    )
    assert isinstance(found, BatchResult)
    assert [entry.status for entry in found.results] == [200, 404, 422]
    alone = caller("recommend", history=["i1"], k=3, rules=rules)
    assert found.results[0].answer.items == alone.items
    assert alone.items[0].item_id == "i8"
    refused = found.results[2]
    assert (refused.answer, refused.problem.fields[0]["field"]) == (None, "k")
    assert "user 'nobody' is unknown" in found.results[1].problem.detail


def test_the_pages_of_a_list_are_the_list(caller: Caller) -> None:
    whole = caller("recommend", history=["i1"], k=8)
    pages = caller.pages(history=["i1"], k=3, depth=8, explain="none")
    assert [len(page.items) for page in pages] == [3, 3, 2]
    assert [item.item_id for page in pages for item in page.items] == [item.item_id for item in whole.items]
    assert {page.recommendation_id for page in pages} == {pages[0].recommendation_id}
    assert {item.reason for page in pages for item in page.items} == {None}
    assert pages[-1].next_cursor is None
    assert len(caller.pages(history=["i1"], k=3)) == 1
    with pytest.raises(ApiError, match="no cursor of this service"):
        caller("next_page", "made up")


def test_what_is_said_of_a_list_is_not_dropped(caller: Caller) -> None:
    found = caller("recommend", history=["i1", "i2"], k=3, details=True, rules=Rules(diversity=0.9))
    assert (found.degraded, found.chains, found.used_profile) == (False, (), False)
    assert found.details.stage == "generator"
    assert "exclude_seen" in {rule.field for rule in found.details.rules}
    assert sum(found.items[0].code_log_probs) == pytest.approx(found.items[0].score, abs=1e-3)
    assert found.timings_ms["total"] > 0
    ranked = caller("rank", ["i5", "i6"], history=["i1"], explain="none", details=True)
    assert (ranked.details.stage, ranked.items[0].reason) == ("rank", None)
    assert caller("similar_items", "i3", details=True).details.stage == "similar"
    assert caller("search", "item 1", details=True).details.stage == "words"
    detail = caller("item", "i1")
    assert (detail.status, detail.attributes) == ("generatable", {"brand": "brand 1"})


def test_a_refusal_says_what_the_service_says(caller: Caller) -> None:
    with pytest.raises(ApiError) as refused:
        caller("recommend", history=[], k=1000)
    assert refused.value.status == 422
    assert refused.value.fields == ("k",)
    assert "less than or equal to 100" in refused.value.detail
    assert refused.value.request_id in str(refused.value)
    with pytest.raises(ApiError, match="404: user 'nobody' is unknown"):
        caller("user", "nobody")
    assert caller.waits == [], "what will not get better is not asked again"


def test_without_a_key_the_refusal_says_how_to_get_one(guarded: Guarded, colour: str) -> None:
    with pytest.raises(ApiError, match="recsys keys create"):
        Caller(colour, transport=InProcess(guarded.client))("model")


# ---- failing services ----

LIST = {
    "recommendation_id": "r",
    "items": [],
    "source": "generator",
    "fallback_reason": None,
    "unknown_items": [],
    "model_version": "v",
    "a_field_of_a_later_version": 1,
}


def _failing(colour: str, answers: list[Any], seen: list[bytes] | None = None, **retry: Any) -> Caller:
    """A client of a service that gives these answers in turn."""
    left = list(answers)

    def answer(request: httpx.Request) -> httpx.Response:
        if seen is not None:
            seen.append(request.content)
        following = left.pop(0)
        if isinstance(following, Exception):
            raise following
        status, headers = following
        return httpx.Response(status, headers=headers, json=LIST if status == 200 else {"detail": "busy"})

    return Caller(colour, transport=httpx.MockTransport(answer), retry=Retry(random=lambda: 1.0, **retry))


def test_what_fails_for_a_while_is_asked_again_later_and_later(colour: str) -> None:
    caller = _failing(colour, [httpx.ConnectError("refused"), (503, {}), httpx.ReadTimeout("slow"), (200, {})])
    assert caller("recommend", history=[]).model_version == "v"
    assert caller.waits == [0.1, 0.2, 0.4]


@pytest.mark.parametrize("status", [408, 429, 502, 503, 504])
def test_the_service_says_when_to_come_back(colour: str, status: int) -> None:
    caller = _failing(colour, [(status, {"retry-after": "2"}), (200, {})])
    caller("recommend", history=[])
    assert caller.waits == [2.0]


def test_who_is_asked_to_wait_too_long_is_told_so_at_once(colour: str) -> None:
    caller = _failing(colour, [(429, {"retry-after": "60"})])
    with pytest.raises(ApiError) as refused:
        caller("recommend", history=[])
    assert (refused.value.status, refused.value.retry_after_s) == (429, 60.0)
    assert caller.waits == []


def test_attempts_end(colour: str) -> None:
    caller = _failing(colour, [(503, {})] * 3, attempts=3)
    with pytest.raises(ApiError, match="503: busy"):
        caller("recommend", history=[])
    assert len(caller.waits) == 2
    caller = _failing(colour, [httpx.ConnectError("refused")] * 2, attempts=2)
    with pytest.raises(UnreachableError, match="http://service does not answer"):
        caller("recommend", history=[])


def test_every_attempt_sends_the_same_event_ids(colour: str) -> None:
    seen: list[bytes] = []
    caller = _failing(colour, [httpx.ReadError("lost"), (503, {}), (500, {})], seen)
    with pytest.raises(ApiError, match="500"):
        caller("send_events", [Event(user_id="u", item_id="i1")])
    assert len(seen) == 3
    assert len(set(seen)) == 1
    assert Event(user_id="u", item_id="i").event_id != Event(user_id="u", item_id="i").event_id


@pytest.mark.parametrize("content", [b"<html>", b"{}", b"[]", b'{"items": 1}'])
def test_something_else_at_the_address_is_recognised(colour: str, content: bytes) -> None:
    caller = Caller(colour, transport=httpx.MockTransport(lambda _: httpx.Response(200, content=content)))
    with pytest.raises(ClientError, match="is this the API"):
        caller("model")
    caller = Caller(colour, transport=httpx.MockTransport(lambda _: httpx.Response(404, content=content)))
    with pytest.raises(ApiError, match="404: Not Found"):
        caller("model")


def test_waits_double_up_to_a_limit_and_are_random_below_it() -> None:
    retry = Retry(attempts=10, first_s=1, longest_s=5, random=lambda: 1.0)
    assert [retry.wait_s(attempt, None) for attempt in (1, 2, 3, 4, 9, 10)] == [1, 2, 4, 5, 5, None]
    assert Retry(random=lambda: 0.25, first_s=1).wait_s(1, None) == 0.25
    assert Retry(random=lambda: 0.25, first_s=1).wait_s(1, 0.5) == 0.5
    with pytest.raises(ValueError, match="attempts"):
        Retry(attempts=0)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("3", 3),
        ("Tue, 24 Nov 2026 12:00:05 GMT", 5),
        ("Tue, 24 Nov 2026 11:00:00 GMT", 0),
        ("soon", None),
        ("-1", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str | None, seconds: float | None) -> None:
    assert parse_retry_after(value, datetime(2026, 11, 24, 12, tzinfo=UTC)) == seconds


# ---- contracts ----


def test_the_client_reads_what_the_api_promises(app: FastAPI) -> None:
    schemas = app.openapi()["components"]["schemas"]
    for model, name in [
        (Recommendations, "RecommendResponse"),
        (RecommendedItem, "RecommendedItem"),
        (BatchResult, "BatchResponse"),
        (BatchEntry, "BatchEntry"),
        (ListDetails, "ListDetails"),
        (FiredRule, "FiredRule"),
        (TouchedItem, "TouchedItem"),
        (HistoryItem, "HistoryItem"),
        (Item, "ItemSummary"),
        (ItemDetail, "ItemDetail"),
        (ItemPage, "ItemPage"),
        (ItemChange, "ItemChange"),
        (ItemsResult, "ItemsResponse"),
        (ItemLineResult, "ItemLineResult"),
        (Neighbours, "Neighbours"),
        (Neighbour, "Neighbour"),
        (EventsResult, "EventsResponse"),
        (RejectedEvent, "RejectedEvent"),
        (User, "UserDetail"),
        (Model, "ModelResponse"),
        (Interests, "InterestsOut"),
    ]:
        assert model.model_fields.keys() == set(schemas[name]["required"]), name
    assert Event.model_fields.keys() == schemas["EventIn"]["properties"].keys()
    assert NewItem.model_fields.keys() == {"item_id", *schemas["ItemIn"]["properties"]}
    sent = (Request.__annotations__.keys() - {"rules"}) | Rules.model_fields.keys()
    assert sent == schemas["RecommendRequest"]["properties"].keys()
    for request in ("SimilarRequest", "SearchRequest"):
        assert Rules.model_fields.keys() <= schemas[request]["properties"].keys()
    assert Pin.model_fields.keys() == schemas["PinIn"]["properties"].keys()
    assert Boost.model_fields.keys() == schemas["BoostIn"]["properties"].keys()


def test_both_clients_are_the_same_but_for_their_colour() -> None:
    def colourless(module: Any) -> list[str]:
        text = inspect.getsource(module).partition('"""\n')[2]
        for word, plain in [
            ("AsyncIterator, Awaitable, Callable, Sequence", "Callable, Iterator, Sequence"),
            ("AsyncIterator", "Iterator"),
            ("async ", ""),
            ("await ", ""),
            ("AsyncClient", "Client"),
            ("AsyncBaseTransport", "BaseTransport"),
            ("asyncio", "time"),
            ("Awaitable[None]", "None"),
            ("tasks of one event loop", "threads"),
            ("__aenter__", "__enter__"),
            ("__aexit__", "__exit__"),
            ("aclose", "close"),
            ("an `with` block", "a `with` block"),
        ]:
            text = text.replace(word, plain)
        return text.splitlines()

    assert colourless(asynchronous) == colourless(blocking)


def test_the_client_loads_no_model_library() -> None:
    code = "import sys, serving.client; print(*{'torch', 'transformers', 'fastapi', 'polars'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
