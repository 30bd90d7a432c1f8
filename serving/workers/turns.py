"""Who accepts a connection of a port that several workers listen on: the one with the fewest.

Left to themselves, the worker that wakes first accepts all that wait. Clients hold their connections, so it then has
all the work of a burst of new clients, and the others have none.
"""

from __future__ import annotations

import asyncio
import errno
import mmap
import socket
from collections.abc import Callable

import structlog

_COURTESY_S = 0.005
"""How long a worker with more connections than another lets that one go first."""
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_EXHAUSTED_S = 1.0
"""Until it is tried again where the system has no more to give."""
_AWAY = 2**62
"""Of a worker that accepts nothing: nobody waits for it."""

_log = structlog.get_logger(__name__)


class OpenConnections:
    """How many connections each worker has, in memory that all have which are forked after this.

    Args:
        num_workers: their places are 0 to `num_workers` - 1.
    """

    def __init__(self, num_workers: int) -> None:
        self._counts = memoryview(mmap.mmap(-1, 8 * num_workers)).cast("q")
        for place in range(num_workers):
            self._counts[place] = _AWAY

    def publish(self, place: int, count: int) -> None:
        """The worker has so many now."""
        self._counts[place] = count

    def leave(self, place: int) -> None:
        """The worker accepts no more."""
        self._counts[place] = _AWAY

    def least(self) -> int:
        """The connections of the worker that has fewest."""
        return min(self._counts)


class Acceptor:
    """Accepts connections for one worker.

    Args:
        listener: the port, shared with the other workers.
        connections: of all workers.
        place: of this one in it.
        num_open: connections that this worker has now.
        protocol: makes the protocol of a new one.
    """

    def __init__(
        self,
        listener: socket.socket,
        connections: OpenConnections,
        place: int,
        num_open: Callable[[], int],
        protocol: Callable[[], asyncio.Protocol],
    ) -> None:
        self._listener = listener
        self._connections = connections
        self._place = place
        self._num_open = num_open
        self._protocol = protocol
        self._loop = asyncio.get_running_loop()
        self._later: asyncio.TimerHandle | None = None
        self._opening: set[asyncio.Task[object]] = set()
        listener.setblocking(False)
        self.publish()
        self._watch()

    def publish(self) -> None:
        """Tell the other workers how many connections this one has."""
        self._connections.publish(self._place, self._num_held)

    def close(self) -> None:
        """Accept no more."""
        self._loop.remove_reader(self._listener)
        if self._later is not None:
            self._later.cancel()
        self._connections.leave(self._place)

    @property
    def _num_held(self) -> int:
        # One that is just being opened may count twice for a moment, which does no harm.
        return self._num_open() + len(self._opening)

    def _watch(self) -> None:
        self._later = None
        self._loop.add_reader(self._listener, self._take_turn)

    def _pause(self, seconds: float, then: Callable[[], None]) -> None:
        self._loop.remove_reader(self._listener)
        self._later = self._loop.call_later(seconds, then)

    def _take_turn(self) -> None:
        self.publish()
        if self._num_held > self._connections.least():
            self._pause(_COURTESY_S, self._accept_and_watch)
        else:
            self._accept()

    def _accept_and_watch(self) -> None:
        self._watch()
        self._accept()

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # another worker has it, or the client is gone
        except OSError as error:
            if error.errno not in _EXHAUSTED:
                raise
            _log.error("no connection can be accepted, trying again", error=str(error))
            self._pause(_EXHAUSTED_S, self._watch)
            return
        connection.setblocking(False)
        opening = self._loop.create_task(self._loop.connect_accepted_socket(self._protocol, connection))
        self._opening.add(opening)
        opening.add_done_callback(self._opening.discard)
        self.publish()
