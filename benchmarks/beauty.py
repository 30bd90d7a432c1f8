"""The claim: on Amazon 2014 Beauty the generator alone reaches test Recall@10 >= 0.070 (TIGER's paper row: 0.0648).

Leave-last-out, full ranking at item level, seen items masked. One run a seed in `runs/beauty-seed-N`: a run that was
killed goes on where it was, a finished one is only read.

    recsys bench beauty [--seeds 3] [--data-path FOLDER] [--json]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from training.layout import RUNS
from training.results import read_report, stage_costs
from training.runs import packaged_config


def main(arguments: list[str]) -> dict[str, Any]:
    """Run `configs/beauty.yaml` under several seeds; mean and spread of each metric of each model over them."""
    parser = argparse.ArgumentParser(prog="recsys bench beauty", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, choices=range(1, 101), metavar="N", help="how many seeds, from 0")
    parser.add_argument("--data-path", type=Path, help="folder with the data set in the import format")
    options = parser.parse_args(arguments)

    reports, costs = [], []
    for seed in range(options.seeds):
        name = f"beauty-seed-{seed}"
        overrides = [f"run.seed={seed}", f"run.name={name}"]
        if options.data_path is not None:
            overrides.append(f"data.path={options.data_path}")
        # A process of its own, so that one run's memory does not count for the next.
        command = [sys.executable, "-m", "recsys", "run", str(packaged_config("beauty")), *overrides]
        subprocess.run(command, check=True, stdout=sys.stderr)
        reports.append(read_report(RUNS / name))
        costs.append(stage_costs(RUNS / name))
    return {
        "protocol": [report["protocol"] for report in reports],
        "models": {
            model: {metric: _spread(reports, model, metric) for metric in metrics}
            for model, metrics in reports[0]["models"].items()
        },
        "runs": costs,
    }


def _spread(reports: list[dict[str, Any]], model: str, metric: str) -> dict[str, Any]:
    values = [report["models"][model][metric]["value"] for report in reports]
    return {
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "min": min(values),
        "max": max(values),
        "values": values,
    }
