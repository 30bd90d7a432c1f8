from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from feature_store import Event, OnlineStore, StoreUnavailableError
from feature_store.aio import AsyncOnlineStore


def test_many_requests_at_once_get_their_own_users(store: OnlineStore, make_event: Callable[..., Event]) -> None:
    users = [f"u{number}" for number in range(200)]
    store.append_events([make_event("1", user, f"item of {user}") for user in users])

    async def read() -> list[list[str]]:
        client = AsyncOnlineStore.beside(store)
        states = await asyncio.gather(*(client.user_state(user) for user in users))
        await client.close()
        return [[entry.item_id for entry in state.history] for state in states]

    assert asyncio.run(read()) == [[f"item of {user}"] for user in users]


def test_it_sees_what_the_synchronous_client_wrote_and_erased(
    store: OnlineStore, make_event: Callable[..., Event]
) -> None:
    async def read() -> None:
        client = AsyncOnlineStore.beside(store)
        store.append_events([make_event("1"), make_event("2", at=2)])
        store.put_session("ann", "{}")
        state = await client.user_state("ann", 1)
        assert state == store.user_state("ann", 1)
        assert (len(state.history), state.session) == (1, "{}")
        store.erase_user("ann")
        assert (await client.user_state("ann")).history == []
        await client.close()

    asyncio.run(read())


def test_a_store_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    async def read() -> None:
        client = AsyncOnlineStore.connect(f"unix://{tmp_path}/none.sock")
        with pytest.raises(StoreUnavailableError, match=r"^store: ") as caught:
            await client.user_state("ann")
        assert "\n" not in str(caught.value)
        await client.close()

    asyncio.run(read())
