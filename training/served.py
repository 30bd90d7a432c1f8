"""Services that benchmarks start and ask, in processes of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

_END_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Served:
    """A service that answers."""

    url: str
    process: psutil.Process
    """The one that was started; others may be its children."""


@contextmanager
def served_bundle(bundle: Path, *, workers: int, settings: str = "", store: str | None = None) -> Iterator[Served]:
    """`recsys serve`, with a store of its own that ends with it unless another is named.

    Args:
        bundle: what is served.
        workers: processes; 0: one a core.
        settings: further lines of its settings, YAML.
        store: URL of a store that runs elsewhere.
    """
    with tempfile.TemporaryDirectory(prefix="recsys-served-") as home:
        file = Path(home) / "serve.yaml"
        file.write_text(f"offline: {{directory: {home}/offline}}\n{settings}\n")
        command = ["-c", "from serving.cli import app; app()", "serve", str(bundle), "--port", "0"]
        command += ["--workers", str(workers), "--settings", str(file)]
        command += ["--data-dir", f"{home}/store"] if store is None else ["--store", store]
        with served_by(command) as service:
            yield service


@contextmanager
def served_by(arguments: Sequence[str]) -> Iterator[Served]:
    """A Python program that prints a line with its URL once it answers, with one thread for each product.

    Raises:
        RuntimeError: it ended, and says why on stderr.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        )
        try:
            assert process.stdout is not None
            found = re.search(r"http://[^\s,]+", process.stdout.readline())
            if found is None:
                errors.seek(0)
                raise RuntimeError(f"the service did not start: {errors.read()[-2000:]}")
            yield Served(url=found[0], process=psutil.Process(process.pid))
        finally:
            process.terminate()
            process.wait(_END_S)
