"""Keeps the catalogue of the served models that of the store, in every process alike. Knows no HTTP.

Whoever changes an item writes it into the store, and every process looks a few times a second whether the version of
the catalogue there is still its own. What is new is laid over the bundle's catalogue in a thread, and the models are
swapped between two turns of the event loop: a request is answered wholly by one version. A store that does not answer
changes nothing: the last version goes on.

A new item gets its vector and semantic ID once, by one process for all of them, and for each model that is held. That
takes an encoder, which is read when it is first needed; until then the item stands where its categories are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import TypeVar

import anyio
import anyio.to_thread
import numpy as np
import structlog

from feature_store import OnlineStore, StoreError
from recsys.data import Catalog
from serving.metrics import Metrics
from serving.models import Models, ServedModel
from serving.overlay import ItemFacts, Overlay
from serving.placing import Placement, place
from serving.runtime import RecommenderRuntime

_T = TypeVar("_T")

_PLACED_AT_ONCE = 128
"""Items that an encoder reads before they are told of."""
_LEASE_S = 120
"""How long a process that places items, and dies, keeps the others from it."""

_REST = 9
"""Rest after making texts anew, in multiples of the time that it took: a tenth of one core is spent on it at most."""

_log = structlog.get_logger(__name__)


class LiveCatalogue:
    """The catalogue of a service. Used from one event loop.

    Args:
        store: holds the changes.
        models: are swapped.
        metrics: are told the version.
        poll_s: seconds between two looks at the version.
        new_item_slots: see `serving.ways.Ways.over`.
    """

    def __init__(
        self, store: OnlineStore, models: Models, metrics: Metrics, *, poll_s: float, new_item_slots: int
    ) -> None:
        self._store = store
        self._models = models
        self._metrics = metrics
        self._poll_s = poll_s
        self._new_item_slots = new_item_slots
        self._overlay = Overlay()
        self._placed: dict[str, dict[str, Placement]] = {}
        """By model version and item id."""
        self._unplaceable: dict[tuple[str, str], ItemFacts | None] = {}
        """By model version and item id, with what was then known of the item."""
        self._lock = asyncio.Lock()
        self._threads = anyio.CapacityLimiter(3)
        self._failed_at = -1
        self._is_out_of_reach = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._placing: asyncio.Task[None] | None = None
        self._renewing: asyncio.Task[None] | None = None
        models.after_load = self.look

    @property
    def version(self) -> int:
        """Of the catalogue that answers."""
        return self._models.active.runtime.catalog_version

    async def start(self) -> None:
        """Take what is in the store, if it answers, and follow it from then on."""
        await self.look()
        self._begin(self._follow())

    async def stop(self) -> None:
        """Follow the store no more."""
        for task in list(self._tasks):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def refresh(self) -> None:
        """Have all models answer over the catalogue as it is in the store now.

        Raises:
            StoreUnavailableError: the store does not answer.
        """
        async with self._lock:
            overlay = self._overlay
            version, changed = await self._in_thread(partial(self._store.items.since, overlay.version))
            if version < overlay.version:
                _log.warning("the store has lost changes of the catalogue", version=version, had=overlay.version)
                overlay = Overlay()
                self._placed.clear()
                version, changed = await self._in_thread(partial(self._store.items.since, 0))
            overlay = overlay.updated(version, changed)
            behind = [model for model, _ in self._models.states() if model.runtime.catalog_version != overlay.version]
            swapped = [await self._in_thread(partial(self._brought_to, overlay, model)) for model in behind]
            self._models.swap_catalogue(swapped)
            self._overlay = overlay
        self._metrics.set_catalogue(self._models.active.runtime)
        if self._placing is None and any(self._waiting(model.runtime) for model, _ in self._models.states()):
            self._placing = self._begin(self._place())
        if self._renewing is None and any(model.has_old_texts for model, _ in self._models.states()):
            self._renewing = self._begin(self._renew_texts())

    async def _renew_texts(self) -> None:
        """Nobody waits for these: lists are not made from them, and a new item may be missing there for a moment.

        They are made over all items, so that the time between two turns goes by what one takes.
        """
        clock = asyncio.get_running_loop().time
        try:
            while stale := [model for model, _ in self._models.states() if model.has_old_texts]:
                model, started = stale[0], clock()
                await self._in_thread(model.renew_texts)
                newer = self._models.find(model.version)
                if newer is not None and newer is not model:
                    newer.take_texts(model)
                await asyncio.sleep(_REST * (clock() - started))
        finally:
            self._renewing = None

    def _brought_to(self, overlay: Overlay, model: ServedModel) -> ServedModel:
        """The model over a newer catalogue. In a thread."""
        version = model.version
        placed = self._placed.setdefault(version, {})
        missing = [item.item_id for item in overlay.added(model.base.catalog) if item.item_id not in placed]
        for item_id, text in zip(missing, self._store.items.placements(version, missing), strict=True):
            if text is not None:
                placed[item_id] = Placement.from_json(text)
        runtime = model.base.over(overlay, placed, previous=model.runtime, new_item_slots=self._new_item_slots)
        return model.over(runtime)

    def _waiting(self, runtime: RecommenderRuntime) -> list[str]:
        """Items that want a semantic ID of their own, and may get one."""
        if runtime.waiting is None:
            return []
        ids = [runtime.catalog.item_ids[item] for item in np.flatnonzero(runtime.waiting).tolist()]
        version, items = runtime.info.model_version, self._overlay.items
        return [
            item_id
            for item_id in ids
            if (version, item_id) not in self._unplaceable
            or self._unplaceable[version, item_id] != items[item_id].facts
        ]

    async def _place(self) -> None:
        """Give all waiting items their semantic IDs, unless another process does."""
        try:
            for version in [model.version for model, _ in self._models.states()]:
                while (model := self._models.find(version)) is not None and self._waiting(model.runtime):
                    if not await self._in_thread(partial(self._store.items.lease, version, _LEASE_S)):
                        return
                    try:
                        await self._place_some(model.runtime)
                    finally:
                        with anyio.CancelScope(shield=True):
                            await self._in_thread(partial(self._store.items.end_lease, version))
        except StoreError as error:
            _log.warning("new items wait for the store", error=str(error))
        except Exception:
            _log.exception("new items get no semantic IDs")
            await asyncio.sleep(_LEASE_S)
        finally:
            self._placing = None

    async def _place_some(self, runtime: RecommenderRuntime) -> None:
        ids = self._waiting(runtime)[:_PLACED_AT_ONCE]
        placements = await self._in_thread(partial(_placements, runtime, ids))
        version, items = runtime.info.model_version, self._overlay.items
        self._unplaceable |= {(version, one): items[one].facts for one in ids if one not in placements}
        kept = {item_id: (each.place, each.to_json()) for item_id, each in placements.items()}
        if kept:
            await self._in_thread(partial(self._store.items.place, version, kept))
        # Also where another process has come first, or has taken a place: its items are then in the next turn's way.
        await self.refresh()

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(self._poll_s)
            await self.look()

    async def look(self) -> None:
        """Refresh if the version in the store is another one; whatever goes wrong, the service goes on."""
        newest = -1
        try:
            newest = await self._in_thread(self._store.items.version)
            has_waiting = self._placing is None and any(self._waiting(m.runtime) for m, _ in self._models.states())
            behind = any(model.runtime.catalog_version != newest for model, _ in self._models.states())
            if newest != self._failed_at and (behind or has_waiting):
                await self.refresh()
        except StoreError as error:
            if not self._is_out_of_reach:
                _log.warning("the catalogue stays as it is until the store answers", error=str(error))
            self._is_out_of_reach = True
        except Exception:  # what is in the store is of this program, or of another version of it
            _log.exception("a change of the catalogue cannot be taken, the last version goes on", version=newest)
            self._failed_at = newest
        else:
            self._is_out_of_reach = False

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        return await anyio.to_thread.run_sync(work, limiter=self._threads)

    def _begin(self, work: object) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _placements(runtime: RecommenderRuntime, ids: list[str]) -> Mapping[str, Placement]:
    """Vectors and semantic IDs of items of their own; of those that can have them."""
    assert runtime.placer is not None
    rows = runtime.catalog.index_of(ids)
    vectors, exists = runtime.placer.vectors(Catalog(frame=runtime.catalog.frame[rows]))
    places = np.flatnonzero(exists)
    found = place(runtime.placer, vectors[places], runtime.further_codes) if len(places) else []
    return {ids[row]: each for row, each in zip(places.tolist(), found, strict=True) if each is not None}
