"""Copies of bundles that nobody but the service has, so that a bundle's files may be written over while it is served.

Weights are maps of files, which all workers share: whoever writes into such a file changes the answers of a model that
was verified, and whoever cuts it short ends the process. Tokenizer and text encoder are read when they are first
needed, perhaps after another bundle has taken the place of this one. So a service reads bundles from copies of its own
below the temporary directory, which share the blocks of the original on file systems that can (XFS, Btrfs).

Processes share a copy, and whoever uses one holds a lock on it (`flock`), which ends with the process however that
ends: what nobody holds is removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from recsys.bundle import Bundle, read_manifest
from recsys.errors import ArtifactError, ConfigError
from recsys.files import atomic_directory, sha256_json

_PREFIX = "recsys-bundles-"
_IN_USE, _TURN = ".in-use", ".turn"
"""Files that are locked: as long as a service runs, and by who makes or removes copies."""
_SHARE_BLOCKS = 0x40049409
"""FICLONE of Linux."""


class PrivateCopies:
    """A directory of copies, which ends with the process that has made it. Its workers share the copies.

    Raises:
        ConfigError: the temporary directory cannot be written to.
    """

    def __init__(self) -> None:
        _remove_leftovers(Path(tempfile.gettempdir()))
        self._pinned: dict[Path, int] = {}
        """Locks on copies that stay to the end."""
        try:
            self._directory, self._in_use = _own_directory()
        except OSError as error:
            raise ConfigError(f"serve: bundles are copied to the temporary directory: {error}; set TMPDIR") from error

    def __enter__(self) -> PrivateCopies:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        shutil.rmtree(self._directory, ignore_errors=True)
        for lock in (*self._pinned.values(), self._in_use):
            os.close(lock)

    def take(self, path: Path) -> Path:
        """A copy of the bundle at `path` as it is now, which stays to the end; one of the same content is taken again.

        Raises:
            ArtifactError: there is no bundle, or it cannot be copied.
        """
        with self._turn():
            copy = self._copied(path)
            if copy not in self._pinned:
                self._pinned[copy] = _locked(copy, fcntl.LOCK_SH)
        return copy

    def _copied(self, path: Path) -> Path:
        files = read_manifest(path).files
        copy = self._directory / sha256_json(files)[:16]
        if copy.is_dir():
            return copy
        try:
            with atomic_directory(copy) as directory:
                for name in (*files, "manifest.json"):
                    if not (path / name).is_file():
                        continue  # who reads the copy says so
                    (directory / name).parent.mkdir(parents=True, exist_ok=True)
                    _copy(path / name, directory / name)
        except OSError as error:
            raise ArtifactError(
                f"bundle: cannot copy {path} to {self._directory.parent}: {error}; it needs room for all bundles in "
                "memory, in TMPDIR"
            ) from error
        return copy

    def load(self, path: Path) -> Bundle:
        """The bundle at `path`, from a copy that ends with the last bundle that was loaded from it.

        Raises:
            ArtifactError: as `Bundle.load`, or it cannot be copied.
        """
        with self._turn():
            copy = self._copied(path)
            lock = _locked(copy, fcntl.LOCK_SH)
        try:
            bundle = read(copy, path)
        except ArtifactError:
            self._leave(lock)
            raise
        weakref.finalize(bundle, self._leave, lock).atexit = False
        return bundle

    @contextmanager
    def _turn(self, *, waits: bool = True) -> Iterator[None]:
        """Let nobody else make or remove copies; what nobody uses any more is removed at the end.

        Raises:
            OSError: somebody else does, and this one does not wait.
        """
        turn = os.open(self._directory / _TURN, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(turn, fcntl.LOCK_EX if waits else fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
            for copy in self._directory.iterdir():
                if not copy.name.startswith("."):
                    _remove_unless_locked(copy, copy)
        finally:
            os.close(turn)

    def _leave(self, lock: int) -> None:
        """A copy has one user less. In whatever thread collects garbage, perhaps in its own turn: so it waits for no
        turn, and leaves the copy to the next one."""
        os.close(lock)
        with contextlib.suppress(OSError), self._turn(waits=False):
            pass


def read(copy: Path, path: Path) -> Bundle:
    """The bundle in a copy of the one at `path`, of which errors speak.

    Raises:
        ArtifactError: see `Bundle.load`.
    """
    try:
        return Bundle.load(copy)
    except ArtifactError as error:
        raise ArtifactError(str(error).replace(str(copy), str(path))) from error


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as read, target.open("xb") as written:
        with contextlib.suppress(OSError):  # another file system, or one that cannot
            fcntl.ioctl(written, _SHARE_BLOCKS, read.fileno())
            return
        shutil.copyfileobj(read, written, 1 << 20)


def _remove_leftovers(directory: Path) -> None:
    """Remove what services that were killed have left."""
    for left in directory.glob(f"{_PREFIX}*"):
        _remove_unless_locked(left, left / _IN_USE)


def _own_directory() -> tuple[Path, int]:
    """A new directory, and the lock that says so."""
    while True:
        directory = Path(tempfile.mkdtemp(prefix=_PREFIX))
        (directory / _IN_USE).touch()
        with contextlib.suppress(FileNotFoundError, BlockingIOError):  # who starts now took it for a leftover
            lock = _locked(directory / _IN_USE, fcntl.LOCK_EX)
            if (directory / _IN_USE).exists():
                return directory, lock
            os.close(lock)


def _locked(path: Path, kind: int) -> int:
    """An open file or directory with a lock, which closing it ends.

    Raises:
        OSError: it is not there, or others have a lock on it.
    """
    opened = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(opened, kind | fcntl.LOCK_NB)
    except OSError:
        os.close(opened)
        raise
    return opened


def _remove_unless_locked(directory: Path, lock: Path) -> None:
    with contextlib.suppress(OSError):
        opened = _locked(lock, fcntl.LOCK_EX)
        shutil.rmtree(directory, ignore_errors=True)
        os.close(opened)
