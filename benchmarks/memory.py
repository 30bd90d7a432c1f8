"""The claim: further workers of a service take little memory, because weights and libraries are in memory once.

Serves a bundle with one process, and with 2 and 4 workers, and adds up the proportional set sizes of all its processes:
of a page that n processes have mapped, each counts an n-th. For comparison, what as many services of one process each
would take. The store is not counted.

    recsys bench memory [--bundle runs/NAME/bundle] [--json]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

from training.served import served_bundle

_MIB = 1 << 20


def main(arguments: list[str]) -> dict[str, Any]:
    """Mebibytes; `own` is what a worker does not share with any process."""
    parser = argparse.ArgumentParser(prog="recsys bench memory", description=__doc__)
    parser.add_argument("--bundle", type=Path, default=Path("runs/beauty-seed-0/bundle"))
    options = parser.parse_args(arguments)

    bundle = options.bundle.resolve()
    weights = sum(file.stat().st_size for file in bundle.rglob("*.safetensors"))
    rows = [_measure(bundle, workers) for workers in (1, 2, 4)]
    alone = rows[0]["total_mib"]
    return {
        "one_process_mib": alone,
        "further_worker_mib": round((rows[2]["total_mib"] - rows[1]["total_mib"]) / 2, 1),
        "share_of_four_services": round(rows[2]["total_mib"] / (4 * alone), 3),
        "weights_mib": round(weights / _MIB, 1),
        "rows": rows,
    }


def _measure(bundle: Path, workers: int) -> dict[str, Any]:
    with _serving(bundle, workers) as service:
        processes = {"supervisor" if workers > 1 else "service": service}
        for child in service.children():
            # The store is another program; the workers are called what the supervisor has called them.
            name = Path(f"/proc/{child.pid}/comm").read_text().strip()
            if name.startswith("recsys-"):
                processes[name.removeprefix("recsys-")] = child
        sizes = {name: process.memory_full_info() for name, process in processes.items()}
    return {
        "workers": workers,
        "total_mib": round(sum(size.pss for size in sizes.values()) / _MIB, 1),
        "processes": {
            name: {
                "pss_mib": round(size.pss / _MIB, 1),
                "own_mib": round(size.uss / _MIB, 1),
                "rss_mib": round(size.rss / _MIB, 1),
            }
            for name, size in sizes.items()
        },
    }


@contextmanager
def _serving(bundle: Path, workers: int) -> Iterator[psutil.Process]:
    """A service that has answered a few requests of each worker."""
    with served_bundle(bundle, workers=workers) as served:
        for number in range(50 * workers):
            answer = httpx.post(f"{served.url}/v1/recommend", json={"history": [], "k": 1 + number % 20})
            answer.raise_for_status()
        yield served.process
