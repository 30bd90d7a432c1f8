"""A service as an arm: what it is asked, and one clear line for each way in which it can fail."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from recsys.data import Sequences
from recsys.errors import ConfigError, RecsysError
from training.service_arm import ServiceRanker

ITEM_IDS = [f"i{item}" for item in range(12)]
HISTORIES = Sequences.from_lists([[0, 2], [5]])

Answer = Callable[[int, dict[str, Any]], tuple[int, dict[str, str], object]]
"""From the number of the request and what it asks to a status, headers, and a document (or text)."""


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], str]]:
    """Starts a service that answers as it is told; the URL comes back."""
    servers: list[ThreadingHTTPServer] = []

    def start(answer: Answer) -> str:
        class Handler(BaseHTTPRequestHandler):
            count = 0

            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                asked["key"] = self.headers.get("Authorization")
                Handler.count += 1
                status, headers, document = answer(Handler.count, asked)
                content = (document if isinstance(document, str) else json.dumps(document)).encode()
                self.send_response(status)
                for name, value in (headers | {"Content-Length": str(len(content))}).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *arguments: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def listed(*item_ids: str, **more: object) -> tuple[int, dict[str, str], object]:
    return 200, {}, {"items": [{"item_id": item_id} for item_id in item_ids], **more}


def test_what_it_is_asked_and_what_comes_back(serve: Callable[[Answer], str]) -> None:
    seen: list[dict[str, Any]] = []

    def answer(_: int, asked: dict[str, Any]) -> tuple[int, dict[str, str], object]:
        seen.append(asked)
        return listed("i3", "unknown", "i1", model_version="m1", degraded=len(seen) == 2)

    ranker = ServiceRanker(serve(answer), ITEM_IDS, "secret")
    np.testing.assert_array_equal(ranker(HISTORIES, 3), [[3, 1, -1], [3, 1, -1]])
    assert seen == [
        {"history": history, "k": 3, "explain": "none", "key": "Bearer secret"} for history in (["i0", "i2"], ["i5"])
    ]
    assert (ranker.model_version, ranker.unknown_items, ranker.num_degraded) == ("m1", {"unknown"}, 1)
    long = Sequences.from_lists([np.arange(300) % 12])
    ranker(long, 3)
    assert len(seen[-1]["history"]) == 200
    assert seen[-1]["history"][-1] == "i11"


def test_a_service_that_has_no_time_is_asked_again_when_it_says(serve: Callable[[Answer], str]) -> None:
    def busy(count: int, _: dict[str, Any]) -> tuple[int, dict[str, str], object]:
        if count < 4:
            return 429 if count % 2 else 503, {"Retry-After": "0"}, {"detail": "too many requests"}
        return listed("i1")

    np.testing.assert_array_equal(ServiceRanker(serve(busy), ITEM_IDS)(HISTORIES, 1), [[1], [1]])


@pytest.mark.parametrize(
    ("status", "headers", "document", "message"),
    [
        (401, {}, {"detail": "a key is needed"}, "answered 401: a key is needed; give its key with --key or RECSYS_"),
        (403, {}, {"detail": "not for this role"}, "answered 403: not for this role; give its key with --key"),
        (503, {}, {"detail": "the store\nis away"}, "answered 503: the store is away$"),
        (503, {"Retry-After": "0"}, {"detail": "loading"}, "answered 503: loading$"),
        (429, {"Retry-After": "3600"}, {"detail": "come back later"}, "answered 429: come back later$"),
        (500, {}, "oops", "answered 500: oops$"),
        (502, {}, "", "answered 502: Bad Gateway$"),
        (200, {}, "<html>", "answered, but not with a list of items; is it a service of recsys"),
        (200, {}, [1], "answered, but not with a list of items"),
        (200, {}, {"items": [{}]}, "answered, but not with a list of items"),
    ],
)
def test_refusals_are_one_line(
    serve: Callable[[Answer], str], status: int, headers: dict[str, str], document: object, message: str
) -> None:
    ranker = ServiceRanker(serve(lambda *_: (status, headers, document)), ITEM_IDS)
    with pytest.raises(RecsysError, match=message) as raised:
        ranker(HISTORIES, 2)
    assert "\n" not in str(raised.value)


def test_a_service_that_does_not_answer_in_time(serve: Callable[[Answer], str]) -> None:
    released = threading.Event()

    def stuck(*_: object) -> tuple[int, dict[str, str], object]:
        released.wait(20)
        return listed("i1")

    ranker = ServiceRanker(serve(stuck), ITEM_IDS, timeout_s=0.2)
    begin = time.monotonic()
    with pytest.raises(RecsysError, match=r"gives no list within 0.2 s; is it running, and not overloaded"):
        ranker(HISTORIES, 1)
    released.set()
    assert time.monotonic() - begin < 15


def test_a_model_that_changes_during_the_test_ends_it(serve: Callable[[Answer], str]) -> None:
    ranker = ServiceRanker(serve(lambda count, _: listed("i1", model_version=f"m{count}")), ITEM_IDS)
    with pytest.raises(RecsysError, match="changed its model from m1 to m2 during the test"):
        ranker(HISTORIES, 1)


def test_nobody_is_there_or_the_url_is_none() -> None:
    with pytest.raises(RecsysError, match=r"gives no list: .*; is it running"):
        ServiceRanker("http://127.0.0.1:9", ITEM_IDS)(HISTORIES, 1)
    for impossible, key in (("http://localhost:abc", None), ("http://127.0.0.1:9", "schlüssel")):
        with pytest.raises(ConfigError, match="is no URL"):
            ServiceRanker(impossible, ITEM_IDS, key)
