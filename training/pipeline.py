"""Runs stages in order, each one once: skips what is up to date, continues what was interrupted.

A stage's result is a directory of a run, `runs/<name>/<stage>/`, that appears as a whole or not at all. Its
`.stage.json` holds the key that it was made under: a hash of the stage's settings, of the content of its inputs and of
its version. A stage runs when no result with the present key exists. It knows nothing of what stages do.

While a stage runs, `runs/<name>/<stage>.partial/` holds

    key       what the work was started under; work of another key is thrown away
    output/   the result in the making; thrown away when the stage starts again
    resume/   what the stage keeps to go on from after it was killed
"""

from __future__ import annotations

import fcntl
import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recsys.errors import RecsysError
from recsys.files import sha256_file, sha256_json, write_json
from recsys.progress import console
from recsys.ranks import ALONE, Ranks
from training.layout import STAGE_FILE

_ENGINE_FORMAT = 1


class RunLockedError(RecsysError):
    """Another process is writing the same run."""


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """What a stage may touch while it runs."""

    inputs: Mapping[str, Path]
    """Directories with the results of the stages that it reads, by their names."""
    output: Path
    """An empty directory for its result."""
    resume: Path
    """A directory that survives a kill; the stage finds here what an interrupted attempt under the same key left."""
    run_dir: Path
    """The run's directory, for logs that are no result (TensorBoard)."""
    ranks: Ranks = ALONE
    """The processes that build the stage together. Only the leader's `output` and `run_dir` are real; the others may
    write there, and nobody reads it."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One step from artifacts to artifacts."""

    name: str
    """Also the name of its directory."""
    version: int
    """Raised when the code makes another result, or another format, from the same settings and inputs."""
    inputs: tuple[str, ...]
    """Names of the earlier stages that it reads."""
    settings: Any
    """JSON-able: everything else that the result depends on."""
    build: Callable[[Workspace], None]
    """Writes the result."""
    shared: bool = False
    """Several processes can do this stage's work together; `build` can then be pickled."""


@contextmanager
def run_lock(run_dir: Path, other: str = "run.name=") -> Iterator[None]:
    """Hold a run's directory for this process; the system releases it when the process ends, however it ends.

    Args:
        run_dir: made if it is not there.
        other: what a user changes to get another directory.

    Raises:
        RunLockedError: another process holds it.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise RunLockedError(
                f"{run_dir} is being written by {holder}; wait for it, stop it, or choose another {other}"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()}")
        file.flush()
        yield


def _build_here(stage: Stage, workspace: Workspace) -> None:
    stage.build(workspace)


def run_stages(run_dir: Path, stages: Sequence[Stage], build: Callable[[Stage, Workspace], None] = _build_here) -> None:
    """Bring every stage's result up to date, each one by `build`. The caller holds `run_lock`."""
    for number, stage in enumerate(stages, start=1):
        label = f"[bold]{number}/{len(stages)} {stage.name:<9}[/]"
        partial = run_dir / f"{stage.name}.partial"
        key = _key(run_dir, stage)
        if finished_key(run_dir, stage.name) == key:
            console.print(f"{label} up to date", highlight=False)
            shutil.rmtree(partial, ignore_errors=True)
            continue
        resumed = _claim(partial, key)
        console.print(f"{label} {'going on after an interruption' if resumed else 'running'}", highlight=False)
        started = time.monotonic()
        _build(run_dir, stage, partial, key, build)
        console.print(f"{label} done in {time.monotonic() - started:.1f} s", highlight=False)


def finished_key(run_dir: Path, name: str) -> str | None:
    """The key of a stage's finished result; None when there is none, or when files of it are gone or changed size."""
    directory = run_dir / name
    try:
        marker = json.loads((directory / STAGE_FILE).read_text())
        whole = all((directory / file).stat().st_size == facts["bytes"] for file, facts in marker["files"].items())
    except (OSError, ValueError, KeyError):
        return None
    return str(marker["key"]) if whole else None


def is_finished(run_dir: Path, name: str) -> bool:
    """Whether a stage has a whole result and no interrupted attempt to replace it by one of other settings."""
    return finished_key(run_dir, name) is not None and not (run_dir / f"{name}.partial").exists()


def _key(run_dir: Path, stage: Stage) -> str:
    return sha256_json(
        {
            "engine": _ENGINE_FORMAT,
            "stage": stage.name,
            "version": stage.version,
            "settings": stage.settings,
            "inputs": {name: _content(run_dir / name) for name in stage.inputs},
        }
    )


def _content(directory: Path) -> dict[str, str]:
    """Hash of each file of a finished result: a stage that was redone with the same outcome leaves later ones alone."""
    marker = json.loads((directory / STAGE_FILE).read_text())
    return {file: facts["sha256"] for file, facts in marker["files"].items()}


def _claim(partial: Path, key: str) -> bool:
    """Make `partial` ready for work under `key`; whether an interrupted attempt under the same key is there."""
    key_file = partial / "key"
    if key_file.is_file() and key_file.read_text() == key:
        return True
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "resume").mkdir(parents=True)
    key_file.write_text(key)
    return False


def _build(run_dir: Path, stage: Stage, partial: Path, key: str, build: Callable[[Stage, Workspace], None]) -> None:
    output = partial / "output"
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir()
    started = time.monotonic()
    build(
        stage,
        Workspace(
            inputs={name: run_dir / name for name in stage.inputs},
            output=output,
            resume=partial / "resume",
            run_dir=run_dir,
        ),
    )
    files = {
        str(file.relative_to(output)): {"sha256": sha256_file(file), "bytes": file.stat().st_size}
        for file in sorted(output.rglob("*"))
        if file.is_file()
    }
    marker = {"stage": stage.name, "key": key, "version": stage.version, "settings": stage.settings, "files": files}
    cost = {"seconds": time.monotonic() - started, "peak_memory_mib": _peak_memory_mib()}
    write_json(output / STAGE_FILE, {**marker, **cost, "finished_at": time.time()})
    final = run_dir / stage.name
    if final.exists():
        final.rename(partial / "replaced")
    output.rename(final)
    shutil.rmtree(partial)


def _peak_memory_mib() -> float:
    """Of this process since it started, or of the largest one that it started and that has ended."""
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return peak / 1024 if sys.platform == "linux" else peak / 2**20
