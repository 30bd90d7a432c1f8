"""A running service as a ranker: what is deployed is what is tested. Knows the API only by what it answers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np

from recsys.data import Sequences
from recsys.data.sequences import IntArray
from recsys.errors import ConfigError, RecsysError

_MOST_HISTORY = 200
"""Entries of a history that are sent: the most recent ones."""
_TIMEOUT_S = 30.0
_TRIES = 5
_MOST_WAIT_S = 30.0
_KEY_WANTED = (401, 403)
_LATER = (429, 503)


class ServiceRanker:
    """Asks a service for the list of each history; a service that says when to come back is asked again then.

    Args:
        url: of the service, such as `http://127.0.0.1:8000`.
        item_ids: of the catalogue, by dense index; other items that the service lists are left out.
        key: its API key, if it asks for one.
        timeout_s: of one request.

    Raises:
        ConfigError: the URL or the key is impossible.
    """

    model_version: str | None
    """What the service says of its model; None before the first list, or where it does not say."""
    unknown_items: set[str]
    """Items that it listed and that the catalogue does not have."""
    num_degraded: int
    """Lists that the service in good health would have made better, by its own word."""

    def __init__(
        self, url: str, item_ids: Sequence[str], key: str | None = None, *, timeout_s: float = _TIMEOUT_S
    ) -> None:
        self._url, self._item_ids, self._timeout_s = url, item_ids, timeout_s
        self._index = {item_id: item for item, item_id in enumerate(item_ids)}
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        try:
            self._client = httpx.Client(base_url=url, headers=headers, timeout=timeout_s)
        except (httpx.InvalidURL, UnicodeEncodeError) as error:
            raise ConfigError(f"service: {url!r} is no URL, or its key is not plain ASCII: {error}") from error
        self.model_version, self.unknown_items, self.num_degraded = None, set(), 0

    def __call__(self, histories: Sequences, k: int) -> IntArray:
        """int64 [B, k], best first, -1 = no more.

        Raises:
            RecsysError: the service does not answer with a list, or its model is another one than before.
        """
        lists = np.full((len(histories), k), -1, dtype=np.int64)
        for row, history in enumerate(histories):
            asked = {"history": [self._item_ids[item] for item in history[-_MOST_HISTORY:].tolist()], "k": k}
            listed = self._listed(asked)
            self.unknown_items.update(item_id for item_id in listed if item_id not in self._index)
            kept = [self._index[item_id] for item_id in listed if item_id in self._index][:k]
            lists[row, : len(kept)] = kept
        return lists

    def _listed(self, asked: dict[str, Any]) -> list[str]:
        try:
            answer = self._answer({**asked, "explain": "none"}).json()
            listed = [str(item["item_id"]) for item in answer["items"]]
            version, degraded = answer.get("model_version"), answer.get("degraded", False)
        except httpx.TimeoutException as error:
            raise RecsysError(
                f"service: {self._url} gives no list within {self._timeout_s:g} s; is it running, and not overloaded?"
            ) from error
        except httpx.HTTPError as error:
            raise RecsysError(f"service: {self._url} gives no list: {error}; is it running?") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RecsysError(
                f"service: {self._url} answered, but not with a list of items; is it a service of recsys?"
            ) from error
        if self.model_version not in (None, version):
            raise RecsysError(
                f"service: {self._url} changed its model from {self.model_version} to {version} during the test; run "
                "it again while nothing is deployed"
            )
        self.model_version = version
        self.num_degraded += bool(degraded)
        return listed

    def _answer(self, body: dict[str, Any]) -> httpx.Response:
        """The answer with a list; waits as often and as long as a service that has no time asks for."""
        for left in reversed(range(_TRIES)):
            response = self._client.post("/v1/recommend", json=body)
            if response.is_success:
                return response
            wait = response.headers.get("Retry-After", "")
            if not (left and response.status_code in _LATER and wait.isdigit() and float(wait) <= _MOST_WAIT_S):
                break
            time.sleep(float(wait))
        hint = "; give its key with --key or RECSYS_API_KEY" if response.status_code in _KEY_WANTED else ""
        raise RecsysError(f"service: {self._url} answered {response.status_code}: {_reason(response)}{hint}")


def _reason(response: httpx.Response) -> str:
    """What a problem document or any other answer says, in one line."""
    try:
        text = str(response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        text = response.text
    return " ".join(text.split())[:200] or response.reason_phrase
