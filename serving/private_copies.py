"""Copies of bundles that nobody but the service has, so that a bundle's files may be written over while it is served.

Weights are maps of files, which all workers share: whoever writes into such a file changes the answers of a model that
was verified, and whoever cuts it short ends the process. Tokenizer and text encoder are read when they are first
needed, perhaps after another bundle has taken the place of this one. So a service reads bundles from copies of its own
below the temporary directory, which share the blocks of the original on file systems that can (XFS, Btrfs).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import weakref
from pathlib import Path
from types import TracebackType

from recsys.bundle import Bundle, read_manifest
from recsys.errors import ArtifactError, ConfigError
from recsys.files import atomic_directory, sha256_json

_PREFIX = "recsys-bundles-"
_SHARE_BLOCKS = 0x40049409
"""FICLONE of Linux."""


class PrivateCopies:
    """A directory of copies, which ends with the process that has made it. Its workers share the copies.

    Raises:
        ConfigError: the temporary directory cannot be written to.
    """

    def __init__(self) -> None:
        _remove_leftovers(Path(tempfile.gettempdir()))
        try:
            self._directory = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
        except OSError as error:
            raise ConfigError(f"serve: bundles are copied to the temporary directory: {error}; set TMPDIR") from error

    def __enter__(self) -> PrivateCopies:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        shutil.rmtree(self._directory, ignore_errors=True)

    def take(self, path: Path) -> Path:
        """A copy of the bundle at `path` as it is now; one that was made of the same content before is taken again.

        Raises:
            ArtifactError: there is no bundle, or it cannot be copied.
        """
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
        """The bundle at `path`, from a copy that, if it is made for it, ends with it.

        Raises:
            ArtifactError: as `Bundle.load`, or it cannot be copied.
        """
        before = set(self._directory.iterdir())
        copy = self.take(path)
        try:
            bundle = read(copy, path)
        except ArtifactError:
            if copy not in before:
                shutil.rmtree(copy, ignore_errors=True)
            raise
        if copy not in before:
            # Not at the end of a worker: others may have it still.
            weakref.finalize(bundle, shutil.rmtree, copy, ignore_errors=True).atexit = False
        return bundle


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
        pid = left.name.removeprefix(_PREFIX).split("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists() and Path("/proc/self").exists():
            shutil.rmtree(left, ignore_errors=True)
