"""Sizes and times of the API that depend on where it runs; limits that clients see are in `schemas`."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field, ValidationError, field_validator, model_validator

from recsys.config import StrictConfig, read_yaml
from recsys.errors import ConfigError
from recsys.generator.filters import Filter, FilterError, Node, resolved
from recsys.generator.gpu import Device
from recsys.generator.lm.config import ChatTeacherConfig
from recsys.generator.lm.reason import ReasonConfig
from serving.answers import SearchBy
from serving.arms import ArmSettings
from serving.experiments import ExperimentPlan
from serving.guard.settings import GuardSettings
from serving.schemas.rules import MAX_K
from serving.tracing import TraceSettings


class BatchingSettings(StrictConfig):
    """How requests share calls of the model."""

    max_batch: int = Field(default=32, ge=1)
    """Requests of one call; 1 gives each request a call of its own. Batches are smaller where sharing saves no more."""
    max_waiting: int = Field(default=512, ge=1)
    """Requests that wait for a stage of the model; more are refused with 503."""


class DeadlineSettings(StrictConfig):
    """How long answers may take where the request does not say so (`X-Deadline-Ms`)."""

    default_ms: float | None = Field(default=None, gt=0)
    """Of mode `direct`; None is ten times what the model's best source takes alone at the start, at least a second."""
    reason_ms: float = Field(default=120_000, gt=0)
    """Of mode `reason`."""
    store_share: float = Field(default=0.5, gt=0, le=1)
    """Of a request's time that reading the user from the store may take; then the answer is for an unknown user."""


class BreakerSettings(StrictConfig):
    """When a part that fails is left alone."""

    max_failures: int = Field(default=5, ge=1)
    """Failures in a row after which a source of lists, or the store, is not asked any more."""
    open_s: float = Field(default=5, gt=0)
    """How long, before one request tries it again."""


class ExplorationSettings(StrictConfig):
    """Lists that are drawn at random, so that later estimates of other policies are possible."""

    epsilon: float = Field(default=0.0, ge=0, le=1)
    """Share of the lists; 0 always shows the best one. 0.02 to 0.05 is usual. An arm of an experiment may have its
    own."""
    candidates: int = Field(default=50, ge=2, le=MAX_K)
    """The best so many items are drawn from, at the cost of a list of that length."""


class ExplanationSettings(StrictConfig):
    """Who writes the explanations that a bundle's table lacks."""

    chat: ChatTeacherConfig | None = None
    """A chat model; its answers are kept in the file `cache`. None: rules."""


class OfflineSettings(StrictConfig):
    """The offline store: all events in Parquet files, for training."""

    enabled: bool | None = None
    """Whether this process writes it. None: if the store is its own; with one that runs elsewhere, `recsys events
    consume` does, or one of the processes that share it."""
    directory: Path | None = None
    """Where; None is `offline` beside the bundle, as for `recsys events`."""
    slates: bool = True
    """Whether the lists that known users are shown are logged for it, with their probabilities."""


class CatalogueSettings(StrictConfig):
    """How changes of the catalogue are followed."""

    poll_s: float = Field(default=0.3, gt=0)
    """Seconds between two looks, of one small read each, at whether another process has changed an item."""
    new_item_slots: int = Field(default=1, ge=0)
    """Places at the end of each list for the best items that were added to a model without fusion, if it has none of
    them already: they are looked for by a second search, from the first added item on. A bundle's own
    `generator.new_item_slots` holds if it is larger. 0: new items have to win against what the model has learned."""


class SearchSettings(StrictConfig):
    """How `POST /v1/search` finds items."""

    by: SearchBy = "words"
    """`words`: those whose title, categories or id have all the words. `text_encoder`: those that are meant, by the
    bundle's text encoder, which is loaded at the start (hundreds of megabytes). `generator`: those that the bundle's
    language model generates after the text. Where these fail, or have no time, words do."""


class ServingSettings(StrictConfig):
    """How much work runs at a time, and how long things may take."""

    guard: GuardSettings = GuardSettings()
    """Rate limits, foreign pages, slow clients, shutdown and the audit log."""
    traces: TraceSettings = TraceSettings()
    """Whether requests are traced with OpenTelemetry."""
    offline: OfflineSettings = OfflineSettings()
    """Whether and where the offline store is written."""
    experiments: ExperimentPlan = ExperimentPlan()
    """Which users get other settings, `serving.arms.ArmSettings`."""
    exploration: ExplorationSettings = ExplorationSettings()
    """Whether lists are drawn at random."""
    workers: int = Field(default=1, ge=0, le=256)
    """Processes that answer, over one port and one copy of the weights; 0: one a core."""
    filters: dict[str, Filter] = Field(default={}, max_length=100)
    """Filters that requests use by name, `{"named": ...}`; see `recsys.generator.filters`."""
    always: list[str] = Field(default=[])
    """Names of filters that hold for every list, such as `in_stock`."""
    search: SearchSettings = SearchSettings()
    rerank_candidates: int = Field(default=50, ge=2, le=MAX_K)
    """A list with boosts or diversity is chosen from the best so many items, at the cost of a list of that length."""
    max_body_bytes: int = Field(default=1_000_000, ge=1)
    """A longer request body is refused with 413, counted while it streams in."""
    max_clock_skew_s: float = Field(default=86_400, ge=0)
    """An event further in the future is rejected: it would stay the newest of its user."""
    device: Device = "cpu"
    """What the generator searches on; `cuda`: the first GPU. Each worker has the weights there for itself."""
    model_threads: int = Field(default_factory=lambda: max(1, min(4, os.cpu_count() or 1)), ge=1)
    """Batches that a stage of the model works on at a time, one core each; more requests wait in line. In each worker;
    with several, the default is the worker's share of the cores."""
    batching: BatchingSettings = BatchingSettings()
    catalogue: CatalogueSettings = CatalogueSettings()
    """How changes of items reach this process."""
    deadline: DeadlineSettings = DeadlineSettings()
    breaker: BreakerSettings = BreakerSettings()
    reason: ReasonConfig = ReasonConfig()
    """How many reasons are written for a request that asks for them, and how long they may be."""
    explanations: ExplanationSettings = ExplanationSettings()
    """Who writes what requests with `explain: intent` ask for."""
    cursor_s: float = Field(default=1800, gt=0)
    """How long a frozen list can be paged through."""
    store_threads: int = Field(default=16, ge=1)
    """Requests that wait for the store at a time."""
    retry_after_s: int = Field(default=2, ge=1)
    """What a 503 tells the client to wait."""

    @field_validator("filters")
    @classmethod
    def _filters_stand_for_themselves(cls, filters: dict[str, Node]) -> dict[str, Node]:
        for name, node in filters.items():
            try:
                resolved(node, {})
            except FilterError as error:
                raise ValueError(f"{name}: a named filter may not use another one") from error
        return filters

    @model_validator(mode="after")
    def _names_have_filters(self) -> ServingSettings:
        for name in self.always:
            if name not in self.filters:
                raise ValueError(f"always: {self._no_filter(name)}")
        for layer in self.experiments.layers:
            for experiment, found in layer.experiments.items():
                for variant, arm in found.variants.items():
                    wanted = ArmSettings.model_validate(arm).filter
                    if wanted is not None and wanted not in self.filters:
                        raise ValueError(f"experiments: {experiment}/{variant}: {self._no_filter(wanted)}")
        return self

    def _no_filter(self, name: str) -> str:
        return f"no filter is named {name!r}; there are: {', '.join(self.filters) or 'none'}"

    @field_validator("experiments")
    @classmethod
    def _arms_can_be_followed(cls, plan: ExperimentPlan) -> ExperimentPlan:
        for layer in plan.layers:
            for name, experiment in layer.experiments.items():
                for variant, settings in experiment.variants.items():
                    try:
                        ArmSettings.model_validate(settings)
                    except ValidationError as error:
                        first = error.errors()[0]
                        where = ".".join(map(str, (name, variant, *first["loc"])))
                        raise ValueError(
                            f"{where}: {first['msg']}; an arm may set {', '.join(ArmSettings.model_fields)}"
                        ) from error
        return plan


def load_settings(path: Path) -> ServingSettings:
    """The settings of a YAML file.

    Raises:
        ConfigError: the file cannot be read, or a value is unknown or impossible; all of them are named.
    """
    try:
        return ServingSettings.model_validate(read_yaml(path))
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, entry['loc']))}: {entry['msg']}" for entry in error.errors())
        raise ConfigError(f"{path}: {wrong}") from error
