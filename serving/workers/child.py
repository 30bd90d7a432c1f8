"""One process of the service as the supervisor sees it: what it does, how far its start is, and its end."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Literal, Protocol

from serving.workers.channel import Channel
from serving.workers.desired import DesiredModels

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 30.0


class Main(Protocol):
    """What a process does, until SIGTERM or the end of the supervisor."""

    def __call__(self, connection: socket.socket, name: str, models: DesiredModels | None) -> None:
        """Run.

        Args:
            connection: to the supervisor.
            name: of this process.
            models: to be held before it is up; None: the first alone.
        """


@dataclass(eq=False)
class Child:
    """A process, or the place of one that is to be started."""

    name: str
    main: Main
    answers: bool
    """Whether it answers requests, and so takes part in changes."""
    state: Literal["down", "loading", "loaded", "up"] = "down"
    process: BaseProcess | None = None
    channel: Channel | None = None
    changed_at: float = 0.0
    """When the state began."""
    failures: int = 0
    """Starts in a row after which it died."""
    starts_at: float = 0.0
    asked_at: float | None = None
    """When it was asked for a sign of life, if it has given none since."""
    shown: str = ""
    """What it says that it serves."""
    error: tuple[str, str] | None = None
    """Why it could not start."""

    def move(self, state: Literal["down", "loading", "loaded", "up"]) -> None:
        """It is in another state from now on."""
        self.state, self.changed_at = state, time.monotonic()

    def put_off(self) -> None:
        """Start it again after a pause, which grows with each failure."""
        self.failures += 1
        pause = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** (self.failures - 1))
        self.move("down")
        self.starts_at = self.changed_at + pause

    @property
    def is_alive(self) -> bool:
        """Whether there is a process that has not ended."""
        return self.process is not None and self.process.exitcode is None

    def kill(self) -> None:
        """End the process at once, if it lives."""
        if self.process is not None and self.process.exitcode is None:
            self.process.kill()
            self.process.join()
