"""What a recommendation reads of a user, for an event loop: one round trip, no thread.

Keys, commands and the meaning of replies are those of `OnlineStore`, which does all the rest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import redis
from redis.exceptions import ClusterDownError, RedisClusterException

from feature_store.address import Address
from feature_store.connection import Command, unavailable
from feature_store.embedded import AttendedServer, EmbeddedServer
from feature_store.events import MAX_HISTORY
from feature_store.keys import Keys
from feature_store.online import OnlineStore
from feature_store.reads import UserState, decode_state, state_commands


class AsyncOnlineStore:
    """Asyncio client of the online store; for one event loop.

    Args:
        address: of the store.
        namespace: as that of the `OnlineStore`.
        server: the server behind it that this program manages, and starts again when it is down; None for others.
    """

    def __init__(
        self, address: Address, *, namespace: str, server: EmbeddedServer | AttendedServer | None = None
    ) -> None:
        self.keys = Keys(namespace)
        self._server = server
        self._client = address.async_client()
        self._is_cluster = address.deployment == "cluster"
        self._looking: asyncio.Task[None] | None = None
        # All who wait for a start wait for the same one. In threads that others need they would hold up those.
        self._starter = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store-start")

    @classmethod
    def connect(cls, url: str, *, namespace: str = "recsys") -> Self:
        """A store by its URL, see `feature_store.address`. Connects on first use.

        Raises:
            StoreConfigError: the URL is malformed.
        """
        return cls(Address.parse(url), namespace=namespace)

    @classmethod
    def beside(cls, store: OnlineStore) -> Self:
        """The same store as `store`, also when that manages the server."""
        return cls(store.connection.address, namespace=store.namespace, server=store.connection.server)

    async def user_state(self, user_id: str, limit: int = MAX_HISTORY) -> UserState:
        """History (its newest `limit` entries, at least 1), profile and session of a user.

        Cancelled, it leaves no half-read reply behind for others.

        Raises:
            StoreUnavailableError: the store does not answer. A managed server is started again first, and a cluster is
            asked which node took over.
        """
        # All keys of a user have one hash tag, so that a cluster's pipeline is one round trip too.
        commands = state_commands(self.keys, user_id, max(1, limit))
        try:
            try:
                return decode_state(await self._replies(commands))
            except (redis.ConnectionError, ClusterDownError):
                if self._is_cluster:
                    await asyncio.shield(self._look_for_nodes())
                elif self._server is not None:
                    await asyncio.get_running_loop().run_in_executor(self._starter, self._server.ensure_running)
                else:
                    raise
                return decode_state(await self._replies(commands))
        except asyncio.CancelledError:
            # Nobody waits for as long as it takes to see that a node is gone which says nothing.
            if self._is_cluster:
                self._look_for_nodes()
            raise
        except (redis.RedisError, RedisClusterException, OSError) as error:
            raise unavailable(error) from error

    def _look_for_nodes(self) -> asyncio.Task[None]:
        """Ask the cluster which nodes it has now, once at a time."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._client.nodes_manager.initialize())
            # What goes wrong is for those who wait for it, if anybody does.
            self._looking.add_done_callback(lambda task: task.cancelled() or task.exception())
        return self._looking

    async def _replies(self, commands: Sequence[Command]) -> list[Any]:
        pipeline: Any = self._client.pipeline(transaction=False)
        for command in commands:
            command.queue(pipeline)
        replies: list[Any] = await pipeline.execute()
        return replies

    async def close(self) -> None:
        """Close the connections."""
        self._starter.shutdown(wait=False, cancel_futures=True)
        if self._looking is not None:
            self._looking.cancel()
        await self._client.aclose()
