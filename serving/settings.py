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


class ServingSettings(StrictConfig):
    """How much work runs at a time, and how long things may take."""

    guard: GuardSettings = GuardSettings()
    """Rate limits, foreign pages, slow clients, shutdown and the audit log."""
    traces: TraceSettings = TraceSettings()
    """Whether requests are traced with OpenTelemetry."""
    max_body_bytes: int = Field(default=1_000_000, ge=1)
    """A longer request body is refused with 413, counted while it streams in."""
    max_clock_skew_s: float = Field(default=86_400, ge=0)
    """An event further in the future is rejected: it would stay the newest of its user."""
    model_threads: int = Field(default_factory=lambda: max(1, min(4, os.cpu_count() or 1)), ge=1)
    """Requests that the model works on at a time, one core each; more wait in line."""
    reason: ReasonConfig = ReasonConfig()
    """How many reasons are written for a request that asks for them, and how long they may be."""
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
