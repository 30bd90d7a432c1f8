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
from recsys.files import sha256_file, sha256_json

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
            # Not its `ukey`, which says of a web server's files that they never change.
            return sha256_json(self.store.info(self.path))

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
        table: a file below it, a folder of Parquet files, or a glob; what begins with `.` or `_`, or lies in a folder
            that does, is none of its files unless the glob says so.

    Raises:
        ConfigError: the glob is none, or fsspec does not know the URL, or needs a package for it that is not installed.
        DataError: the folder has no Parquet files, or the store does not answer.
    """
    if isinstance(root, Path):
        path = root / table
        several = path.glob("*.parquet") if path.is_dir() else _matches(root, table) if _is_glob(table) else ()
        below = {file: _below(root, file) for file in several if file.is_file()}
        found = sorted(file for file, name in below.items() if _is_data(name, table))
        if not found:
            _refuse_folder(str(path), path.is_dir())
            return [Shard(name=table, path=str(path), store=None)]
        return [Shard(name=below[file], path=str(file), store=None) for file in found]
    store, folder = _open(root)
    url = f"{folder}/{table}"
    with _errors_of(root):
        is_folder = store.isdir(url)
        pattern = glob.escape(url) + "/*.parquet" if is_folder else f"{glob.escape(folder)}/{table}"
        matches: list[str] = [] if store.isfile(url) else store.glob(pattern)
        names = {match: match.removeprefix(f"{folder}/") for match in matches}
        files = sorted(match for match, name in names.items() if _is_data(name, table) and store.isfile(match))
    if not files:
        _refuse_folder(url, is_folder)
        return [Shard(name=table, path=url, store=store)]
    return [Shard(name=names[one], path=one, store=store) for one in files]


def _is_glob(table: str) -> bool:
    return glob.has_magic(table) and not Path(table).is_absolute()


def _matches(root: Path, table: str) -> list[Path]:
    try:
        return list(root.glob(table))
    except ValueError as error:
        raise ConfigError(
            f"data.items or data.interactions: {table!r} is no glob: {error}; write for instance log/**/*.parquet"
        ) from error


def _below(root: Path, file: Path) -> str:
    return (file.relative_to(root) if file.is_relative_to(root) else file).as_posix()


def _is_data(name: str, table: str) -> bool:
    """Whether this is not what other tools keep beside a table (`_metadata`, `.part.crc`, `_temporary/0/part`)."""
    matched = set(name.split("/")) - set(table.split("/"))
    return not any(part.startswith((".", "_")) for part in matched)


def _refuse_folder(path: str, is_folder: bool) -> None:
    if is_folder:
        raise DataError(
            f"data.path: the folder {path} has no .parquet files; name other files, or those in folders below, by a "
            "glob (log/*.csv, log/**/*.parquet)"
        )


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
