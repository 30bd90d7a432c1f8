"""The asynchronous client: word for word the blocking one, with `await`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Literal

import httpx

from serving.client import calls
from serving.client.calls import AnswerT, Call
from serving.client.errors import UnreachableError
from serving.client.models import (
    Event,
    EventsResult,
    Interests,
    Item,
    ItemChange,
    ItemPage,
    ItemsResult,
    Model,
    Neighbours,
    NewItem,
    Recommendations,
    Rules,
    User,
)
from serving.client.retry import Retry


class AsyncClient:
    """Calls the API; calls that fail for a while are made again, and events then still count once.

    Close it, or use it in an `async with` block. One client may be used by several tasks of one event loop.

    Args:
        url: where the service is, such as `https://recommend.example`.
        key: an API key, where the service asks for one.
        timeout_s: how long each attempt may take.
        retry: when to try again.
        transport: how requests travel; for tests and proxies.
        sleep: waits; for tests.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        timeout_s: float = 10,
        retry: Retry | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._http = httpx.AsyncClient(base_url=url, headers=headers, timeout=timeout_s, transport=transport)
        self._retry = retry or Retry()
        self._sleep = sleep

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def recommend(
        self,
        user_id: str | None = None,
        *,
        history: Sequence[str] | None = None,
        k: int = 10,
        exclude: Sequence[str] = (),
        categories: Sequence[str] = (),
        max_per_category: int | None = None,
        exclude_seen: bool | Literal["none", "window", "all"] = True,
        seen_window: int | None = None,
        mode: Literal["direct", "reason"] = "direct",
        explain: Literal["none", "evidence", "intent"] = "evidence",
        objectives: Mapping[str, float] | None = None,
        model_version: str | None = None,
        rules: Rules | None = None,
    ) -> Recommendations:
        """The items that a user, or somebody with this history, most likely wants next.

        Args:
            user_id: a user of the store; give this or `history`.
            history: item ids, oldest first.
            k: length of the list.
            exclude: item ids that must not appear.
            categories: only items with at least one of these; no filter when empty.
            max_per_category: at most so many items of any one category.
            exclude_seen: leave out the items of the history; with `window`, those of its last `seen_window` entries.
            seen_window: entries of the history, with `exclude_seen="window"`.
            mode: `reason` writes reasons first, which takes seconds.
            explain: what is said of why: nothing, like items of the history, or tags of the user's interests.
            objectives: how much each counts in this list, by the names in `model().objectives`.
            model_version: a model in memory that shall answer instead of the active one.
            rules: what else may stand in the list, and where; the arguments above win over its fields of their name.

        Raises:
            ApiError: the service refuses.
            UnreachableError: it does not answer.
        """
        return await self._answer(
            calls.recommend(
                user_id=user_id,
                history=history,
                k=k,
                exclude=exclude,
                categories=categories,
                max_per_category=max_per_category,
                exclude_seen=exclude_seen,
                seen_window=seen_window,
                mode=mode,
                explain=explain,
                objectives=objectives,
                model_version=model_version,
                rules=rules,
            )
        )

    async def similar_items(self, item_id: str, *, k: int = 10, rules: Rules | None = None) -> Recommendations:
        """Items like one item, without it.

        Raises:
            ApiError: the catalogue does not have it (404), or the service refuses.
            UnreachableError: it does not answer.
        """
        return await self._answer(calls.similar_items(item_id, k, rules))

    async def rank(
        self, items: Sequence[str], user_id: str | None = None, *, history: Sequence[str] | None = None
    ) -> Recommendations:
        """Given items, in the order in which a user, or somebody with this history, most likely wants them next.

        Args:
            items: at most 500 ids.
            user_id: a user of the store; give this or `history`.
            history: item ids, oldest first.

        Raises:
            ApiError: the service refuses.
            UnreachableError: it does not answer.
        """
        return await self._answer(calls.rank(user_id, history, items))

    async def search(self, query: str, *, k: int = 10, rules: Rules | None = None) -> Recommendations:
        """Items that a text describes; `source` says whether by its meaning (`dense`) or by its words (`words`).

        Raises:
            ApiError: the service refuses.
            UnreachableError: it does not answer.
        """
        return await self._answer(calls.search(query, k, rules))

    async def send_events(self, events: Sequence[Event]) -> EventsResult:
        """Tell what users did, at most 1000 events at a time; see `EventsResult` for those that were not stored.

        Raises:
            ApiError: the service refuses, or stored none of them.
            UnreachableError: it does not answer. Some may have been stored: sending the same events again is safe.
        """
        return await self._answer(calls.send_events(events))

    async def user(self, user_id: str, *, limit: int = 50) -> User:
        """The newest `limit` entries of a user's history.

        Raises:
            ApiError: the user is unknown (404), or the service refuses.
            UnreachableError: it does not answer.
        """
        return await self._answer(calls.get_user(user_id, limit))

    async def interests(self, user_id: str) -> Interests:
        """What a user is into, strongest first.

        Raises:
            ApiError: the user is unknown or the model has no intents (404), or the service refuses.
            UnreachableError: it does not answer.
        """
        return await self._answer(calls.get_interests(user_id))

    async def item(self, item_id: str) -> Item:
        """One item.

        Raises:
            ApiError: the catalogue does not have it (404), or the service refuses.
            UnreachableError: it does not answer.
        """
        return await self._answer(calls.get_item(item_id))

    async def put_item(self, item: NewItem) -> ItemChange:
        """Add an item, or replace all that is known of it. It is listed at once, and generated within moments.

        Raises:
            ApiError: the service refuses, such as a column that its catalogue does not have.
            UnreachableError: it does not answer. It may have the item: putting it again is safe.
        """
        return await self._answer(calls.put_item(item))

    async def delete_item(self, item_id: str) -> ItemChange:
        """Take an item out of every list. Events about it are accepted still, and `put_item` brings it back.

        Raises:
            ApiError: the catalogue never had it (404), or the service refuses.
            UnreachableError: it does not answer. Deleting again is safe.
        """
        return await self._answer(calls.delete_item(item_id))

    async def import_items(self, items: Sequence[NewItem]) -> ItemsResult:
        """Add or replace many items, at most 5000 and a megabyte at a time; see the result for those rejected.

        Raises:
            ApiError: the service refuses all of them.
            UnreachableError: it does not answer. It may have some of them: sending all again is safe.
        """
        return await self._answer(calls.import_items(items))

    async def neighbours(self, item_id: str, *, limit: int = 20) -> Neighbours:
        """The items whose semantic IDs begin like that of an item.

        Raises:
            ApiError: the catalogue does not have it (404), or the service refuses.
            UnreachableError: it does not answer.
        """
        return await self._answer(calls.get_neighbours(item_id, limit))

    async def search_items(self, query: str = "", *, limit: int = 20, offset: int = 0) -> ItemPage:
        """Items that contain every word of the query, best match first.

        Raises:
            ApiError: the service refuses.
            UnreachableError: it does not answer.
        """
        return await self._answer(calls.search_items(query, limit, offset))

    async def model(self) -> Model:
        """What is being served.

        Raises:
            ApiError: the service refuses.
            UnreachableError: it does not answer.
        """
        return await self._answer(calls.get_model())

    async def _answer(self, call: Call[AnswerT]) -> AnswerT:
        attempt = 1
        while True:
            try:
                response = await self._http.send(call.request(self._http))
            except httpx.TransportError as error:
                wait_s = self._retry.wait_s(attempt, None)
                if wait_s is None:
                    raise UnreachableError(f"{self._http.base_url} does not answer: {error!r}") from error
            else:
                if not calls.is_worth_another_attempt(response):
                    return call.read(response)
                wait_s = self._retry.wait_s(attempt, calls.retry_after(response))
                if wait_s is None:
                    return call.read(response)
            await self._sleep(wait_s)
            attempt += 1
