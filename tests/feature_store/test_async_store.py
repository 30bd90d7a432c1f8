from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from feature_store import Event, OnlineStore, StoreUnavailableError
from feature_store.address import Address
from feature_store.aio import AsyncOnlineStore
from feature_store.embedded import AttendedServer


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


def test_who_stops_waiting_leaves_no_reply_behind_for_others(
    store: OnlineStore, make_event: Callable[..., Event]
) -> None:
    """A store that is stopped for a while: those who gave up must not shift the replies of those who ask next."""
    users = [f"u{number}" for number in range(20)]
    store.append_events([make_event("1", user, f"item of {user}") for user in users])
    process = int(store.connection.client.info("server")["process_id"])

    async def read() -> None:
        client = AsyncOnlineStore.beside(store)
        await asyncio.gather(*(client.user_state(user) for user in users))
        os.kill(process, signal.SIGSTOP)
        try:
            for user in users:
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(client.user_state(user), 0.02)
        finally:
            os.kill(process, signal.SIGCONT)
        for user in users:
            assert [entry.item_id for entry in (await client.user_state(user)).history] == [f"item of {user}"]
        await client.close()

    asyncio.run(read())


def test_many_who_wait_for_a_server_to_come_back_take_no_threads_from_others(tmp_path: Path) -> None:
    is_back = threading.Event()

    class Server(AttendedServer):
        def ensure_running(self) -> None:
            is_back.wait(60)

    async def read() -> None:
        address = Address.parse(f"unix://{tmp_path}/none.sock")
        client = AsyncOnlineStore(address, namespace="test", server=Server(tmp_path / "none.sock"))
        asking = [asyncio.create_task(client.user_state("ann")) for _ in range(100)]
        try:
            await asyncio.wait_for(asyncio.to_thread(int), 20)
        finally:
            is_back.set()
            answers = await asyncio.gather(*asking, return_exceptions=True)
        assert {type(answer) for answer in answers} == {StoreUnavailableError}
        await client.close()

    asyncio.run(read())


def test_a_managed_server_that_was_killed_is_started_again_by_a_read(
    tmp_path: Path, make_event: Callable[..., Event]
) -> None:
    store = OnlineStore.embedded(tmp_path / "store")
    store.append_events([make_event("1")])

    async def read() -> None:
        client = AsyncOnlineStore.beside(store)
        assert len((await client.user_state("ann")).history) == 1
        os.kill(int(store.connection.client.info("server")["process_id"]), signal.SIGKILL)
        states = await asyncio.gather(*(client.user_state("ann") for _ in range(5)))
        assert [len(state.history) for state in states] == [1] * 5
        await client.close()

    asyncio.run(read())
    store.close()
