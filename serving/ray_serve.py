"""The API as an application of Ray Serve, for those who run everything on a Ray cluster. Needs the extra `ray-serve`.

    RECSYS_STORE=redis://store:6379 serve run serving.ray_serve:application bundle=/shared/runs/demo replicas=4

It is an adapter for an example: `recsys serve` with workers answers faster, for Ray's proxy costs each request
milliseconds. Each replica is a process with the whole service in it; they share the store, which runs elsewhere, and
the machines must see bundle, settings and keys under the same paths. Another bundle comes by running it again: Ray
replaces the replicas one after the other. What the API itself changes about models would reach one replica only, so
that is refused; `/metrics` is of the replica that answers, and says which.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from prometheus_client.metrics_core import Metric
from pydantic import Field, ValidationError

from recsys.bundle import read_manifest
from recsys.config import StrictConfig
from recsys.errors import ConfigError
from recsys.extras import require_extra
from serving.bundles import find_bundle, namespace_of
from serving.fleet import ModelChange
from serving.guard.keys import KeyRing
from serving.metrics import Metrics
from serving.models import ModelError
from serving.private_copies import PrivateCopies
from serving.server import Service
from serving.settings import ServingSettings, load_settings
from serving.slate_writer import SlateWriter


class RayServeConfig(StrictConfig):
    """What is served, and by how much; the arguments of `serve run`."""

    bundle: Path
    """A bundle, or a run's directory."""
    store: str = Field(default_factory=lambda: os.environ.get("RECSYS_STORE", ""))
    """URL of the store; by default that of RECSYS_STORE."""
    keys: Path | None = Field(default_factory=lambda: Path(found) if (found := os.environ.get("RECSYS_KEYS")) else None)
    """The file of keys; by default that of RECSYS_KEYS. None: only requests that name this machine are answered."""
    no_auth: bool = False
    """Answer whoever asks without keys: something else asks who is calling."""
    settings: Path | None = None
    """A YAML file of `serving.settings.ServingSettings`."""
    replicas: int = Field(default=1, ge=1)
    """Processes that answer."""
    cpus: int = Field(default=1, ge=1)
    """Processors of each, and batches that it works on at a time unless the settings say otherwise."""


def application(arguments: dict[str, Any]) -> Any:
    """The application that `serve run` and `ray.serve.run` take.

    Args:
        arguments: of a `RayServeConfig`.

    Raises:
        ConfigError: the extra is not installed, or an argument is wrong.
        ArtifactError: there is no bundle.
    """
    try:
        config = RayServeConfig.model_validate(arguments)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, entry['loc']))}: {entry['msg']}" for entry in error.errors())
        raise ConfigError(f"serving.ray_serve: {wrong}") from error
    if not config.store:
        raise ConfigError(
            "serving.ray_serve: store: is empty; replicas share one that runs elsewhere: redis://host:6379"
        )
    if config.keys is not None and config.no_auth:
        raise ConfigError("serving.ray_serve: keys and no_auth exclude each other")
    path = find_bundle(config.bundle).absolute()
    read_manifest(path)
    settings = ServingSettings() if config.settings is None else load_settings(config.settings)
    if "model_threads" not in settings.model_fields_set:
        settings = settings.model_copy(update={"model_threads": config.cpus})
    require_extra("ray-serve", needed_by="serving.ray_serve")
    from ray import serve

    def replica() -> FastAPI:
        return _replica(path, config, settings)

    deployment = serve.deployment(
        serve.ingress(replica)(),
        name="recsys",
        num_replicas=config.replicas,
        ray_actor_options={"num_cpus": config.cpus},
        # The service itself refuses what it cannot answer in time, and shares calls of the model among the others.
        max_ongoing_requests=settings.batching.max_waiting,
    )
    return deployment.bind()


def _replica(path: Path, config: RayServeConfig, settings: ServingSettings) -> FastAPI:
    """The service of one replica, in its process."""
    from ray import serve

    copies = PrivateCopies()
    atexit.register(copies.__exit__, None, None, None)
    service = Service(
        path=path,
        copies=copies,
        pinned=copies.take(path),
        name=read_manifest(path).name,
        namespace=namespace_of(path),
        settings=settings,
        keys=None if config.keys is None else KeyRing(config.keys),
        is_open=config.no_auth,
        onnx=None,
        idle_lifetime_s=None,
    )
    bundle, runtime = service.load()
    store = service.connect(config.store)
    api = service.app(bundle, runtime, store, slates=SlateWriter(store) if settings.offline.slates else None)
    context = api.state.context
    context.fleet = _OneOfMany(context.metrics, serve.get_replica_context().replica_id.unique_id)
    return api


class _OneOfMany:
    """The fleet as a replica sees it, which knows no other; a `serving.fleet.Fleet`.

    Args:
        metrics: what it has counted.
        name: of the replica.
    """

    def __init__(self, metrics: Metrics, name: str) -> None:
        self._metrics = metrics
        self._name = name

    async def change(self, change: ModelChange) -> None:
        """See `serving.fleet.Fleet`."""
        raise ModelError("on Ray Serve models change with the application: run it again with another bundle")

    async def render_metrics(self) -> bytes:
        """See `serving.fleet.Fleet`."""
        return self._metrics.render(self._name)

    async def collect_metrics(self) -> Iterable[Metric]:
        """See `serving.fleet.Fleet`."""
        return self._metrics.registry.collect()
