"""Processes of a Ray cluster, placed, watched and started again by Ray Train."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from recsys.errors import ConfigError, EngineError, RecsysError
from recsys.ranks import Ranks
from training.engines.config import RayEngine
from training.engines.work import TIMEOUT, answer
from training.ray_cluster import ray_cluster


def run(engine: RayEngine, work: Callable[[Ranks], None], scratch: Path) -> None:
    """See `training.engines.start`."""
    try:
        with ray_cluster("engine: ray"):
            refused = _fitted(engine, work, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if refused is not None:
        raise refused


def _fitted(engine: RayEngine, work: Callable[[Ranks], None], scratch: Path) -> RecsysError | None:
    """What the processes answer, see `training.engines.work`."""
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    there = ray.cluster_resources()
    on_gpu = there.get("GPU", 0) > 0
    if not os.environ.get("RAY_ADDRESS"):
        check_room(engine, "GPU" if on_gpu else "CPU", there)
    try:
        outcome = TorchTrainer(
            _in_process,
            train_loop_config={"work": work, "sharded": engine.parallel == "fsdp"},
            scaling_config=ScalingConfig(num_workers=engine.processes, use_gpu=on_gpu),
            torch_config=TorchConfig(
                backend="cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout_s=int(TIMEOUT.total_seconds())
            ),
            # Ray's own notes on the attempts; what a fit goes on from is no business of Ray's.
            run_config=RunConfig(
                name="stage",
                storage_path=str(scratch.absolute()),
                failure_config=FailureConfig(max_failures=engine.max_restarts),
            ),
        ).fit()
    except ray.train.TrainingFailedError as error:
        raise EngineError(
            f"engine ray: the processes failed {engine.max_restarts + 1} times; see above, or raise engine.max_restarts"
        ) from error
    answered: RecsysError | None = outcome.return_value
    return answered


def check_room(engine: RayEngine, kind: str, there: Mapping[str, float]) -> None:
    """A process takes one of `kind`. A cluster may grow; on a machine alone Ray would wait for more without an end.

    Raises:
        ConfigError: there are fewer than processes.
    """
    if (room := int(there.get(kind, 0))) < engine.processes:
        raise ConfigError(
            f"engine.processes={engine.processes}, and Ray has {room} {kind}s on this machine; set "
            f"engine.processes={room}, or RAY_ADDRESS to a cluster"
        )


def _in_process(settings: dict[str, Any]) -> RecsysError | None:
    """In each process; Ray has brought the process group up."""
    import ray.train.torch

    if torch.cuda.is_available():
        torch.cuda.set_device(ray.train.torch.get_device())
    return answer(settings["work"], sharded=settings["sharded"])
