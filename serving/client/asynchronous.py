"""The asynchronous client: word for word the blocking one, with `await`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from types import TracebackType
from typing import Unpack

import httpx

from serving.client import calls
from serving.client.calls import AnswerT, Call
from serving.client.errors import UnreachableError
from serving.client.models import (
    BatchResult,
    Event,
    EventsResult,
    Explain,
    Interests,
    ItemChange,
    ItemDetail,
    ItemPage,
    ItemsResult,
    Model,
    Neighbours,
    NewItem,
    Options,
    Recommendations,
    Request,
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

    async def recommend(self, user_id: str | None = None, **options: Unpack[Options]) -> Recommendations:
        """The items that a user, or somebody with this history, most likely wants next.

        Args:
            user_id: a user of the store; give this or a `history`.
            options: see `Options`, such as `k=10`.

        Raises:
            ApiError: the service refuses.
            UnreachableError: it does not answer.
        """
        return await self._answer(calls.recommend(user_id, options))

    async def recommend_batch(self, requests: Sequence[Request]) -> BatchResult:
        """Many lists at once, at most 100; one that cannot be made does not fail the others.

        Args:
            requests: such as `[{"user_id": "196", "k": 5}, {"history": ["50"]}]`.

        Raises:
            ApiError: the service refuses all of them.
            UnreachableError: it does not answer.
        """
        return await self._answer(calls.recommend_batch(requests))

    async def next_page(self, cursor: str, *, k: int = 10, explain: Explain = "evidence") -> Recommendations:
        """The next `k` items of a list that `depth` froze; `next_cursor` of its page before leads there.

        Raises:
            ApiError: the list has expired (422), its model is gone (410), or the service refuses.
            UnreachableError: it does not answer. Asking again gives the same page.
        """
        return await self._answer(calls.next_page(cursor, k, explain))

    async def pages(self, user_id: str | None = None, **options: Unpack[Options]) -> AsyncIterator[Recommendations]:
        """The list that `recommend` freezes with `depth`, in pages of `k` items without repeats.

        Args:
            user_id: as of `recommend`.
            options: as of `recommend`.

        Raises:
            ApiError: the service refuses; see `next_page` for further pages.
            UnreachableError: it does not answer.
        """
        k, explain = options.get("k", 10), options.get("explain", "evidence")
        page = await self.recommend(user_id, **options)
        yield page
        while page.next_cursor is not None:
            page = await self.next_page(page.next_cursor, k=k, explain=explain)
            yield page

    async def similar_items(
        self,
        item_id: str,
        *,
        k: int = 10,
        explain: Explain = "evidence",
        details: bool = False,
        rules: Rules | None = None,
    ) -> Recommendations:
        """Items like one item, without it.

        Raises:
            ApiError: the catalogue does not have it (404), or the service refuses.
            UnreachableError: it does not answer.
        """
        return await self._answer(calls.similar_items(item_id, k, explain, details, rules))

    async def rank(
        self,
        items: Sequence[str],
        user_id: str | None = None,
        *,
        history: Sequence[str] | None = None,
        explain: Explain = "evidence",
        details: bool = False,
    ) -> Recommendations:
        """Given items, in the order in which a user, or somebody with this history, most likely wants them next.

        Args:
            items: at most 500 ids.
            user_id: a user of the store; give this or `history`.
            history: item ids, oldest first.
            explain: what is said of why, see `Options`.
            details: say how the list came about.

        Raises:
            ApiError: the service refuses.
            UnreachableError: it does not answer.
        """
        return await self._answer(calls.rank(user_id, history, items, explain, details))

    async def search(
        self,
        query: str,
        *,
        k: int = 10,
        explain: Explain = "evidence",
        details: bool = False,
        rules: Rules | None = None,
    ) -> Recommendations:
        """Items that a text describes; `source` says whether by its meaning (`dense`) or by its words (`words`).

        Raises:
            ApiError: the service refuses.
            UnreachableError: it does not answer.
        """
        return await self._answer(calls.search(query, k, explain, details, rules))

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

    async def item(self, item_id: str) -> ItemDetail:
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
