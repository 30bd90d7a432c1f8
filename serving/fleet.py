"""What concerns all processes of a service: which model answers, and its metrics. With one process that is simple."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, Protocol

from prometheus_client.metrics_core import Metric

from recsys.config import StrictConfig
from serving.metrics import Metrics
from serving.models import ModelError, Models


class EndingError(ModelError):
    """The service is ending: its processes can be asked nothing together any more."""


class ModelChange(StrictConfig):
    """What is asked of the models of every process."""

    action: Literal["load", "activate", "rollback", "unload", "shadow"]
    bundle: str | None = None
    """Of `load`."""
    model_version: str | None = None
    """Of `activate`, `unload` and `shadow`; None ends the shadow."""
    share: float = 0.0
    """Of `shadow`."""

    async def carry_out(self, models: Models) -> str:
        """Change the models of this process; the version of the model that it was about, or that is active now.

        Raises:
            ModelError: it is impossible now.
            ArtifactError: the bundle cannot be served.
        """
        match self.action:
            case "load":
                assert self.bundle is not None
                return (await models.load(self.bundle)).version
            case "rollback":
                models.roll_back()
            case "shadow":
                models.set_shadow(self.model_version, self.share)
            case "activate":
                assert self.model_version is not None
                models.activate(self.model_version)
            case "unload":
                assert self.model_version is not None
                models.unload(self.model_version)
        return self.model_version or models.active.version


class Fleet(Protocol):
    """The processes of a service."""

    async def change(self, change: ModelChange) -> None:
        """Change the models of all of them; when this returns, every later request finds it so.

        Raises:
            ModelError: it is impossible now; all is as before.
            ArtifactError: the bundle cannot be served; all is as before.
        """

    async def render_metrics(self) -> bytes:
        """What all of them have counted, as Prometheus scrapes it.

        Raises:
            EndingError: nobody is left who would ask them.
        """

    async def collect_metrics(self) -> Iterable[Metric]:
        """The same as objects; with several processes, each series has a label `worker`.

        Raises:
            EndingError: as above.
        """


class SingleProcess:
    """A service that is this process alone.

    Args:
        models: its models.
        metrics: what it has counted.
    """

    def __init__(self, models: Models, metrics: Metrics) -> None:
        self._models = models
        self._metrics = metrics

    async def change(self, change: ModelChange) -> None:
        """See `Fleet`."""
        await change.carry_out(self._models)

    async def render_metrics(self) -> bytes:
        """See `Fleet`."""
        return self._metrics.render()

    async def collect_metrics(self) -> Iterable[Metric]:
        """See `Fleet`."""
        return self._metrics.registry.collect()
