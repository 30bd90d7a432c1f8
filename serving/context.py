"""What the routes share: models, store, metrics. Nothing here blocks the event loop: what a recommendation reads of its
user comes by asyncio, the model and the rest of the store's work run in threads.

Writes are among the latter: to be durable on any deployment takes retries by node, scripts that a server may have
forgotten, and a confirmation on the same connection, and two versions of that would be one too many.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Annotated, TypeVar

import anyio
import anyio.to_thread
import structlog
from fastapi import Depends, Request

from feature_store import OnlineStore, StoreUnavailableError, UserState
from feature_store.aio import AsyncOnlineStore
from feature_store.offline import OfflineStore
from recsys.bundle import Bundle
from serving.admission import Admission
from serving.arms import Arms
from serving.breaker import CircuitBreaker
from serving.fleet import Fleet, SingleProcess
from serving.live_catalogue import LiveCatalogue
from serving.metrics import Metrics
from serving.models import Models, ServedModel
from serving.offline import OfflineExport
from serving.path_metrics import PathMetrics
from serving.profiles import UserProfiles
from serving.results import ExperimentResults
from serving.runtime import RecommenderRuntime
from serving.search import CatalogSearch
from serving.seeding import Seeding
from serving.settings import ServingSettings
from serving.slate_writer import SlateWriter

_T = TypeVar("_T")

_PATIENCE_S = 0.25
"""A store that has not answered by then is ill; that it did not answer sooner says nothing about it."""

_SEEDING_S = 2.0
"""The start waits so long for the histories of a data set: a small one is in before the first request."""

_log = structlog.get_logger(__name__)


class ServingContext:
    """The served models with their store.

    Args:
        runtime: answers first.
        store: of users and events.
        settings: sizes and times.
        seeding: puts the data set's histories into the store, from the start to the end of the service.
        bundles: further models are loaded from below it.
        offline: writes the offline store from the start to the end of the service; None: nobody here does.
        slates: takes the lists that were shown; None: they are not logged.
        outcomes: the offline store in which experiments are counted, whoever writes it; None: nobody says where.
        read_bundle: reads and verifies a further model's.

    Raises:
        ConfigError: an experiment asks for what the model does not do.
    """

    def __init__(
        self,
        runtime: RecommenderRuntime,
        store: OnlineStore,
        settings: ServingSettings,
        seeding: Seeding | None = None,
        bundles: Path | None = None,
        offline: OfflineExport | None = None,
        slates: SlateWriter | None = None,
        outcomes: OfflineStore | None = None,
        read_bundle: Callable[[Path], Bundle] = Bundle.load,
    ) -> None:
        self.store = store
        self.slates = slates
        self._offline = offline
        self.arms = Arms(settings.experiments)
        self.arms.check_mode(runtime.no_reasons)
        self.results = ExperimentResults(settings.experiments, outcomes)
        self.settings = settings
        self.metrics = Metrics(runtime.info)
        self.path_metrics = PathMetrics(self.metrics.registry)
        self.models = Models(
            ServedModel(runtime, settings, self.path_metrics),
            settings,
            self.path_metrics,
            load=lambda path: RecommenderRuntime.from_bundle(
                read_bundle(path), search_by=settings.search.by, device=settings.device
            ),
            root=bundles,
            on_activate=self._announce,
        )
        self.metrics.watch_models(lambda: {model.version: model.in_flight for model, _ in self.models.states()})
        self.metrics.watch_graphs(lambda: self.models.active.runtime.graph_counts)
        catalogue = settings.catalogue
        self.catalogue = LiveCatalogue(
            store, self.models, self.metrics, poll_s=catalogue.poll_s, new_item_slots=catalogue.new_item_slots
        )
        self.fleet: Fleet = SingleProcess(self.models, self.metrics)
        """Replaced where the service has further processes."""
        self.admission = Admission(
            lambda pending, deadline_s: self.models.active.chain.wait_s(pending, deadline_s),
            lambda: self.models.active.chain.default_deadline_s,
            self.path_metrics,
        )
        self._announce(self.models.active)
        self._seeding = seeding
        if seeding is not None:
            self.metrics.watch_histories(lambda: seeding.share)
        self._has_layout = False
        self._async_store: AsyncOnlineStore | None = None
        self._store_threads = anyio.CapacityLimiter(settings.store_threads)
        self._store_breaker = CircuitBreaker(
            max_failures=settings.breaker.max_failures,
            open_s=settings.breaker.open_s,
            on_change=partial(self.path_metrics.breaker_changed, "store"),
        )

    def _announce(self, model: ServedModel) -> None:
        self.metrics.set_model(model.runtime.info)
        self.metrics.watch_items(model.runtime.item_counts, model.runtime.codes.whole())
        self.metrics.set_catalogue(model.runtime)

    @property
    def model(self) -> ServedModel:
        """What answers now. A request takes it once: the next look may find another."""
        return self.models.active

    @property
    def runtime(self) -> RecommenderRuntime:
        """Of the model that answers now."""
        return self.model.runtime

    @property
    def profiles(self) -> UserProfiles:
        """Over the catalogue of the model that answers now."""
        return self.model.profiles

    @property
    def search(self) -> CatalogSearch:
        """Of the catalogue of the model that answers now."""
        return self.model.search

    async def on_search(self, work: Callable[[], _T]) -> _T:
        """Run a search of the catalogue in a thread."""
        return await anyio.to_thread.run_sync(work)

    async def on_store(
        self, work: Callable[[], _T], *, user_id: str | None = None, within_s: float | None = None
    ) -> _T:
        """Run store work in a thread.

        Args:
            work: what to do; goes on in its thread when its time is up, so writes have no `within_s`.
            user_id: whose history it reads; the data set's part of it is in then.
            within_s: how long to wait for it.

        Raises:
            StoreUnavailableError: the store does not answer, or did not the last times and is left alone for now.
        """

        return await self._asked(lambda: self._in_thread(work, within_s), within_s, user_id)

    async def read_user(self, user_id: str, *, within_s: float) -> UserState:
        """All that a recommendation needs to know of a user: one round trip, no thread.

        Args:
            user_id: the user.
            within_s: how long to wait for it.

        Raises:
            StoreUnavailableError: see `on_store`.
        """
        return await self._asked(lambda: self._users.user_state(user_id, self.store.max_history), within_s, user_id)

    @property
    def _users(self) -> AsyncOnlineStore:
        if self._async_store is None:
            self._async_store = AsyncOnlineStore.beside(self.store)
        return self._async_store

    async def _in_thread(self, work: Callable[[], _T], within_s: float | None) -> _T:
        return await anyio.to_thread.run_sync(work, limiter=self._store_threads, abandon_on_cancel=within_s is not None)

    async def _asked(self, work: Callable[[], Awaitable[_T]], within_s: float | None, user_id: str | None) -> _T:
        """Ask the store in time, unless it is left alone."""
        if not self._store_breaker.allows():
            raise StoreUnavailableError(
                f"it failed {self.settings.breaker.max_failures} times, and is asked again every "
                f"{self.settings.breaker.open_s:g} s"
            )
        try:
            with anyio.fail_after(within_s):
                if not self._has_layout:
                    await self._in_thread(self.store.check_layout, within_s)
                    self._has_layout = True
                if user_id is not None and self._seeding is not None and not self._seeding.is_done:
                    await self._in_thread(partial(self._seeding.put, user_id), within_s)
                result = await work()
        except StoreUnavailableError:
            self._store_breaker.fail()
            raise
        except TimeoutError as error:
            # Else one client that leaves no time would take the store from everybody.
            if within_s is None or within_s >= self._patience_s:
                self._store_breaker.fail()
            raise StoreUnavailableError(f"no answer within {within_s:.3g} s") from error
        self._store_breaker.succeed()
        return result

    @property
    def _patience_s(self) -> float:
        """How long a read must have waited in vain to count against the store."""
        own_s = self.models.active.chain.default_deadline_s * self.settings.deadline.store_share
        return min(_PATIENCE_S, own_s / 2)

    async def start(self) -> None:
        """Warm up. A store that is down does not keep the service from starting.

        Raises:
            ArtifactError: the model cannot answer.
        """
        await anyio.to_thread.run_sync(self.model.chain.warm_up)
        has_store = True
        try:
            await self.on_store(self.store.ping)
        except StoreUnavailableError as error:
            _log.warning("store is down, answering without users until it is back", error=str(error))
            has_store = False
        if self._seeding is not None:
            await anyio.to_thread.run_sync(self._seeding.start)
            if has_store:
                await anyio.to_thread.run_sync(self._seeding.wait, _SEEDING_S)
        await self.catalogue.start()
        if self.slates is not None:
            self.slates.start(self.metrics)
        if self._offline is not None:
            await anyio.to_thread.run_sync(self._offline.start, self.metrics)

    async def stop(self) -> None:
        """End the models' threads, write what the offline store lacks, and close the store."""
        await self.catalogue.stop()
        self.models.close()
        if self._seeding is not None:
            await anyio.to_thread.run_sync(self._seeding.stop)
        if self.slates is not None:
            await anyio.to_thread.run_sync(self.slates.stop)
        if self._offline is not None:
            await anyio.to_thread.run_sync(self._offline.stop)
        if self._async_store is not None:
            await self._async_store.close()
            self._async_store = None
        await anyio.to_thread.run_sync(self.store.close)


async def _context(request: Request) -> ServingContext:
    context: ServingContext = request.app.state.context
    return context


Context = Annotated[ServingContext, Depends(_context)]
