"""The claim: on Amazon 2014 Beauty the generator alone reaches test Recall@10 >= 0.070 (TIGER's paper row: 0.0648).

Leave-last-out, full ranking at item level, seen items masked.

    recsys bench beauty [--seeds 3] [--data-path FOLDER] [--json]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from training.bench import over_seeds


def main(arguments: list[str]) -> dict[str, Any]:
    """Run `configs/beauty.yaml` under several seeds; mean and spread of each metric of each model over them."""
    parser = argparse.ArgumentParser(prog="recsys bench beauty", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, choices=range(1, 101), metavar="N", help="seeds 0 .. N - 1")
    parser.add_argument("--data-path", type=Path, help="folder with the data set in the import format")
    options = parser.parse_args(arguments)
    return over_seeds("beauty", options.seeds, [f"data.path={options.data_path}"] if options.data_path else [])
