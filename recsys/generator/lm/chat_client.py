"""A chat model behind a URL that speaks OpenAI's protocol: questions in, texts out. Knows no wording.

Answers are kept in a file as they come, so that what broke off goes on where it was.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import nullcontext
from typing import Any

import httpx

from recsys.errors import ConfigError, RecsysError
from recsys.files import sha256_json
from recsys.generator.lm.config import ChatTeacherConfig
from recsys.kept_answers import KeptAnswers
from recsys.progress import progress_bar

_RETRIED = frozenset({408, 429, *range(500, 600)})


class ChatError(RecsysError):
    """The chat model cannot be reached or refuses to answer."""


class ChatClient:
    """Asks one chat model.

    Args:
        config: the model and how to ask it.
        section: of the configuration that `config` is, for errors.

    Raises:
        ConfigError: the environment variable of the key is not set.
        ArtifactError: the file of answers cannot be read.
    """

    def __init__(self, config: ChatTeacherConfig, section: str) -> None:
        self._config = config
        self._section = section
        self._headers = _authorization(config.api_key_env, section)
        self._answers = KeptAnswers(config.cache, f"mend {section}.cache")
        self._failures_in_a_row = 0
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self.counts: Counter[str] = Counter()
        """`requested`: requests that were not in the file; `failed`: those without an answer after all attempts."""

    def ask(
        self, conversations: Sequence[Sequence[dict[str, str]]], label: str | None, **options: Any
    ) -> list[str | None]:
        """The answer to each conversation (messages of `role` and `content`): None where all attempts failed, empty
        where the response is not of the protocol.

        Args:
            conversations: what is asked.
            label: of the progress bar; None for none.
            options: further fields of each request; they go before the configured ones.

        Raises:
            ChatError: the server refuses, or too many requests fail in a row, or all do.
        """
        answers: list[str | None] = [None] * len(conversations)
        before = Counter(self.counts)
        self._stopped.clear()
        pool = ThreadPoolExecutor(self._config.concurrency)
        with (
            httpx.Client(timeout=self._config.timeout_s, headers=self._headers) as client,
            nullcontext(_tell_nobody) if label is None else progress_bar(label, len(conversations)) as advance,
        ):
            try:
                numbers = {
                    pool.submit(self._ask, client, self._request(messages, options)): number
                    for number, messages in enumerate(conversations)
                }
                for future in as_completed(numbers):
                    answers[numbers[future]] = future.result()
                    advance(1, "")
            finally:
                self._stopped.set()
                pool.shutdown(cancel_futures=True)
        new = self.counts - before
        if new["failed"] and new["failed"] == new["requested"]:
            raise ChatError(f"{self._url}: none of {new['failed']} requests was answered; is the server up?")
        return answers

    @property
    def _url(self) -> str:
        return self._config.base_url.rstrip("/") + "/chat/completions"

    def _request(self, messages: Sequence[dict[str, str]], options: dict[str, Any]) -> dict[str, Any]:
        return {
            "model": self._config.model,
            "messages": list(messages),
            "temperature": self._config.temperature,
            "max_tokens": self._config.max_tokens,
        } | options

    def _ask(self, client: httpx.Client, request: dict[str, Any]) -> str | None:
        if self._stopped.is_set():
            return None
        key = sha256_json(request)
        answer = self._answers.get(key)
        if answer is not None:
            return answer
        try:
            response = self._post(client, request)
        except ChatError:
            self._stopped.set()
            raise
        if response is None:
            with self._lock:
                self.counts["failed"] += 1
            return None
        answer = _content(response)
        if answer is None:
            return ""
        self._answers.add(key, answer)
        return answer

    def _post(self, client: httpx.Client, request: dict[str, Any]) -> httpx.Response | None:
        """A response of success; None when all attempts failed."""
        with self._lock:
            self.counts["requested"] += 1
        problem = ""
        for attempt in range(self._config.retries + 1):
            wait = self._config.backoff_s * 2**attempt
            try:
                response = client.post(self._url, json=request)
            except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
                raise ChatError(f"{self._url}: {error}; mend {self._section}.base_url") from error
            except httpx.TransportError as error:
                problem = f"{type(error).__name__}: {error}"
            else:
                if response.is_success:
                    with self._lock:
                        self._failures_in_a_row = 0
                    return response
                problem = f"status {response.status_code}: {' '.join(response.text.split())[:200]}"
                if response.status_code not in _RETRIED:
                    raise ChatError(f"{self._url}: {problem}; mend the settings of {self._section}")
                wait = max(wait, _retry_after(response, self._config.timeout_s))
            if attempt == self._config.retries or self._stopped.wait(wait):
                break
        with self._lock:
            self._failures_in_a_row += 1
            if self._failures_in_a_row >= self._config.give_up_after:
                raise ChatError(
                    f"{self._url}: {self._failures_in_a_row} requests in a row failed, the last with {problem}; "
                    "what was answered is kept, run again to go on"
                )
        return None


def _tell_nobody(steps: int, note: str) -> None:
    pass


def _authorization(variable: str | None, section: str) -> dict[str, str]:
    if variable is None:
        return {}
    key = os.environ.get(variable)
    if not key:
        raise ConfigError(f"{section}.api_key_env: the environment variable {variable} is not set; export it")
    return {"Authorization": f"Bearer {key}"}


def _content(response: httpx.Response) -> str | None:
    """What the model said; None where the body is not of the protocol."""
    try:
        content = response.json()["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError):
        return None
    return content if isinstance(content, str) else None


def _retry_after(response: httpx.Response, limit: float) -> float:
    """Seconds that the server asks for, at most `limit`; 0 where it asks for none, or by a date."""
    seconds = response.headers.get("retry-after", "")
    return min(float(seconds), limit) if seconds.isdecimal() else 0.0
