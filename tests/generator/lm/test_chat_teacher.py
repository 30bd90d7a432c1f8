"""A chat model as a teacher, against a real server on the loopback: answers, faults, and going on after a break."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from recsys.errors import ArtifactError, ConfigError
from recsys.generator.lm.chat_client import ChatError
from recsys.generator.lm.chat_teacher import ChatTeacher
from recsys.generator.lm.config import ChatTeacherConfig
from recsys.generator.lm.reasoning import Case, Chain

TITLES = ["Red Pen", "Blue Ink", "Grey Pad", "Oak Desk", ""]
DESCRIPTIONS = ["Writes red", "", "Sixty sheets of grey paper", "", ""]
CASE = Case(place=2, user=0, history=(0, 2, 4), target=3)
GOOD = {"evidence": "Buys\npaper and pens.", "preference": "Likes writing.", "intent": "Wants a place to write."}
CHAIN = Chain(evidence="Buys paper and pens.", preference="Likes writing.", intent="Wants a place to write.")


def said(content: object) -> tuple[int, dict[str, str], bytes]:
    """A response of the protocol; what is not text is written as JSON."""
    text = content if isinstance(content, str) else json.dumps(content)
    return 200, {}, json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()


@dataclass
class Server:
    """Answers request number n with `answers[n]`, the last one for ever; remembers what it was asked."""

    answers: list[tuple[int, dict[str, str], bytes] | float]
    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)


@contextmanager
def serve(*answers: tuple[int, dict[str, str], bytes] | float) -> Iterator[Server]:
    server = Server(list(answers))
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with lock:
                server.requests.append(body)
                server.keys.append(self.headers.get("authorization"))
                server.paths.append(self.path)
                answer = server.answers[min(len(server.requests), len(server.answers)) - 1]
            if isinstance(answer, float):
                time.sleep(answer)
                return
            status, headers, content = answer
            self.send_response(status)
            for name, value in {"content-length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{http.server_port}/v1"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


@pytest.fixture
def make_teacher(tmp_path: Path) -> Callable[..., ChatTeacher]:
    def make(url: str, **settings: object) -> ChatTeacher:
        values = {"base_url": url, "model": "m", "cache": tmp_path / "kept" / "answers.jsonl", "backoff_s": 0.01}
        config = ChatTeacherConfig.model_validate(values | {"retries": 2, "concurrency": 1} | settings)
        return ChatTeacher(config, TITLES, DESCRIPTIONS, max_words=8)

    return make


MakeTeacher = Callable[..., ChatTeacher]


def test_an_answer_becomes_reasons_of_one_line_each(make_teacher: MakeTeacher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "sesame")
    with serve(said("Sure!\n```json\n" + json.dumps(GOOD | {"recommendation": "Oak Desk"}) + "\n```")) as server:
        teacher = make_teacher(server.url + "/", api_key_env="SOME_KEY", max_description_words=2)
        assert teacher.explain([CASE]) == [CHAIN]
    assert teacher.counts == {"requested": 1, "explained": 1}
    assert server.keys == ["Bearer sesame"]
    assert server.paths == ["/v1/chat/completions"]
    (request,) = server.requests
    assert request["model"] == "m"
    assert request["messages"][1]["content"] == (
        "History:\n1. Red Pen (Writes red)\n2. Grey Pad (Sixty sheets)\nNext item: Oak Desk"
    )


def test_after_429_it_is_asked_again(make_teacher: MakeTeacher) -> None:
    with serve((429, {"retry-after": "0"}, b"slow down"), (503, {}, b""), said(GOOD)) as server:
        teacher = make_teacher(server.url)
        assert teacher.explain([CASE]) == [CHAIN]
    assert len(server.requests) == 3
    assert server.requests[0] == server.requests[2]
    assert server.keys == [None] * 3
    assert teacher.counts == {"requested": 1, "explained": 1}


def test_a_timeout_is_tried_again_and_counted_when_it_lasts(make_teacher: MakeTeacher) -> None:
    with serve(0.5, said(GOOD)) as server:
        teacher = make_teacher(server.url, timeout_s=0.2)
        assert teacher.explain([CASE]) == [CHAIN]
        assert len(server.requests) == 2
    other = Case(place=3, user=1, history=(1,), target=0)
    with serve(said(GOOD), 0.5) as server:
        teacher = make_teacher(server.url, timeout_s=0.2, retries=1, model="other")
        assert teacher.explain([CASE, other]) == [CHAIN, None]
        assert len(server.requests) == 3
    assert teacher.counts == {"requested": 2, "explained": 1, "failed": 1}


@pytest.mark.parametrize(
    "answer",
    [
        said("I cannot do that."),
        said('{"evidence": "a", "preference": "b", "intent": '),
        said({"evidence": "a", "preference": "b"}),
        said({"evidence": "a", "preference": "b", "intent": ["c"]}),
        said({"evidence": "a", "preference": " ", "intent": "c"}),
        (200, {}, b"<html>welcome</html>"),
        (200, {}, b'{"choices": []}'),
        (200, {}, b'{"choices": [{"message": {"content": null}}]}'),
    ],
)
def test_malformed_answers_are_dropped_and_counted(
    make_teacher: MakeTeacher, answer: tuple[int, dict[str, str], bytes]
) -> None:
    with serve(answer) as server:
        teacher = make_teacher(server.url)
        assert teacher.explain([CASE]) == [None]
        assert len(server.requests) == 1
    assert teacher.counts == {"requested": 1, "malformed": 1}


def test_answers_that_name_the_target_are_dropped_and_counted(make_teacher: MakeTeacher) -> None:
    with serve(said(GOOD | {"intent": "Will take the oak desk."})) as server:
        teacher = make_teacher(server.url)
        assert teacher.explain([CASE]) == [None]
    assert teacher.counts == {"requested": 1, "leaking": 1}


def test_without_titles_nothing_is_asked(make_teacher: MakeTeacher) -> None:
    cases = [Case(place=0, user=0, history=(4,), target=1), Case(place=1, user=0, history=(0,), target=4)]
    teacher = make_teacher("http://127.0.0.1:9/v1")
    assert teacher.explain(cases) == [None, None]
    assert teacher.counts == {"untitled": 2}


def test_a_run_that_broke_off_goes_on_where_it_was(make_teacher: MakeTeacher, tmp_path: Path) -> None:
    other = Case(place=3, user=1, history=(1,), target=0)
    refused = (401, {}, b'{"error": "no\n  credit"}')
    with serve(said(GOOD), refused) as server:
        teacher = make_teacher(server.url)
        with pytest.raises(ChatError, match=r'status 401: \{"error": "no credit"\}; mend the settings'):
            teacher.explain([CASE, other])
    cache = tmp_path / "kept" / "answers.jsonl"
    with cache.open("a") as file:
        file.write('\n{"key": "cut sho')  # as a kill leaves it
    with serve(said(GOOD)) as server:
        teacher = make_teacher(server.url)
        assert teacher.explain([CASE, other]) == [CHAIN, CHAIN]
        assert len(server.requests) == 1
        assert teacher.counts == {"requested": 1, "explained": 2}
        # Another model is another question.
        assert make_teacher(server.url, model="n").explain([CASE]) == [CHAIN]
        assert len(server.requests) == 2
    # All is there now: no server is needed.
    assert make_teacher("http://127.0.0.1:9/v1").explain([CASE, other]) == [CHAIN, CHAIN]


def test_many_cases_at_once_come_back_in_order(make_teacher: MakeTeacher) -> None:
    cases = [Case(place=place, user=place, history=(0,) * (1 + place), target=1) for place in range(24)]
    with serve(said(GOOD)) as server:
        teacher = make_teacher(server.url, concurrency=6)
        assert teacher.explain(cases) == [CHAIN] * 24
        assert len(server.requests) == 24
        by_length = {len(request["messages"][1]["content"]) for request in server.requests}
        assert len(by_length) == 24
        again = make_teacher("http://127.0.0.1:9/v1")
        assert again.explain(cases[::-1]) == [CHAIN] * 24


def test_a_server_that_is_down_ends_the_run_with_an_error(make_teacher: MakeTeacher) -> None:
    cases = [Case(place=place, user=0, history=(0,) * (1 + place), target=1) for place in range(9)]
    teacher = make_teacher("http://127.0.0.1:9/v1", retries=0, give_up_after=4)
    with pytest.raises(ChatError, match=r"4 requests in a row failed, the last with ConnectError.*go on"):
        teacher.explain(cases)
    assert teacher.counts["requested"] == 4
    teacher = make_teacher("http://127.0.0.1:9/v1", retries=0)
    with pytest.raises(ChatError, match=r"none of 1 requests was answered"):
        teacher.explain(cases[:1])


def test_settings_that_cannot_work_are_errors(make_teacher: MakeTeacher, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"api_key_env: the environment variable NO_SUCH_KEY is not set; export it"):
        make_teacher("http://127.0.0.1:9/v1", api_key_env="NO_SUCH_KEY")
    with pytest.raises(ArtifactError, match="cannot be read"):
        make_teacher("http://127.0.0.1:9/v1", cache=tmp_path)
    with pytest.raises(ChatError, match=r"mend reasoning\.chat\.base_url"):
        make_teacher("127.0.0.1/v1").explain([CASE])
