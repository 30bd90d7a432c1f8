"""The claim: on MovieLens-100K the generator beats popularity and item-kNN on NDCG@10, in minutes and below 4 GiB.

recsys bench quickstart [--seeds 1] [--json]
"""

from __future__ import annotations

import argparse
from typing import Any

from training.bench import over_seeds


def main(arguments: list[str]) -> dict[str, Any]:
    """Run `configs/quickstart.yaml`; the models' metrics with their intervals, time and memory.

    Item vectors that an earlier run left in the cache are not computed again, so `encode` may take no time.
    """
    parser = argparse.ArgumentParser(prog="recsys bench quickstart", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1, choices=range(1, 101), metavar="N", help="seeds 0 .. N - 1")
    options = parser.parse_args(arguments)
    return over_seeds("quickstart", options.seeds)
