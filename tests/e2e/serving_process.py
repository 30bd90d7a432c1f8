"""A real `recsys serve` with its store, over a toy bundle, for tests that kill parts of it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import redis

from feature_store import EmbeddedServer


@dataclass
class Service:
    """A service that runs."""

    process: subprocess.Popen[str]
    api: httpx.Client
    url: str
    store_dir: Path
    log: Path

    def kill(self) -> None:
        """Kill the process that was started: the API itself, or the supervisor of the workers."""
        self.process.kill()
        self.process.wait()

    def store_process(self) -> int:
        """The process id of the store."""
        server = EmbeddedServer(self.store_dir)
        with redis.Redis(unix_socket_path=str(server.socket_path)) as client:
            return int(client.info("server")["process_id"])

    def kill_store(self) -> None:
        """Kill the store."""
        os.kill(self.store_process(), signal.SIGKILL)

    def children(self) -> dict[str, psutil.Process]:
        """The living processes of the supervisor by name: numbered workers, and `offline`."""
        found = {}
        for child in psutil.Process(self.process.pid).children():
            try:
                name = Path(f"/proc/{child.pid}/comm").read_text().strip()
            except OSError:
                continue
            if name.startswith("recsys-"):
                found[name.removeprefix("recsys-")] = child
        return found


@contextmanager
def serving(run: Path, *options: str, port: int = 0) -> Iterator[Service]:
    """`recsys serve RUN`, on a free port if none is given; killed at the end if it still lives."""
    program = [sys.executable, "-c", "from serving.cli import app; app()"]
    command = [*program, "serve", str(run), "--port", str(port), *options]
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    log = run / "log"
    with log.open("a") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
        try:
            assert process.stdout is not None
            found = re.search(r"http://[^\s,]+", process.stdout.readline())
            assert found, log.read_text()
            with httpx.Client(base_url=found[0], timeout=30) as api:
                yield Service(process, api, found[0], run / "store", log)
        finally:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
