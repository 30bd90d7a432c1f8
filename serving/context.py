"""What the routes share: model, store, metrics. Model and store work runs in threads, not in the event loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, TypeVar

import anyio
import anyio.to_thread
import structlog
from fastapi import Depends, Request

from feature_store import OnlineStore, StoreUnavailableError
from serving.metrics import Metrics
from serving.profiles import UserProfiles
from serving.runtime import RecommenderRuntime
from serving.search import CatalogSearch
from serving.settings import ServingSettings

_T = TypeVar("_T")
_log = structlog.get_logger(__name__)


class ServingContext:
    """One served model with its store.

    Args:
        runtime: answers.
        store: of users and events.
        settings: sizes and times.
        seed: puts the data set's histories into the store; called until it once succeeds, before any user is
        read.
    """

    def __init__(
        self,
        runtime: RecommenderRuntime,
        store: OnlineStore,
        settings: ServingSettings,
        seed: Callable[[], object] | None = None,
    ) -> None:
        self.runtime = runtime
        self.store = store
        self.settings = settings
        self.metrics = Metrics(runtime.info)
        self.profiles = UserProfiles(runtime.catalog)
        self.search = CatalogSearch(runtime.catalog, runtime.item_counts)
        self._seed = seed
        self._seed_mutex = anyio.Lock()
        self._model_threads = anyio.CapacityLimiter(settings.model_threads)
        # A core for seconds each, and a text tokenizer serves one thread at a time.
        self._reasoning = anyio.CapacityLimiter(1)
        self._store_threads = anyio.CapacityLimiter(settings.store_threads)

    async def on_model(self, work: Callable[[], _T]) -> _T:
        """Run model work in a thread; waits while all model threads are busy."""
        return await anyio.to_thread.run_sync(work, limiter=self._model_threads)

    async def on_reasoning(self, work: Callable[[], _T]) -> _T:
        """Run model work that writes reasons in a thread, one at a time; other model work goes on meanwhile."""
        return await anyio.to_thread.run_sync(work, limiter=self._reasoning)

    async def on_search(self, work: Callable[[], _T]) -> _T:
        """Run a search of the catalogue in a thread."""
        return await anyio.to_thread.run_sync(work)

    async def on_store(self, work: Callable[[], _T]) -> _T:
        """Run store work in a thread, after the data set's histories are in.

        Raises:
            StoreUnavailableError: the store does not answer.
        """
        if self._seed is not None:
            async with self._seed_mutex:
                if self._seed is not None:
                    await anyio.to_thread.run_sync(self._seed, limiter=self._store_threads)
                    self._seed = None
        return await anyio.to_thread.run_sync(work, limiter=self._store_threads)

    async def start(self) -> None:
        """Warm up. A store that is down does not keep the service from starting.

        Raises:
            ArtifactError: the model cannot answer.
        """
        await self.on_model(self.runtime.warm_up)
        try:
            await self.on_store(self.store.ping)
        except StoreUnavailableError as error:
            _log.warning("store is down, answering without users until it is back", error=str(error))

    async def stop(self) -> None:
        """Close the store."""
        await anyio.to_thread.run_sync(self.store.close)


def _context(request: Request) -> ServingContext:
    context: ServingContext = request.app.state.context
    return context


Context = Annotated[ServingContext, Depends(_context)]
