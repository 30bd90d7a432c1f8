"""The claim: `recsys ab` compares two real bundles in minutes on two cores, and the same seed gives the same bytes.

recsys bench ab A B [--users 2000] [--json]: the whole command runs twice, in processes of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from training.ab import REPORT

_KEPT = ("decision", "verdict", "cautions", "users", "live_users_per_arm", "detectable_lift")


def main(arguments: list[str]) -> dict[str, Any]:
    """See the module; seconds of wall and of CPU (all threads) of each run, and what the first one said."""
    parser = argparse.ArgumentParser(prog="recsys bench ab", description=__doc__)
    parser.add_argument("first", metavar="A", type=Path, help="the control: a bundle or a run")
    parser.add_argument("second", metavar="B", type=Path, help="the treatment")
    parser.add_argument("--users", type=int, default=2000, metavar="N", help="simulated users")
    options = parser.parse_args(arguments)
    runs, reports = [], []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(2):
            out = Path(folder, str(number))
            runs.append(_timed(["ab", options.first, options.second, "--users", options.users, "--out", out]))
            reports.append((out / REPORT).read_bytes())
    document = json.loads(reports[0])
    return {
        "runs": runs,
        "same_bytes": reports[0] == reports[1],
        "effect": document["primary"]["effect"],
        "simulators_with_this_sign": document["simulators_with_this_sign"],
        "interleaved": document["interleaved"],
        "simulator_validity": document["facts"]["simulator_validity"],
        **{name: document[name] for name in _KEPT},
    }


def _timed(arguments: list[Any]) -> dict[str, float]:
    """Of a `recsys` command in a process of its own, with the machine's load before it began."""
    load, before, begin = os.getloadavg()[0], _children_s(), time.perf_counter()
    program = "from recsys.cli.main import build_app; build_app()()"
    subprocess.run([sys.executable, "-c", program, *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)
    return {
        "wall_seconds": round(time.perf_counter() - begin, 1),
        "cpu_seconds": round(_children_s() - before, 1),
        "load_before": load,
    }


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
