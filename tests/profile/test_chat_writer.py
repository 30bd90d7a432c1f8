from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from recsys.errors import ConfigError
from recsys.generator.lm.config import ChatTeacherConfig
from recsys.profile.writers import ChatWriter

asked: list[dict[str, Any]] = []


@pytest.fixture
def url() -> Iterator[str]:
    """A server that says what it was asked, in capitals."""
    asked.clear()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            asked.append(body)
            message = {"content": body["messages"][0]["content"].upper()}
            answer = json.dumps({"choices": [{"message": message}]}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_chat_model_is_asked_once_for_each_draw(url: str, tmp_path: Path) -> None:
    config = ChatTeacherConfig(base_url=url, model="m", cache=tmp_path / "answers.jsonl", concurrency=1)
    writer = ChatWriter(config)
    assert writer.write(["one", "two"], temperature=0.7, seed=1) == ["ONE", "TWO"]
    assert asked[0]["temperature"] == 0.7
    assert asked[0]["seed"] == 1
    assert ChatWriter(config).write(["one"], temperature=0.7, seed=1) == ["ONE"]
    assert len(asked) == 2  # kept in the file
    writer.write(["one"], temperature=0.7, seed=2)
    assert len(asked) == 3
    assert writer.count_tokens("two words") == 2


def test_a_missing_key_names_its_setting(tmp_path: Path) -> None:
    config = ChatTeacherConfig(base_url="http://x/v1", model="m", cache=tmp_path / "a", api_key_env="NO_SUCH_KEY_HERE")
    with pytest.raises(ConfigError, match=r"profiles\.chat\.api_key_env: the environment variable NO_SUCH_KEY_HERE"):
        ChatWriter(config)
