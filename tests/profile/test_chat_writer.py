from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chat_server import serve_chat

from recsys.errors import ConfigError
from recsys.generator.lm.config import ChatTeacherConfig
from recsys.profile.writers import ChatWriter

asked: list[dict[str, Any]] = []


@pytest.fixture
def url() -> Iterator[str]:
    """A server that says what it was asked, in capitals."""
    asked.clear()

    def says(body: dict[str, Any]) -> str:
        asked.append(body)
        content: str = body["messages"][0]["content"]
        return content.upper()

    with serve_chat(says) as url:
        yield url


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
