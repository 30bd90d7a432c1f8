"""Whether the A/B statistics keep their promises, on made-up users whose truth is known; minutes on one core.

Tests of an arm against itself (p-values, rejections, sample ratios), with and without peeking; an injected lift and how
often intervals hold it; the variance that CUPED and common random numbers leave; interleaved rankers.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from recsys.simulator.experiment import validity


def main(arguments: list[str]) -> dict[str, Any]:
    """See the module."""
    parser = argparse.ArgumentParser(prog="recsys bench ab_validity", description=__doc__)
    parser.add_argument("--runs", type=int, default=2000, metavar="N", help="runs of each study")
    parser.add_argument("--users", type=int, default=1000, metavar="N", help="users of a test")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    runs, users, seed = options.runs, options.users, options.seed
    return {
        "same_arms": asdict(validity.same_arms(runs, users, seed)),
        "peeking": asdict(validity.peeking(max(runs, 10_000), seed=seed)),
        "recovered_lift": [asdict(validity.recovered_lift(runs, users, lift, seed)) for lift in (0.0, 0.05, 0.2)],
        "cuped": [asdict(validity.cuped_factor(2 * runs, users, rho, seed)) for rho in (0.3, 0.6, 0.9)],
        "common_random_numbers": asdict(validity.common_noise(min(runs, 300), users, seed)),
        "interleaving": [asdict(each) for each in validity.interleaving(min(runs, 500), min(users, 300), seed)],
    }
