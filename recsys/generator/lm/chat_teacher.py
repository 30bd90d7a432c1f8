"""A teacher behind a URL: any chat model that speaks OpenAI's protocol explains cases.

Answers are kept in a file as they come, so a run that broke off goes on where it was. An answer that is malformed or
names the target is dropped and counted. Knows nothing of how the reasons are put to the student.
"""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import httpx

from recsys.errors import ArtifactError, ConfigError, RecsysError
from recsys.files import sha256_json
from recsys.generator.lm.config import ChatTeacherConfig
from recsys.generator.lm.reasoning import Case, Chain
from recsys.generator.lm.teacher import names_target
from recsys.generator.lm.templates import REASONS
from recsys.generator.lm.texts import first_words
from recsys.progress import progress_bar

# The fourth key gives the model a place to name the item, so that the first three stay free of it (GREAM cuts its
# fourth step likewise).
_SYSTEM = (
    "You explain what people choose. You read what one person chose so far, oldest first, and what the person chose "
    "next. Reason from the history alone, as though you did not know the next item, towards it. Never write its title "
    "or parts of it. Answer with one JSON object and nothing else. Its keys: "
    '"evidence": the patterns in the history that matter; '
    '"preference": what this person likes, to judge by them; '
    '"intent": what kind of thing the person is after now, and why; '
    '"recommendation": the next item. One or two short sentences each, in plain words.'
)
_RETRIED = frozenset({408, 429, *range(500, 600)})


class TeacherError(RecsysError):
    """The chat model cannot be reached or refuses to answer."""


class ChatTeacher:
    """Reasons from a chat model."""

    def __init__(
        self,
        config: ChatTeacherConfig,
        titles: Sequence[str],
        descriptions: Sequence[str],
        *,
        max_words: int,
    ) -> None:
        """Read the answers that are there already.

        Args:
            config: the model and how to ask it.
            titles: by row of the catalogue; items without one are left out of a history.
            descriptions: by row of the catalogue; empty where there is none.
            max_words: words of a step.

        Raises:
            ConfigError: the environment variable of the key is not set.
            ArtifactError: the file of answers cannot be read.
        """
        self._config = config
        self._titles = titles
        self._descriptions = descriptions
        self._max_words = max_words
        self._headers = _authorization(config.api_key_env)
        self._answers = _Answers(config.cache)
        self._failures_in_a_row = 0
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self.counts: Counter[str] = Counter()
        """Cases by what became of them: `explained`, `malformed`, `leaking`, `untitled` (nothing to ask), `failed` (no
        answer after all attempts); and `requested`, how many were not in the file."""

    def explain(self, cases: Sequence[Case]) -> list[Chain | None]:
        """The reasons for each case.

        Raises:
            TeacherError: the server refuses, or too many requests fail in a row, or all do.
        """
        chains: list[Chain | None] = [None] * len(cases)
        before = Counter(self.counts)
        self._stopped.clear()
        pool = ThreadPoolExecutor(self._config.concurrency)
        with (
            httpx.Client(timeout=self._config.timeout_s, headers=self._headers) as client,
            progress_bar(f"reasons from {self._config.model}", len(cases)) as advance,
        ):
            try:
                numbers = {pool.submit(self._explain, client, case): number for number, case in enumerate(cases)}
                for future in as_completed(numbers):
                    chains[numbers[future]] = future.result()
                    advance(1, "")
            finally:
                self._stopped.set()
                pool.shutdown(cancel_futures=True)
        new = self.counts - before
        if new["failed"] and new["failed"] == new["requested"]:
            raise TeacherError(f"{self._url}: none of {new['failed']} requests was answered; is the server up?")
        return chains

    @property
    def _url(self) -> str:
        return self._config.base_url.rstrip("/") + "/chat/completions"

    def _explain(self, client: httpx.Client, case: Case) -> Chain | None:
        if self._stopped.is_set():
            return None
        try:
            fate, chain = self._ask_about(client, case)
        except TeacherError:
            self._stopped.set()
            raise
        with self._lock:
            self.counts[fate] += 1
        return chain

    def _ask_about(self, client: httpx.Client, case: Case) -> tuple[str, Chain | None]:
        history = [item for item in case.history if self._titles[item]]
        if not history or not self._titles[case.target]:
            return "untitled", None
        request = self._request(history, case.target)
        key = sha256_json(request)
        answer = self._answers.get(key)
        if answer is None:
            response = self._post(client, request)
            if response is None:
                return "failed", None
            answer = _content(response)
            if answer is None:
                return "malformed", None
            self._answers.add(key, answer)
        chain = self._parse(answer)
        if chain is None:
            return "malformed", None
        if names_target(chain, self._titles[case.target], (self._titles[item] for item in history)):
            return "leaking", None
        return "explained", chain

    def _request(self, history: Sequence[int], target: int) -> dict[str, Any]:
        lines = [f"{number}. {self._described(item)}" for number, item in enumerate(history, start=1)]
        asked = "\n".join(["History:", *lines, f"Next item: {self._described(target)}"])
        return {
            "model": self._config.model,
            "messages": [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": asked}],
            "temperature": self._config.temperature,
            "max_tokens": self._config.max_tokens,
        }

    def _described(self, item: int) -> str:
        text = first_words(self._descriptions[item], self._config.max_description_words)
        return f"{self._titles[item]} ({text})" if text else self._titles[item]

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
                raise TeacherError(f"{self._url}: {error}; mend reasoning.chat.base_url") from error
            except httpx.TransportError as error:
                problem = f"{type(error).__name__}: {error}"
            else:
                if response.is_success:
                    with self._lock:
                        self._failures_in_a_row = 0
                    return response
                problem = f"status {response.status_code}: {' '.join(response.text.split())[:200]}"
                if response.status_code not in _RETRIED:
                    raise TeacherError(f"{self._url}: {problem}; mend the settings of reasoning.chat")
                wait = max(wait, _retry_after(response, self._config.timeout_s))
            if attempt == self._config.retries or self._stopped.wait(wait):
                break
        with self._lock:
            self._failures_in_a_row += 1
            if self._failures_in_a_row >= self._config.give_up_after:
                raise TeacherError(
                    f"{self._url}: {self._failures_in_a_row} requests in a row failed, the last with {problem}; "
                    "what was answered is kept, run again to go on"
                )
        return None

    def _parse(self, answer: str) -> Chain | None:
        # Models like to put a fence, or a line of their own, around it.
        begin, end = answer.find("{"), answer.rfind("}")
        try:
            values = json.loads(answer[begin : end + 1])
        except ValueError:
            return None
        texts = {reason: values.get(reason) for reason in REASONS} if isinstance(values, dict) else {}
        cut = {reason: first_words(text, self._max_words) for reason, text in texts.items() if isinstance(text, str)}
        return Chain(**cut) if len(cut) == len(REASONS) and all(cut.values()) else None


def _authorization(variable: str | None) -> dict[str, str]:
    if variable is None:
        return {}
    key = os.environ.get(variable)
    if not key:
        raise ConfigError(f"reasoning.chat.api_key_env: the environment variable {variable} is not set; export it")
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


class _Answers:
    """Answers by the hash of their request, in a JSONL file that is only ever added to."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, str] = {}
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
            for line in lines:
                self._read(line)
        except (OSError, UnicodeDecodeError) as error:
            raise ArtifactError(f"{path}: cannot be read: {error}; mend reasoning.chat.cache") from error

    def get(self, key: str) -> str | None:
        return self._known.get(key)

    def add(self, key: str, answer: str) -> None:
        with self._lock:
            self._known[key] = answer
            with self._path.open("a", encoding="utf-8") as file:
                # The line break comes first: a line that a kill cut short stays a line of its own.
                file.write("\n" + json.dumps({"key": key, "answer": answer}))

    def _read(self, line: str) -> None:
        try:
            row = json.loads(line)
            self._known[row["key"]] = row["answer"]
        except (ValueError, KeyError, TypeError):
            pass  # empty, or cut short by a kill: asked again
