"""Many requests at once equal the same ones alone; the pages of a frozen list are the list."""

from __future__ import annotations

import asyncio
import base64
import struct
import zlib
from collections import Counter
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from feature_store import OnlineStore
from serving.admission import Admission, Ticket
from serving.app import create_app
from serving.cursors import CursorError, Frozen
from serving.problems import ProblemError
from serving.schemas.lists import RecommendResponse
from serving.settings import ServingSettings
from serving.stages import Listed

REQUESTS: list[dict[str, Any]] = [
    {"user_id": "ann", "k": 5},
    {"history": ["i4"], "k": 3, "categories": ["low"]},
    {"history": [], "k": 2},
    {"history": ["i7", "i8"], "k": 20, "exclude": ["i1", "i2"]},
    {"history": ["i3"], "k": 6, "max_per_category": 1},
    {"user_id": "bob", "k": 1, "exclude_seen": False},
]
BAD: list[tuple[dict[str, Any], int, str]] = [
    ({"user_id": "nobody"}, 404, "user_id"),
    ({"user_id": "ann", "k": 0}, 422, "k"),
    ({"history": ["i1"], "categories": ["nope"]}, 422, "categories"),
    ({}, 422, "body"),
    ({"history": ["i1"], "color": "red"}, 422, "color"),
]


def _listed(answer: dict[str, Any]) -> list[tuple[str, float]]:
    return [(item["item_id"], pytest.approx(item["score"], abs=1e-5)) for item in answer["items"]]


def test_a_batch_equals_its_requests_alone_and_bad_ones_fail_alone(client: TestClient) -> None:
    alone = [client.post("/v1/recommend", json=request).json() for request in REQUESTS]
    mixed = [body for pair in zip(REQUESTS, [bad for bad, _, _ in BAD], strict=False) for body in pair]
    response = client.post("/v1/recommend:batch", json={"requests": [*mixed, REQUESTS[-1]]})
    assert response.status_code == 200
    results = response.json()["results"]
    good = [results[2 * place] for place in range(len(REQUESTS))]
    for entry, expected in zip(good, alone, strict=True):
        assert (entry["status"], entry["problem"]) == (200, None)
        assert [(item["item_id"], item["score"]) for item in entry["answer"]["items"]] == _listed(expected)
        assert entry["answer"]["source"] == expected["source"]
    for entry, (body, status, field) in zip(results[1::2], BAD, strict=True):
        assert (entry["status"], entry["answer"]) == (status, None)
        assert entry["problem"]["fields"][0]["field"] == field
        if status == 422:
            assert client.post("/v1/recommend", json=body).json()["detail"] == entry["problem"]["detail"]


def test_a_large_batch_has_the_time_of_a_large_batch(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    tickets: list[Ticket] = []
    monkeypatch.setattr(Admission, "leave", lambda _, ticket: tickets.append(ticket))
    for size in (1, 64):
        client.post("/v1/recommend:batch", json={"requests": [{"history": []}] * size})
    one, many = (ticket.deadline_s for ticket in tickets)
    assert one < many == pytest.approx(3 * one / (1 + 1 / 32))


def test_other_clients_have_their_turns_while_a_batch_is_answered(
    app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn, began = 0, Counter[int]()

    async def refuse(*_: object, **__: object) -> RecommendResponse:
        began[turn] += 1
        raise ProblemError(404, "nobody")

    async def others() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    async def post() -> httpx.Response:
        waiting = asyncio.create_task(others())
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            response = await client.post("/v1/recommend:batch", json={"requests": [{"history": []}] * 30})
        waiting.cancel()
        return response

    monkeypatch.setattr("serving.routes.recommend.respond", refuse)
    assert [entry["status"] for entry in asyncio.run(post()).json()["results"]] == [404] * 30
    assert began.total() == 30
    assert max(began.values()) <= 4


@pytest.mark.parametrize("requests", [[], [{}] * 101, "many", [1]])
def test_a_batch_that_is_none_is_refused_as_a_whole(client: TestClient, requests: object) -> None:
    assert client.post("/v1/recommend:batch", json={"requests": requests}).status_code == 422


def test_the_filters_of_a_batch_have_a_limit_together(client: TestClient) -> None:
    def post(count: int, *further: object) -> httpx.Response:
        one = {"history": [], "filter": {"or": [{"exists": {"column": "brand"}}] * 49}}
        one["boosts"] = [{"weight": 1, "filter": {"and": [{"exists": {"column": "title"}}] * 49}}]
        return client.post("/v1/recommend:batch", json={"requests": [one] * count + list(further)})

    assert [entry["status"] for entry in post(10, {"k": 0}).json()["results"]] == [200] * 10 + [422]
    refused = post(10, {"history": [], "filter": {"exists": {"column": "brand"}}})
    assert refused.status_code == 422
    assert refused.json()["fields"][0]["field"] == "requests"
    assert "may have 1000 conditions together, got 1001; send smaller batches" in refused.json()["detail"]


@pytest.mark.parametrize("request_", [{"history": ["i4", "i9"]}, {"history": []}])
def test_pages_are_disjoint_and_together_the_list(client: TestClient, request_: dict[str, Any]) -> None:
    whole = client.post("/v1/recommend", json=request_ | {"k": 17}).json()
    page = client.post("/v1/recommend", json=request_ | {"k": 5, "depth": 17}).json()
    pages = [page]
    while page["next_cursor"] is not None:
        # What the user does meanwhile changes no later page.
        client.post("/v1/events", json={"event_id": str(len(pages)), "user_id": "ann", "item_id": "i5"})
        page = client.post("/v1/recommend:next", json={"cursor": page["next_cursor"], "k": 5}).json()
        pages.append(page)
    assert [len(page["items"]) for page in pages] == [5, 5, 5, 2]
    assert len({page["recommendation_id"] for page in pages}) == 1
    assert whole["next_cursor"] is None
    items = [item for page in pages for item in page["items"]]
    assert [item["item_id"] for item in items] == [item["item_id"] for item in whole["items"]]
    assert [item["reason"] for item in items] == [item["reason"] for item in whole["items"]]
    assert {page["source"] for page in pages} == {whole["source"]}


def test_a_list_is_as_deep_as_its_page_at_least(client: TestClient) -> None:
    response = client.post("/v1/recommend", json={"history": ["i1"], "k": 5, "depth": 4})
    assert response.status_code == 422
    assert "depth must be at least k" in response.json()["detail"]


def test_a_cursor_expires(runtime, store: OnlineStore) -> None:
    with TestClient(create_app(runtime, store, ServingSettings(cursor_s=1e-6))) as client:
        cursor = client.post("/v1/recommend", json={"history": [], "k": 1, "depth": 3}).json()["next_cursor"]
        response = client.post("/v1/recommend:next", json={"cursor": cursor})
    assert response.status_code == 422
    assert "expired" in response.json()["detail"]


def test_a_cursor_of_a_model_that_is_gone_says_so(client: TestClient, make_runtime, store: OnlineStore) -> None:
    with TestClient(create_app(make_runtime(version="older"), store)) as older:
        cursor = older.post("/v1/recommend", json={"history": [], "k": 1, "depth": 3}).json()["next_cursor"]
    response = client.post("/v1/recommend:next", json={"cursor": cursor})
    assert response.status_code == 410


def _frozen(items: list[int], history: list[int]) -> Frozen:
    return Frozen(
        model_version="abc123",
        catalog_version=0,
        recommendation_id="r",
        source="fusion",
        fallback_reason="no_time",
        expires=100.0,
        history=np.array(history, dtype=np.int64),
        listed=Listed(items=np.array(items, dtype=np.int64), scores=-np.arange(len(items), dtype=np.float32) / 3),
    )


@given(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=100), st.lists(st.integers(0, 9), max_size=50))
def test_a_cursor_holds_what_it_was_made_of(items: list[int], history: list[int]) -> None:
    frozen = _frozen(items, history)
    again = Frozen.of(frozen.text(), now=100.0)
    assert again.listed.items.tolist() == items
    assert again.history.tolist() == history
    np.testing.assert_array_equal(again.listed.scores, frozen.listed.scores)
    assert (again.source, again.fallback_reason, again.expires) == ("fusion", "no_time", 100.0)


def _packed(raw: bytes) -> str:
    return base64.urlsafe_b64encode(zlib.compress(raw)).decode()


def _with_head(head: str) -> str:
    return _packed(struct.pack("<H", len(head)) + head.encode() + bytes(8))


NO_CURSORS = {
    "short": "x",
    "other alphabet": "%%%",
    "empty": _packed(b""),
    "cut": _packed(b"\xff\xff{}"),
    "no fields": _with_head("[]"),
    "no packing": "A" * 3000,
    "nested": _with_head("[" * 19_000),
    "endless": _with_head(f'[1, "abc123", "r", "fusion", null, 1{"0" * 400}, 0]'),
}


@pytest.mark.parametrize("text", NO_CURSORS.values(), ids=NO_CURSORS)
def test_what_is_no_cursor_is_refused(client: TestClient, text: str) -> None:
    with pytest.raises(CursorError, match="no cursor of this service"):
        Frozen.of(text, now=0.0)
    assert client.post("/v1/recommend:next", json={"cursor": text}).status_code == 422


def test_a_cursor_that_names_items_outside_the_catalogue_is_refused(client: TestClient) -> None:
    cursor = _frozen([5, 99], []).text()
    later = Frozen.of(cursor, now=0.0)
    response = client.post("/v1/recommend:next", json={"cursor": Frozen(**{**vars(later), "expires": 1e12}).text()})
    assert response.status_code == 422


def test_a_bomb_is_not_unpacked(client: TestClient) -> None:
    text = _packed(b"\x00" * 3_000_000)
    assert len(text) < 8000
    with pytest.raises(CursorError):
        Frozen.of(text, now=0.0)
