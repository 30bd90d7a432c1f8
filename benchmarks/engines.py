"""The claim: another engine gives the report of `engine: local` within what seeds make of it; and what it costs.

Trains the generator of `configs/beauty.yaml` with every engine that is installed: the whole fit under several seeds for
its quality, and, one engine after the other, fits of one and of two epochs for their time. The difference of the two
is what epochs take, the rest what an engine takes to begin and to end.

    recsys bench engines [--seeds 3] [--no-times] [--data-path FOLDER] [--folder runs/engines] [--json]

Runs that are finished in the folder are not made again. Times mean something only where nothing else wants the cores.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from training.layout import DATA, ENCODE, TOKENIZE, TRAIN
from training.results import read_report, stage_costs
from training.runs import packaged_config

_ENGINES = {
    "local": ("engine=local",),
    "torchrun": ("engine=torchrun", "engine.processes=2"),
    "ray": ("engine=ray", "engine.processes=2"),
}
_THREADS = {
    "local, 1 thread": ("local", 1),
    "local, 2 threads": ("local", 2),
    "torchrun": ("torchrun", 1),
    "ray": ("ray", 1),
}
"""Rows of the table of times: the engine, and the threads of each process."""
_SHORT, _LONG = 1, 2
"""Epochs of the fits that are timed."""
_METRICS = ("recall@10", "ndcg@10")


def main(arguments: list[str]) -> dict[str, Any]:
    """Metrics by engine and seed; seconds of an epoch and of all else in the stage; speed-up over one thread."""
    parser = argparse.ArgumentParser(prog="recsys bench engines", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, choices=range(1, 101), metavar="N", help="of each engine")
    parser.add_argument("--times", action=argparse.BooleanOptionalAction, default=True, help="whether to time fits")
    parser.add_argument("--data-path", type=Path, help="folder of the data set; downloaded when not given")
    parser.add_argument("--folder", type=Path, default=Path("runs/engines"), help="for the runs")
    options = parser.parse_args(arguments)
    folder = options.folder.resolve()
    settings = ["fusion=null", "evaluation.baselines=[]", f"run.dir={folder}"]
    if options.data_path is not None:
        settings.append(f"data.path={options.data_path}")
    present = [name for name in _ENGINES if name != "ray" or importlib.util.find_spec("ray") is not None]
    quality = {}
    for engine in present:
        for seed in range(options.seeds):
            _run(folder / f"{engine}-{seed}", [*settings, *_ENGINES[engine], f"run.seed={seed}"])
        quality[engine] = _quality([read_report(folder / f"{engine}-{seed}") for seed in range(options.seeds)])
    rows = [row for row, (engine, _) in _THREADS.items() if engine in present] if options.times else []
    times = {row: _times(folder, row, settings) for row in rows}
    for row in times.values():
        row["speedup"] = round(times[rows[0]]["epoch_seconds"] / row["epoch_seconds"], 2)
    return {"quality": quality, "times": times, "left_out": [name for name in _ENGINES if name not in present]}


def _quality(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    values = {name: [each["models"]["generator"][name]["value"] for each in reports] for name in _METRICS}
    return {
        name: {
            "values": [round(value, 5) for value in each],
            "mean": round(float(np.mean(each)), 5),
            "std": round(float(np.std(each, ddof=1)), 5) if len(each) > 1 else None,
        }
        for name, each in values.items()
    }


def _times(folder: Path, row: str, settings: Sequence[str]) -> dict[str, float]:
    """From two fits that differ in their epochs alone."""
    engine, threads = _THREADS[row]
    seconds = {}
    for epochs in (_SHORT, _LONG):
        run = folder / f"timed-{row.replace(', ', '-').replace(' ', '-')}-{epochs}"
        if not (run / TRAIN).is_dir():
            # A stage that goes on after a kill counts its seconds from there.
            shutil.rmtree(run, ignore_errors=True)
            # Data, vectors and codes are no part of it, and no result of theirs depends on the engine.
            for stage in (DATA, ENCODE, TOKENIZE):
                shutil.copytree(folder / "local-0" / stage, run / stage)
        chosen = [*_ENGINES[engine], f"fit.epochs={epochs}", f"run.threads={threads}", "run.seed=0"]
        _run(run, [*settings, *chosen], "--until", TRAIN)
        seconds[epochs] = float(stage_costs(run)["seconds"][TRAIN])
    epoch = (seconds[_LONG] - seconds[_SHORT]) / (_LONG - _SHORT)
    return {"epoch_seconds": round(epoch, 2), "other_seconds": round(seconds[_SHORT] - _SHORT * epoch, 2)}


def _run(run: Path, settings: Sequence[str], *options: str) -> None:
    command = [sys.executable, "-m", "recsys", "run", str(packaged_config("beauty")), *settings, f"run.name={run.name}"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "RAY_USAGE_STATS_ENABLED": "0"}
    subprocess.run([*command, *options], check=True, stdout=subprocess.DEVNULL, env=environment)
