"""Bodies, headers and paths that no well-meaning client sends: a 4xx that says what is wrong, never a 5xx."""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import anyio
import pytest
from fastapi.testclient import TestClient
from hypothesis import example, given, settings
from hypothesis import strategies as st
from starlette.exceptions import HTTPException

from feature_store import EmbeddedServer, OnlineStore
from serving.app import create_app
from serving.middleware import BodyLimitMiddleware
from serving.schemas.events import MAX_EVENTS, EventIn
from serving.schemas.fields import MAX_CATEGORIES, MAX_PAGE
from serving.schemas.requests import MAX_HISTORY, RecommendRequest
from serving.schemas.rules import MAX_EXCLUDE, MAX_K
from serving.schemas.users import ProfileIn

JSON = {"content-type": "application/json"}
SENDERS = (
    ("POST", "/v1/recommend"),
    ("POST", "/v1/rank"),
    ("POST", "/v1/events"),
    ("PUT", "/v1/profiles/ann"),
    ("PUT", "/v1/items/i1"),
)


@pytest.fixture(scope="module")
def hostile(make_runtime) -> Iterator[TestClient]:
    """A client that sees a crash of the app as the 500 that others see."""
    with tempfile.TemporaryDirectory() as directory:
        server = EmbeddedServer(Path(directory))
        server.ensure_running()
        app = create_app(make_runtime(), OnlineStore.connect(f"unix://{server.socket_path}"))
        with TestClient(app, raise_server_exceptions=False) as client:
            yield client
        server.stop()


def _assert_problem(response, *statuses: int) -> str:
    assert response.status_code in statuses, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert len(response.content) < 20_000, "an error is no echo"
    assert "Traceback" not in response.text
    detail: str = response.json()["detail"]
    assert detail
    return detail


@pytest.mark.parametrize(("method", "path"), SENDERS)
@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b'{"history":' * 50_000, "nested too deeply"),
        (b'{"history": [' + b"[" * 5000 + b"]" * 5000 + b"]}", "nested too deeply"),
        (b'{"history": ["\xff\xfe"]}', "not UTF-8: byte 14"),
        (b'{"k": ' + b"9" * 5000 + b"}", "too many digits"),
        (b'{"k": 1', "JSON decode error"),
        (b"", "body: Field required"),
    ],
)
def test_what_is_no_json_is_refused_with_the_reason(
    hostile: TestClient, method: str, path: str, body: bytes, detail: str
) -> None:
    assert detail in _assert_problem(hostile.request(method, path, content=body, headers=JSON), 400, 422)


@pytest.mark.parametrize(("method", "path"), SENDERS)
def test_deep_but_readable_json_is_the_wrong_type(hostile: TestClient, method: str, path: str) -> None:
    for body in (b"[" * 400 + b"]" * 400, b'{"k":' * 300 + b"1" + b"}" * 300):
        _assert_problem(hostile.request(method, path, content=body, headers=JSON), 422)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ('{"history": [], "k": NaN}', "k"),
        ('{"history": [], "k": Infinity}', "k"),
        ('{"history": [], "k": 1e400}', "k"),
        ('{"history": [], "k": 1.5}', "k"),
        ('{"history": [], "k": 999999999999999999999}', "k"),
        ('{"history": ["\\ud800"]}', "history[0]"),
        ('{"user_id": ""}', "user_id"),
        (json.dumps({"history": [], "k": MAX_K + 1}), "k"),
        (json.dumps({"history": ["x"] * (MAX_HISTORY + 1)}), "history"),
        (json.dumps({"history": [], "exclude": ["x"] * (MAX_EXCLUDE + 1)}), "exclude"),
        (json.dumps({"history": [], "categories": ["x"] * (MAX_CATEGORIES + 1)}), "categories"),
    ],
)
def test_values_outside_their_limits_are_named(hostile: TestClient, body: str, field: str) -> None:
    response = hostile.post("/v1/recommend", content=body, headers=JSON)
    _assert_problem(response, 422)
    assert response.json()["fields"][0]["field"] == field


@pytest.mark.parametrize("timestamp", ["NaN", "Infinity", "-1", "1e300", '"9999-99-99"', "253402300800000"])
def test_times_that_are_none_are_named(hostile: TestClient, timestamp: str) -> None:
    body = f'{{"event_id": "e", "user_id": "u", "item_id": "i1", "timestamp": {timestamp}}}'
    assert "timestamp" in _assert_problem(hostile.post("/v1/events", content=body, headers=JSON), 422)


def test_lists_are_as_long_as_said_and_no_longer(hostile: TestClient) -> None:
    event = {"user_id": "u", "item_id": "i1"}
    events = [event | {"event_id": f"e{number}"} for number in range(MAX_EVENTS + 1)]
    assert hostile.post("/v1/events", json=events[:-1]).json()["accepted"] == MAX_EVENTS
    _assert_problem(hostile.post("/v1/events", json=events), 422)
    _assert_problem(hostile.get("/v1/items", params={"limit": MAX_PAGE + 1}), 422)
    _assert_problem(hostile.get("/v1/items", params={"offset": "9" * 5000}), 422)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-encoding": "gzip"}, 415),
        ({"content-type": "application/json; charset=utf-16"}, 415),
        ({"content-type": "application/json; charset=\x22"}, 415),
        ({"content-type": "application/json; charset=UTF-8"}, 200),
        ({"content-encoding": "identity"}, 200),
        ({"content-type": "text/plain"}, 422),
        ({"content-type": "multipart/form-data"}, 422),
    ],
)
def test_only_plain_utf8_is_read(hostile: TestClient, headers: dict[str, str], status: int) -> None:
    body = b'{"history": []}'
    content = gzip.compress(body) if headers.get("content-encoding") == "gzip" else body
    response = hostile.post("/v1/recommend", content=content, headers=JSON | headers)
    if status == 200:
        assert response.status_code == 200
    else:
        _assert_problem(response, status)


def test_a_body_that_trickles_in_is_refused_in_time() -> None:
    async def read(receive) -> int:
        middleware = BodyLimitMiddleware(_reader, max_bytes=100, timeout_s=0.05)
        try:
            await middleware({"type": "http", "headers": []}, receive, _ignore)
        except HTTPException as error:
            return error.status_code
        return 200

    async def trickle() -> dict:
        await anyio.sleep(0.02)
        return {"type": "http.request", "body": b"x", "more_body": True}

    sent = []

    async def whole_then_idle() -> dict:
        if not sent:
            sent.append(1)
            return {"type": "http.request", "body": b"x", "more_body": False}
        await anyio.sleep(0.2)
        return {"type": "http.disconnect"}

    assert anyio.run(read, trickle) == 408
    assert anyio.run(read, whole_then_idle) == 200


async def _reader(_: dict, receive, __) -> None:
    """Reads the body, then waits for the end of the connection, as an answer that takes its time does."""
    while (await receive()).get("more_body", False):
        pass
    await receive()


async def _ignore(_: dict) -> None:
    pass


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = st.sampled_from((*RecommendRequest.model_fields, *EventIn.model_fields, *ProfileIn.model_fields))


@settings(max_examples=60)
@given(sender=st.sampled_from(SENDERS), body=ANYTHING | st.dictionaries(FIELDS, ANYTHING, max_size=6))
def test_any_json_is_answered_or_refused(hostile: TestClient, sender: tuple[str, str], body: object) -> None:
    text = json.dumps(body)  # NaN and lone surrogates included
    assert hostile.request(*sender, content=text, headers=JSON).status_code < 500


_NUMBER_OR_TEXT = (
    st.floats() | st.integers(-(10**400), 10**400) | st.text(max_size=5) | st.sampled_from(["brand 1", "even"])
)
_COLUMN = st.sampled_from(["item_id", "title", "categories", "brand", "", "color"])
_FILTERS = st.recursive(
    st.dictionaries(
        st.sampled_from(["eq", "in", "range", "exists", "contains", "named", "x"]),
        st.fixed_dictionaries(
            {"column": _COLUMN},
            optional={
                "value": _NUMBER_OR_TEXT,
                "values": st.lists(_NUMBER_OR_TEXT, max_size=3),
                "min": _NUMBER_OR_TEXT,
                "max": _NUMBER_OR_TEXT,
            },
        )
        | ANYTHING,
        max_size=2,
    ),
    lambda inner: st.dictionaries(
        st.sampled_from(["and", "or", "not"]), inner | st.lists(inner, max_size=3), max_size=2
    ),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(found=_FILTERS, path=st.sampled_from(["recommend", "similar-items", "search"]), is_boost=st.booleans())
@example(found={"eq": {"column": "brand", "value": "\ud800"}}, path="recommend", is_boost=False)
@example(found={"range": {"column": "title", "min": 1e308}}, path="search", is_boost=True)
def test_any_filter_is_answered_or_refused(hostile: TestClient, found: object, path: str, is_boost: bool) -> None:
    who = {"recommend": {"history": ["i1"]}, "similar-items": {"item_id": "i1"}, "search": {"query": "item"}}[path]
    rules = {"boosts": [{"weight": 1, "filter": found}]} if is_boost else {"filter": found}
    response = hostile.post(f"/v1/{path}", content=json.dumps(who | rules), headers=JSON)
    if response.status_code != 200:
        _assert_problem(response, 422)


@settings(max_examples=60)
@given(sender=st.sampled_from(SENDERS), body=st.binary(max_size=60))
@example(sender=SENDERS[0], body=b"\xef\xbb\xbf{}")
@example(sender=SENDERS[0], body=b"\x00")
@example(sender=SENDERS[0], body='{"history": []}'.encode("utf-16"))
def test_any_bytes_are_answered_or_refused(hostile: TestClient, sender: tuple[str, str], body: bytes) -> None:
    assert hostile.request(*sender, content=body, headers=JSON).status_code < 500


@settings(max_examples=60)
@given(
    place=st.sampled_from(["/v1/items/", "/v1/users/", "/v1/profiles/", "/v1/items?query=", "/v1/users?query=", "/"]),
    raw=st.binary(max_size=30),
)
@example(place="/v1/users/", raw=b"\xff\xfe")
@example(place="/v1/users/", raw=b"a\x00b")
@example(place="/v1/users/", raw=b"../../etc/passwd")
@example(place="/dashboard/", raw=b"../../etc/passwd")
def test_any_path_is_answered_or_refused(hostile: TestClient, place: str, raw: bytes) -> None:
    assert hostile.get(place + quote(raw, safe="")).status_code < 500


@settings(max_examples=40)
@given(
    name=st.sampled_from([b"X-Request-ID", b"Content-Type", b"Authorization", b"Accept", b"Origin", b"Content-Length"]),
    value=st.binary(max_size=40).filter(lambda value: not set(value) & {0, 10, 13}),
)
def test_any_header_is_answered_or_refused(hostile: TestClient, name: bytes, value: bytes) -> None:
    assert hostile.post("/v1/recommend", content=b"{}", headers={name: value}).status_code < 500
