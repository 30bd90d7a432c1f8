"""Processes of a Ray cluster, placed, watched and started again by Ray Train. The only module that knows Ray."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from recsys.errors import ConfigError, EngineError, RecsysError
from recsys.ranks import Ranks
from training.engines.config import RayEngine
from training.engines.work import TIMEOUT, answer


def run(engine: RayEngine, work: Callable[[Ranks], None], scratch: Path) -> None:
    """See `training.engines.start`."""
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("engine: ray needs the extra 'ray'; install it with: pip install 'recsys[ray]'")
    # Before ray is imported: nothing is sent anywhere unless asked for.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    started = not ray.is_initialized()
    if started:
        ray.init(**({} if os.environ.get("RAY_ADDRESS") else {"include_dashboard": False}))
    on_gpu = ray.cluster_resources().get("GPU", 0) > 0
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
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        if started:
            ray.shutdown()
    if outcome.return_value is not None:
        raise outcome.return_value


def _in_process(settings: dict[str, Any]) -> RecsysError | None:
    """In each process; Ray has brought the process group up."""
    import ray.train.torch

    if torch.cuda.is_available():
        torch.cuda.set_device(ray.train.torch.get_device())
    return answer(settings["work"], sharded=settings["sharded"])
