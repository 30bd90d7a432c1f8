"""Executing a run: its stages in order, under its lock, with its configuration stored beside them."""

from __future__ import annotations

from pathlib import Path

import torch

from recsys.errors import ConfigError
from recsys.files import atomic_path
from training.config import RunConfig, config_yaml
from training.layout import BUNDLE, CONFIG_FILE
from training.pipeline import run_lock, run_stages
from training.stages import build_stages


def execute(config: RunConfig, *, until: str = BUNDLE) -> None:
    """Bring the run's stages up to date, as far as `until`, and store the resolved configuration with them.

    Raises:
        RunLockedError: another process is writing this run.
    """
    if config.run.threads is not None:
        torch.set_num_threads(config.run.threads)
    stages = build_stages(config)
    names = [stage.name for stage in stages]
    with run_lock(config.run_dir):
        with atomic_path(config.run_dir / CONFIG_FILE) as temporary:
            temporary.write_text(config_yaml(config))
        run_stages(config.run_dir, stages[: names.index(until) + 1])


def packaged_config(name: str) -> Path:
    """`configs/NAME.yaml` of the checkout, or its copy in the installed package."""
    here = Path(__file__).parent
    for directory in (here.parent / "configs", here / "configs"):
        if (directory / f"{name}.yaml").is_file():
            return directory / f"{name}.yaml"
    raise ConfigError(f"configs/{name}.yaml is missing from the installation; install the package again")
