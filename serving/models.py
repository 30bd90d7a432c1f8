"""Models that a running service holds, and which of them answers. Knows no HTTP.

    load -> verify -> warm up -> activate -> roll back

Loading and warming up happen beside the requests, in a thread. Activating swaps one reference between two turns of the
event loop: a request takes the active model once, at its beginning, and is answered wholly by that. A model that was
replaced stays in memory, so that rolling back is as quick.
"""

from __future__ import annotations

import asyncio
import copy
import random
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import structlog

from recsys.errors import ArtifactError, ConfigError
from serving.answers import Answer, Query
from serving.arms import Arms
from serving.chain import AnswerChain
from serving.intents import OnDemand, UserIntents
from serving.path_metrics import PathMetrics
from serving.profiles import UserProfiles
from serving.runtime import RecommenderRuntime
from serving.settings import ServingSettings

State = Literal["active", "previous", "loaded", "shadow"]

_MOST_MODELS = 4
"""Models in memory at a time."""
_MOST_SHADOWED = 4
"""Requests that the shadow works on at a time; others are not shown to it."""

_log = structlog.get_logger(__name__)


class ServedModel:
    """A model with all that is made over its catalogue.

    Args:
        runtime: the model.
        settings: sizes and times.
        metrics: of the request path.

    Raises:
        ConfigError: a named filter or an experiment of the settings does not fit the catalogue.
    """

    def __init__(self, runtime: RecommenderRuntime, settings: ServingSettings, metrics: PathMetrics) -> None:
        runtime.rules.check(settings.filters)
        Arms(settings.experiments).check_columns(runtime.info.model_version, runtime.catalog.frame.columns)
        self.base = runtime
        """Over the catalogue of its bundle."""
        self.chain = AnswerChain(runtime, settings, metrics)
        self._usage = _Usage()
        self.profiles = UserProfiles(runtime.catalog)
        chat = settings.explanations.chat
        on_demand = None if chat is None else OnDemand.by_chat(chat)
        self.intents = (
            None
            if runtime.intents is None
            else UserIntents(
                runtime.catalog,
                self.profiles.attributes,
                runtime.intents,
                on_demand,
                on_broken=metrics.explanation_broke,
            )
        )
        """Interests and reasons over its catalogue; None where the bundle has no table of them."""
        self._filters = settings.filters
        self._set(runtime)

    def _set(self, runtime: RecommenderRuntime) -> None:
        self.runtime = runtime
        self.search = runtime.words

    @property
    def has_old_texts(self) -> bool:
        """Whether profiles and interests are made from what was known of items before; then `renew_texts` is worth its
        time."""
        is_old = self.profiles.catalog is not self.runtime.catalog
        return is_old or (self.intents is not None and self.intents.is_old)

    def renew_texts(self) -> None:
        """Make profiles and interests from what is known now; interests take a second for ten thousand items."""
        catalog = self.runtime.catalog
        profiles = UserProfiles(catalog)
        if self.intents is not None:
            self.intents = self.intents.renewed(catalog, profiles.attributes)
        self.profiles = profiles

    def take_texts(self, older: ServedModel) -> None:
        """Have profiles and interests that were made anew for the same model over an earlier version of its catalogue;
        what has changed since then is still missing."""
        catalog = self.runtime.catalog
        self.profiles = older.profiles.over(catalog)
        self.intents = None if older.intents is None else older.intents.over(catalog)

    def over(self, runtime: RecommenderRuntime) -> ServedModel:
        """The same model over another version of its catalogue, with the same threads; this one stays as it is."""
        try:
            runtime.rules.check(self._filters)
        except ConfigError as error:  # its columns are the same: the last number of one is gone
            _log.warning("requests with a named filter are refused, see there", error=str(error))
        twin = copy.copy(self)
        twin._set(runtime)
        twin.take_texts(self)
        twin.chain = self.chain.over(runtime)
        return twin

    @property
    def in_flight(self) -> int:
        """Requests that are being answered by it, whatever version of the catalogue they began with."""
        return self._usage.in_flight

    @property
    def version(self) -> str:
        """Names the content of its bundle."""
        return self.runtime.info.model_version

    @contextmanager
    def use(self) -> Iterator[ServedModel]:
        """Keep the model while a request is answered."""
        self._usage.in_flight += 1
        try:
            yield self
        finally:
            self._usage.in_flight -= 1
            self._close_if_idle()

    def retire(self) -> None:
        """No request will begin any more: end its threads after the last one."""
        self._usage.is_retired = True
        self._close_if_idle()

    def _close_if_idle(self) -> None:
        if self._usage.is_retired and self.in_flight == 0:
            self.chain.close()


@dataclass(slots=True)
class _Usage:
    """Who uses a model, over all versions of its catalogue."""

    in_flight: int = 0
    is_retired: bool = False


class ModelError(ConfigError):
    """What is asked of the models is impossible now; the service goes on as before."""


class Models:
    """The models of a service. Used from one event loop.

    Args:
        first: answers from the start; warmed up by the caller.
        settings: sizes and times.
        metrics: of the request path.
        load: reads and verifies a bundle.
        root: bundles are looked for below it; None where none can be loaded.
        on_activate: is told the model that answers from now on.
    """

    def __init__(
        self,
        first: ServedModel,
        settings: ServingSettings,
        metrics: PathMetrics,
        *,
        load: Callable[[Path], RecommenderRuntime],
        root: Path | None,
        on_activate: Callable[[ServedModel], None],
    ) -> None:
        self.active = first
        self._settings = settings
        self._metrics = metrics
        self._load = load
        self._root = None if root is None else root.resolve()
        self._on_activate = on_activate
        self._held: dict[str, ServedModel] = {first.version: first}
        self._previous: ServedModel | None = None
        self._shadow: ServedModel | None = None
        self._shadow_share = 0.0
        self._missed: set[str] = set()
        self._shadowing: set[asyncio.Task[None]] = set()
        self._draw = random.Random(0)
        self._loading = asyncio.Lock()
        self.after_load: Callable[[], Awaitable[None]] | None = None
        """Brings a model that was loaded to where the others are, before anybody is told of it."""
        on_activate(first)

    def states(self) -> list[tuple[ServedModel, State]]:
        """All models in memory, in the order in which they were loaded."""
        return [(model, self._state(model)) for model in list(self._held.values())]

    def find(self, version: str) -> ServedModel | None:
        """A model in memory, if it is there."""
        return self._held.get(version)

    def chosen(self, version: str | None, default: ServedModel) -> ServedModel:
        """The model of this version if it is in memory, else another one; says once in the log that it is not.

        Args:
            version: None chooses none.
            default: the other one.
        """
        model = default if version is None else self._held.get(version)
        if model is not None:
            return model
        assert version is not None
        if version not in self._missed:
            self._missed.add(version)
            _log.warning("the model of an experiment is not in memory, another one answers", model_version=version)
        return default

    async def load(self, name: str) -> ServedModel:
        """Read, verify and warm up the bundle `name`: a directory below the root, or a run's directory there.

        Raises:
            ModelError: too many models are in memory, this one is already, it is of other data, or the service's
                named filters or experiments do not fit it.
            ArtifactError: the bundle is missing, damaged or incompatible, or its model cannot answer.
        """
        async with self._loading:
            if len(self._held) >= _MOST_MODELS:
                raise ModelError(f"{len(self._held)} models are in memory, no more fit; unload one first")
            path = self._path(name)
            runtime = await asyncio.to_thread(self._load, path)
            info, served = runtime.info, self.active.runtime.info
            if info.name != served.name:
                raise ModelError(
                    f"{name} is a model of {info.name!r}, this service is of {served.name!r}: ids of users and items "
                    "differ; serve it by itself"
                )
            if info.model_version in self._held:
                raise ModelError(f"{name} is model {info.model_version}, which is in memory already; activate it")
            try:
                model = await asyncio.to_thread(ServedModel, runtime, self._settings, self._metrics)
            except ConfigError as error:
                raise ModelError(f"{name} does not fit the settings of this service: {error}") from error
            try:
                await asyncio.to_thread(model.chain.warm_up)
            except ArtifactError:
                model.retire()
                raise
            self._held[model.version] = model
            self._missed.discard(model.version)
        if self.after_load is not None:
            await self.after_load()
        _log.info("model loaded", model_version=model.version, path=str(path))
        return model

    def activate(self, version: str) -> None:
        """Let a loaded model answer from the next request on.

        Raises:
            ModelError: no such model is in memory.
        """
        model = self._of(version)
        if model is self.active:
            return
        if model is self._shadow:
            self._shadow = None
        self._previous, self.active = self.active, model
        self._on_activate(model)
        _log.info("model activated", model_version=version, previous=self._previous.version)

    def swap_catalogue(self, models: Iterable[ServedModel]) -> None:
        """Let models that are held answer over another version of their catalogues from the next request on.

        Args:
            models: the same ones, each over its new version; one that was unloaded meanwhile is left alone.
        """
        for model in models:
            old = self._held.get(model.version)
            if old is None or old.base is not model.base:
                continue
            self._held[model.version] = model
            self.active = model if self.active is old else self.active
            self._previous = model if self._previous is old else self._previous
            self._shadow = model if self._shadow is old else self._shadow

    def roll_back(self) -> None:
        """Let the model answer again that did so before the last activation.

        Raises:
            ModelError: there is none.
        """
        if self._previous is None:
            raise ModelError("no model was active before this one; activate one by its version")
        self.activate(self._previous.version)

    def unload(self, version: str) -> None:
        """Forget a model that does not answer. Its requests in flight still end.

        Raises:
            ModelError: no such model is in memory, or it is the active one.
        """
        model = self._of(version)
        if model is self.active:
            raise ModelError(f"model {version} is active; activate another one first")
        if model is self._previous:
            self._previous = None
        if model is self._shadow:
            self._shadow = None
        del self._held[version]
        model.retire()

    def set_shadow(self, version: str | None, share: float) -> None:
        """Show a share of the requests to a loaded model too, whose answers are compared and given to nobody.

        Args:
            version: of the model; None ends it.
            share: of the requests, 0 to 1.

        Raises:
            ModelError: no such model is in memory, or it is the active one.
        """
        model = None if version is None else self._of(version)
        if model is self.active:
            raise ModelError(f"model {version} is active; a shadow is another one")
        self._shadow, self._shadow_share = model, share

    def resume(self, *, active: str, previous: str | None, shadow: str | None, share: float) -> None:
        """Take up where another process is, with models in memory.

        Args:
            active: version of the model that answers.
            previous: of the one that did so before.
            shadow: of the one that is shown requests too.
            share: of the requests that it is shown.

        Raises:
            ModelError: one of them is not in memory.
        """
        model = self._of(active)
        if model is not self.active:
            self.active = model
            self._on_activate(model)
        self._previous = None if previous is None else self._of(previous)
        self.set_shadow(shadow, share)

    def show_to_shadow(self, query: Query, answer: Answer, catalog_ids: Callable[[int], str]) -> None:
        """Ask the shadow too, if it is this request's turn; returns at once.

        Args:
            query: the request.
            answer: of the active model.
            catalog_ids: the id of an item of that answer.
        """
        shadow = self._shadow
        if shadow is None or len(self._shadowing) >= _MOST_SHADOWED or self._draw.random() >= self._shadow_share:
            return
        expected = [catalog_ids(pick.item) for pick in answer.picks]
        # From now on: it may be unloaded before the task has begun.
        in_use = ExitStack()
        in_use.enter_context(shadow.use())
        task = asyncio.create_task(self._compare(shadow, query, expected))
        self._shadowing.add(task)
        task.add_done_callback(self._shadowing.discard)
        task.add_done_callback(lambda _: in_use.close())

    def close(self) -> None:
        """End the threads of all models."""
        for model in self._held.values():
            model.retire()

    async def _compare(self, shadow: ServedModel, query: Query, expected: list[str]) -> None:
        loop = asyncio.get_running_loop()
        try:
            answer = await shadow.chain.answer(query, loop.time() + shadow.chain.default_deadline_s)
        except Exception as error:  # nobody waits for it
            self._metrics.shadow_failed(shadow.version)
            _log.warning("the shadow did not answer", model_version=shadow.version, error=repr(error))
            return
        ids = shadow.runtime.catalog.item_ids
        found = {ids[pick.item] for pick in answer.picks}
        overlap = len(found.intersection(expected)) / max(1, len(expected), len(found))
        self._metrics.shadow_agreed(shadow.version, overlap)

    def _of(self, version: str) -> ServedModel:
        model = self._held.get(version)
        if model is None:
            raise ModelError(f"no model {version!r} is in memory; there are: {', '.join(self._held)}")
        return model

    def _state(self, model: ServedModel) -> State:
        if model is self.active:
            return "active"
        if model is self._shadow:
            return "shadow"
        return "previous" if model is self._previous else "loaded"

    def _path(self, name: str) -> Path:
        if self._root is None:
            raise ModelError("this service loads no further models; start it with `recsys serve`")
        try:
            for path in (self._root / name / "bundle", self._root / name):
                resolved = path.resolve()
                if not resolved.is_relative_to(self._root):
                    raise ModelError(f"{name!r} leads out of the directory of bundles; name one below it")
                if (resolved / "manifest.json").is_file():
                    return resolved
        except (OSError, ValueError) as error:  # too long, or with a zero byte
            raise ArtifactError(
                f"bundle: {name!r} is no name of a directory; name one below that of bundles"
            ) from error
        raise ArtifactError(f"bundle: the directory of bundles has no {name!r} with a manifest.json")
