"""Executing a run: its stages in order, under its lock, with its configuration stored beside them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from recsys.errors import ArtifactError, ConfigError
from recsys.extras import require_extra
from recsys.files import atomic_path
from recsys.retrieval.gpu import require_cuvs
from training.config import RunConfig, config_yaml
from training.engines import build_with
from training.engines.config import RayEngine
from training.layout import CONFIG_FILE, FUSE, PROFILES, TRAIN
from training.pipeline import Stage, is_finished, run_lock, run_stages
from training.stages import build_stages, evaluate


def execute(config: RunConfig, until: str | None = None) -> None:
    """Bring all stages of the run up to date, and store the resolved configuration with them.

    Args:
        config: of the run.
        until: name of the last stage; all when None.

    Raises:
        ConfigError: the run has no stage of that name, or needs an extra that is not installed.
        RunLockedError: another process is writing this run.
    """
    set_threads(config)
    stages = build_stages(config)
    if until is not None:
        names = [stage.name for stage in stages]
        if until not in names:
            raise ConfigError(f"--until: this run has no stage {until!r}; its stages are {', '.join(names)}")
        stages = stages[: names.index(until) + 1]
    _require_extras(config, stages)
    with run_lock(config.run_dir):
        with atomic_path(config.run_dir / CONFIG_FILE) as temporary:
            temporary.write_text(config_yaml(config))
        run_stages(config.run_dir, stages, build_with(config.engine, config.run.threads))


def evaluate_run(config: RunConfig) -> None:
    """Bring the evaluation of a run up to date from its own finished stages; the raw data are not needed.

    Raises:
        ArtifactError: a stage that the evaluation reads is not finished.
        RunLockedError: another process is writing this run.
    """
    set_threads(config)
    # Only this stage is made: making the stage `data` already reads the raw files.
    stage = evaluate.stage(config)
    with run_lock(config.run_dir):
        unfinished = [name for name in stage.inputs if not is_finished(config.run_dir, name)]
        if unfinished:
            raise ArtifactError(
                f"{config.run_dir}: not finished: {', '.join(unfinished)}; finish the run with `recsys run CONFIG`"
            )
        run_stages(config.run_dir, [stage])


def set_threads(config: RunConfig) -> None:
    """Compute with as many CPU threads as the run asks for."""
    if config.run.threads is not None:
        torch.set_num_threads(config.run.threads)


def _require_extras(config: RunConfig, stages: Sequence[Stage]) -> None:
    """Before anything is done: the stage that needs one may come after hours."""
    names = {stage.name for stage in stages}
    if isinstance(config.engine, RayEngine) and any(stage.shared for stage in stages):
        require_extra("ray", needed_by="engine: ray")
    lm = config.generator.model.lm
    if lm is not None and lm.load_in == "8bit" and TRAIN in names:
        require_extra("quantized", needed_by="generator.model.lm.load_in=8bit")
    if config.profiles is not None and config.profiles.tuning is not None and PROFILES in names:
        require_extra("trl", needed_by="profiles.tuning")
    if config.fusion is not None and config.fusion.index == "cagra" and FUSE in names:
        require_cuvs(needed_by="fusion.index: cagra")


def packaged_config(name: str) -> Path:
    """`configs/NAME.yaml` of the checkout, or its copy in the installed package."""
    here = Path(__file__).parent
    for directory in (here.parent / "configs", here / "configs"):
        if (directory / f"{name}.yaml").is_file():
            return directory / f"{name}.yaml"
    raise ConfigError(f"configs/{name}.yaml is missing from the installation; install the package again")
