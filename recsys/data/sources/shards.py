"""Where the files of a table are: one file, a folder of Parquet files, or a glob; here, or in a store
that fsspec knows.

Knows nothing about what is in them.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec

from recsys.errors import ConfigError, DataError
from recsys.extras import Extra, require_extra
from recsys.files import sha256_file

_EXTRAS: dict[str, Extra] = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One file of a table."""

    name: str
    """As the configuration names it, or below `data.path`."""
    path: str
    """Where it is in its store."""
    store: Any
    """A file system of fsspec; None: this machine's."""

    def is_there(self) -> bool:
        """Whether there is such a file. Raises DataError when the store does not answer."""
        if self.store is None:
            return Path(self.path).is_file()
        with _errors_of(self.path):
            return bool(self.store.isfile(self.path))

    def fingerprint(self) -> str:
        """What changes with the content: its SHA-256, or a hash of what the store says of it (size, time, version).

        Raises:
            DataError: the store does not answer.
        """
        if self.store is None:
            return sha256_file(Path(self.path))
        with _errors_of(self.path):
            return str(self.store.ukey(self.path))

    @contextmanager
    def fetched(self, scratch: Path) -> Iterator[Path]:
        """The file on this machine for the time of the block: where it is, or a copy in `scratch`.

        Raises:
            DataError: the store does not hand it over.
        """
        if self.store is None:
            yield Path(self.path)
            return
        scratch.mkdir(parents=True, exist_ok=True)
        copy = scratch / PurePosixPath(self.path).name
        try:
            with _errors_of(self.path):
                self.store.get_file(self.path, str(copy))
            yield copy
        finally:
            copy.unlink(missing_ok=True)


def find_shards(root: Path | str, table: str) -> list[Shard]:
    """The files of a table, by name. Where there is none it is the one that is missing.

    Args:
        root: a folder, or the URL of one.
        table: a file below it, a folder of Parquet files, or a glob; what begins with `.` or `_` is none of its files.

    Raises:
        ConfigError: fsspec does not know the URL, or needs a package for it that is not installed.
        DataError: the store does not answer.
    """
    if isinstance(root, Path):
        path = root / table
        several = path.glob("*.parquet") if path.is_dir() else root.glob(table) if _is_glob(table) else ()
        found = [] if path.is_file() else sorted(file for file in several if file.is_file() and _is_data(file.name))
        if not found:
            return [Shard(name=table, path=str(path), store=None)]
        return [Shard(name=file.relative_to(root).as_posix(), path=str(file), store=None) for file in found]
    store, folder = _open(root)
    url = f"{folder}/{table}"
    with _errors_of(root):
        pattern = glob.escape(url) + "/*.parquet" if store.isdir(url) else f"{glob.escape(folder)}/{table}"
        matches: list[str] = [] if store.isfile(url) else store.glob(pattern)
        files = sorted(match for match in matches if _is_data(match.rsplit("/", 1)[-1]) and store.isfile(match))
    if not files:
        return [Shard(name=table, path=url, store=store)]
    return [Shard(name=one.removeprefix(f"{folder}/"), path=one, store=store) for one in files]


def _is_glob(table: str) -> bool:
    return glob.has_magic(table) and not Path(table).is_absolute()


def _is_data(name: str) -> bool:
    """Whether this is not a file that other tools keep beside a table (`_metadata`, `.part.crc`)."""
    return not name.startswith((".", "_"))


def _open(url: str) -> tuple[Any, str]:
    """The store of a URL, and the folder there."""
    protocol = url.split("://")[0]
    if protocol in _EXTRAS:
        require_extra(_EXTRAS[protocol], needed_by=f"data.path: {url}")
    try:
        store, folder = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise ConfigError(f"data.path: {url} needs a package for {protocol}://; {error}") from error
    except ValueError as error:
        raise ConfigError(f"data.path: {url}: {error}") from error
    return store, str(folder).rstrip("/")


@contextmanager
def _errors_of(place: str) -> Iterator[None]:
    # Each store raises errors of its own library, which need not be installed.
    try:
        yield
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(f"data.path: {place} cannot be read: {reason}; check address and credentials") from error
