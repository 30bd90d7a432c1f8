"""Sizes and times of the API that depend on where it runs; limits that clients see are in `schemas`."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field, ValidationError

from recsys.config import StrictConfig, read_yaml
from recsys.errors import ConfigError
from recsys.generator.lm.reason import ReasonConfig
from serving.guard.settings import GuardSettings
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


class OfflineSettings(StrictConfig):
    """The offline store: all events in Parquet files, for training."""

    enabled: bool | None = None
    """Whether this process writes it. None: if the store is its own; with one that runs elsewhere, `recsys events
    consume` does, or one of the processes that share it."""
    directory: Path | None = None
    """Where; None is `offline` beside the bundle, as for `recsys events`."""


class ServingSettings(StrictConfig):
    """How much work runs at a time, and how long things may take."""

    guard: GuardSettings = GuardSettings()
    """Rate limits, foreign pages, slow clients, shutdown and the audit log."""
    traces: TraceSettings = TraceSettings()
    """Whether requests are traced with OpenTelemetry."""
    offline: OfflineSettings = OfflineSettings()
    """Whether and where the offline store is written."""
    max_body_bytes: int = Field(default=1_000_000, ge=1)
    """A longer request body is refused with 413, counted while it streams in."""
    max_clock_skew_s: float = Field(default=86_400, ge=0)
    """An event further in the future is rejected: it would stay the newest of its user."""
    model_threads: int = Field(default_factory=lambda: max(1, min(4, os.cpu_count() or 1)), ge=1)
    """Batches that a stage of the model works on at a time, one core each; more requests wait in line."""
    batching: BatchingSettings = BatchingSettings()
    deadline: DeadlineSettings = DeadlineSettings()
    breaker: BreakerSettings = BreakerSettings()
    reason: ReasonConfig = ReasonConfig()
    """How many reasons are written for a request that asks for them, and how long they may be."""
    cursor_s: float = Field(default=1800, gt=0)
    """How long a frozen list can be paged through."""
    store_threads: int = Field(default=16, ge=1)
    """Requests that wait for the store at a time."""
    retry_after_s: int = Field(default=2, ge=1)
    """What a 503 tells the client to wait."""


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
