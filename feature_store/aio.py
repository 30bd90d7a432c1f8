"""What a recommendation reads of a user, for an event loop: one round trip, no thread.

Keys, commands and the meaning of replies are those of `OnlineStore`, which does all the rest.
"""

from __future__ import annotations

from typing import Any, Self

import redis
from redis.exceptions import RedisClusterException

from feature_store.address import Address
from feature_store.connection import unavailable
from feature_store.events import MAX_HISTORY
from feature_store.keys import Keys
from feature_store.online import OnlineStore
from feature_store.reads import UserState, decode_state, state_commands


class AsyncOnlineStore:
    """Asyncio client of the online store; for one event loop.

    Args:
        address: of the store. One that a program manages must run already; it is not started again from here.
        namespace: as that of the `OnlineStore`.
    """

    def __init__(self, address: Address, *, namespace: str) -> None:
        self.keys = Keys(namespace)
        self._client = address.async_client()

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
        return cls(store.connection.address, namespace=store.namespace)

    async def user_state(self, user_id: str, limit: int = MAX_HISTORY) -> UserState:
        """History (its newest `limit` entries, at least 1), profile and session of a user.

        Raises:
            StoreUnavailableError: the store does not answer.
        """
        pipeline: Any = self._client.pipeline(transaction=False)
        # All keys of a user have one hash tag, so that a cluster's pipeline is one round trip too.
        for command in state_commands(self.keys, user_id, max(1, limit)):
            command.queue(pipeline)
        try:
            return decode_state(await pipeline.execute())
        except (redis.RedisError, RedisClusterException, OSError) as error:
            raise unavailable(error) from error

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()
