"""The section `engine` of a run. No result depends on it: a run may go on with another engine than it began with."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from recsys.config import StrictConfig


class LocalEngine(StrictConfig):
    """Everything in this process."""

    name: Literal["local"] = "local"


class _Processes(StrictConfig):
    """What engines of several processes have in common."""

    processes: int = Field(default=2, ge=1)
    """Processes that train one model together, each on its part of every batch; on GPUs, one a GPU."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """`ddp`: each process holds the whole model. `fsdp`: weights, gradients and moments are split among them (FSDP2),
    for models that do not fit otherwise; in stage `train`, elsewhere it is `ddp`."""
    max_restarts: int = Field(default=3, ge=0)
    """How often processes are started again, from the last checkpoint, when one of them dies."""


class TorchrunEngine(_Processes):
    """Processes of this machine, started and watched by torch's elastic agent."""

    name: Literal["torchrun"]


class RayEngine(_Processes):
    """Processes wherever a Ray cluster has room, started and watched by Ray Train. The extra `ray` brings it.

    The cluster is the one that RAY_ADDRESS names, else one of this machine. `run.dir` must be a directory that all of
    its machines see.
    """

    name: Literal["ray"]


def _by_name(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


EngineConfig = Annotated[
    Annotated[LocalEngine | TorchrunEngine | RayEngine, Field(discriminator="name")], BeforeValidator(_by_name)
]
"""`engine: torchrun`, or a section with a `name` and settings."""
