"""The list of what belongs to an offline store: the only truth about it, replaced whole or not at all. Knows no events.

A file that the manifest does not name does not exist for readers; the next writer deletes it.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from feature_store.errors import StoreConfigError
from feature_store.events import Position
from feature_store.tables import Table

MANIFEST = "manifest.json"
_FORMAT = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class DataFile:
    """One Parquet file."""

    path: str
    """Relative to the store's directory."""
    date: str
    """UTC date on which its rows arrived."""
    rows: int
    first_time: int
    """Earliest time in it, microseconds since 1970 UTC."""
    last_time: int
    """Latest time in it."""

    @property
    def table(self) -> Table:
        """What its rows are: `events`, or `slates` for lists that were shown."""
        return "slates" if self.path.startswith("slates/") else "events"


@dataclass(frozen=True, kw_only=True, slots=True)
class Tombstone:
    """Events of a user that do not count any more, and may still be in the files."""

    shard: int
    digest: str
    """Of the user id."""
    before: Position
    """Events that arrived before this position of the shard's log are void."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """One state of an offline store."""

    store_id: str
    version: int = 0
    files: tuple[DataFile, ...] = ()
    offsets: Mapping[int, Position] = field(default_factory=dict)
    """Shard -> the newest position of its log that is in."""
    tombstones: tuple[Tombstone, ...] = ()

    def files_of(self, table: Table) -> tuple[DataFile, ...]:
        """The files of one table."""
        return tuple(file for file in self.files if file.table == table)

    @classmethod
    def new(cls) -> Manifest:
        """Of an empty store."""
        return cls(store_id=uuid.uuid4().hex)

    @classmethod
    def read(cls, directory: Path) -> Manifest | None:
        """The state of the store in `directory`; None when there is no store.

        Raises:
            StoreConfigError: it is damaged, or of a newer version.
        """
        try:
            text = (directory / MANIFEST).read_text()
        except FileNotFoundError:
            return None
        try:
            content: dict[str, Any] = json.loads(text)
            if content.pop("format") != _FORMAT:
                raise ValueError("it is of another version of this program")
            return cls(
                store_id=content["store_id"],
                version=content["version"],
                files=tuple(DataFile(**each) for each in content["files"]),
                offsets={int(shard): _position(each) for shard, each in content["offsets"].items()},
                tombstones=tuple(
                    Tombstone(shard=each["shard"], digest=each["digest"], before=_position(each["before"]))
                    for each in content["tombstones"]
                ),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise StoreConfigError(f"store: {directory / MANIFEST} cannot be read: {error}") from error

    def write(self, directory: Path) -> Manifest:
        """Make this the state of the store, durably; returns it with the next version number."""
        following = replace(self, version=self.version + 1)
        temporary = directory / f"{MANIFEST}.tmp"
        with temporary.open("w") as file:
            json.dump({"format": _FORMAT, **asdict(following)}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(directory / MANIFEST)
        sync_directory(directory)
        return following


def sync_directory(directory: Path) -> None:
    """Make the names of the files in `directory` durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _position(value: Any) -> Position:
    milliseconds, number = value
    return int(milliseconds), int(number)
