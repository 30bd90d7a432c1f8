"""The claim: on MovieLens-100K the generator beats popularity and item-kNN on NDCG@10, in minutes and below 4 GiB.

recsys bench quickstart [--seed 0] [--json]
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

from training.config import load_config
from training.results import read_report, stage_costs
from training.runs import execute, packaged_config


def main(arguments: list[str]) -> dict[str, Any]:
    """Run `configs/quickstart.yaml` from nothing; the models' metrics with their intervals, time and memory."""
    parser = argparse.ArgumentParser(prog="recsys bench quickstart", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as directory:
        overrides = [f"run.dir={directory}", f"run.seed={options.seed}"]
        config = load_config(packaged_config("quickstart"), overrides)
        execute(config)
        report = read_report(config.run_dir)
        return {"protocol": report["protocol"], "models": report["models"], **stage_costs(config.run_dir)}
