"""From the section `engine` to processes that work, and what each of them does to build a stage."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from recsys.progress import console
from recsys.ranks import ALONE, Ranks
from training.engines.config import LocalEngine, RayEngine, TorchrunEngine
from training.pipeline import Stage, Workspace


def start(engine: LocalEngine | TorchrunEngine | RayEngine, work: Callable[[Ranks], None], scratch: Path) -> None:
    """Call `work` in every process of the engine, and return when all are done.

    Args:
        engine: who starts them. It starts all of them again when one dies, so that `work` goes on from what it stored.
        work: what a process does; pickled for engines that start other processes.
        scratch: a directory that the engine may make, and removes; on a cluster, where all machines see it.

    Raises:
        EngineError: a process died more often than it is started again, or the engine's extra is not installed.
        RecsysError: what `work` raised of this kind; it is not tried again.
    """
    # Each adapter is imported where it is used: Ray is an extra, and torch's agent takes its time.
    match engine:
        case LocalEngine():
            work(ALONE)
        case TorchrunEngine():
            from training.engines.torchrun import run

            run(engine, work)
        case RayEngine():
            from training.engines.ray import run as run_on_ray

            run_on_ray(engine, work, scratch)


def build_with(
    engine: LocalEngine | TorchrunEngine | RayEngine, threads: int | None
) -> Callable[[Stage, Workspace], None]:
    """How `run_stages` builds: stages that several processes can share by the engine, the others here."""

    def build(stage: Stage, workspace: Workspace) -> None:
        if stage.shared and not isinstance(engine, LocalEngine):
            work = partial(build_in_rank, stage.build, workspace, threads)
            start(engine, work, workspace.output.with_name("engine"))
        else:
            stage.build(workspace)

    return build


def build_in_rank(build: Callable[[Workspace], None], workspace: Workspace, threads: int | None, ranks: Ranks) -> None:
    """One process's part of a stage. What any but the leader writes beside checkpoints is thrown away."""
    if threads is not None:
        torch.set_num_threads(threads)
    if ranks.leads:
        # An attempt that died may have left something.
        shutil.rmtree(workspace.output, ignore_errors=True)
        workspace.output.mkdir()
        build(replace(workspace, ranks=ranks))
        return
    console.quiet = True
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch, "output")
        output.mkdir()
        build(replace(workspace, ranks=ranks, output=output, run_dir=Path(scratch)))
