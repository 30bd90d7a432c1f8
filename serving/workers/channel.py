"""Messages between the supervisor and its processes: JSON objects, one a line, over a pair of sockets."""

from __future__ import annotations

import json
import socket
from typing import Any

Message = dict[str, Any]

LINE_LIMIT = 64 << 20
"""Bytes of a message: the metrics of all processes are the longest."""
_READ = 1 << 16


def encode(message: Message) -> bytes:
    """The line of a message."""
    return json.dumps(message).encode() + b"\n"


def send_now(connection: socket.socket, message: Message) -> None:
    """Send a message, and wait until it is on its way. For a process without an event loop."""
    connection.sendall(encode(message))


def receive_now(connection: socket.socket) -> Message | None:
    """Wait for the next message, and take nothing beyond it; None when the other side is gone."""
    line = bytearray()
    while not line.endswith(b"\n"):
        byte = connection.recv(1)
        if not byte:
            return None
        line += byte
    message: Message = json.loads(line)
    return message


class Channel:
    """One side of a pair, which never blocks.

    Args:
        connection: the socket; it becomes non-blocking.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.connection = connection
        self._incoming = bytearray()
        self._outgoing = bytearray()

    @property
    def unsent(self) -> int:
        """Bytes that the other side has not taken yet."""
        return len(self._outgoing)

    def send(self, message: Message) -> None:
        """Send a message; what the other side does not take yet waits for `flush`."""
        self._outgoing += encode(message)
        self.flush()

    def flush(self) -> None:
        """Send what waits, as far as the other side takes it."""
        try:
            while self._outgoing:
                del self._outgoing[: self.connection.send(self._outgoing)]
        except BlockingIOError:
            return
        except OSError:  # the other side is gone, which `receive` says
            self._outgoing.clear()

    def receive(self) -> tuple[list[Message], bool]:
        """The messages that have come, and whether the other side is still there."""
        is_open = True
        try:
            while chunk := self.connection.recv(_READ):
                self._incoming += chunk
            is_open = False
        except BlockingIOError:
            pass
        except OSError:
            is_open = False
        *lines, rest = self._incoming.split(b"\n")
        self._incoming = bytearray(rest)
        return [json.loads(line) for line in lines], is_open
