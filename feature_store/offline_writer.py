"""Puts entries of the event log into an offline store, each exactly once, through any crash. Knows no Redis.

Order of every change: new files, written and synced under their final names; then the manifest, which makes them
count and says up to where the log is in; then the files that it no longer names are deleted. A crash before the
manifest leaves files that nobody names, a crash after it leaves files to delete: opening the store removes both. An
erasure is a tombstone in the manifest first, so that no reader sees the events from then on, and is worked
off by rewriting the files; opening the store goes on with what is left.
"""

from __future__ import annotations

import fcntl
import math
import os
import uuid
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from types import TracebackType
from typing import Self

import polars as pl

from feature_store.errors import StoreConfigError, StoreUnavailableError
from feature_store.events import LogEntry
from feature_store.manifest import DataFile, Manifest, Tombstone, sync_directory
from feature_store.offline import scan, without_erased
from feature_store.tables import ARRIVAL, KEYS, SCHEMAS, Table, rows_of

_MERGE = 16
"""Files of about one size in a partition that become one: an event is written again log_16(events) times at most."""


class OfflineWriter:
    """The one writer of a directory; readers need no lock. Close it, or use it in a `with`.

    Args:
        directory: made when missing.

    Raises:
        StoreConfigError: another writer has it, it cannot be written, or its manifest is damaged.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        try:
            for table in SCHEMAS:
                (directory / table).mkdir(parents=True, exist_ok=True)
            self._lock = (directory / "lock").open("a")
        except OSError as error:
            raise StoreConfigError(f"store: cannot write to {directory}: {error}; choose another directory") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.close()
            raise StoreConfigError(f"store: another consumer writes to {directory}; stop it first") from error
        try:
            self.manifest = Manifest.read(directory) or Manifest.new().write(directory)
            self._delete_unnamed()
            self._work_off_tombstones()
        except BaseException:
            self._lock.close()
            raise

    def close(self) -> None:
        """Let another writer have the directory."""
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, entries: Sequence[LogEntry]) -> int:
        """Put the entries in, durably; how many events were new. Each shard's must be in order.

        Entries that are in already change nothing.

        Raises:
            StoreUnavailableError: the disk does not take them; nothing is in then, and calling it again is safe.
        """
        try:
            return self._write(entries)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise StoreUnavailableError(
                f"store: cannot write to {self.directory}: {' '.join(str(error).split())}; make room, or mend the disk"
            ) from error

    def _write(self, entries: Sequence[LogEntry]) -> int:
        new = self._new(entries)
        if not new:
            return 0
        offsets = dict(self.manifest.offsets)
        tombstones: dict[tuple[int, str], Tombstone] = {}
        for entry in new:
            offsets[entry.shard] = max(offsets.get(entry.shard, (0, 0)), entry.position)
            if entry.erased is not None:
                tombstones[entry.shard, entry.erased] = Tombstone(
                    shard=entry.shard, digest=entry.erased, before=entry.position
                )
        events = without_erased(rows_of(new, "events"), tombstones.values())
        slates = without_erased(rows_of(new, "slates"), tombstones.values())
        self.manifest = replace(
            self.manifest,
            files=(
                *self.manifest.files,
                *self._write_files(events, "events"),
                *self._write_files(slates, "slates"),
            ),
            offsets=offsets,
            tombstones=(*self.manifest.tombstones, *tombstones.values()),
        ).write(self.directory)
        self._work_off_tombstones()
        self._merge_small_files()
        return events.height

    def expire(self, before: date) -> int:
        """Delete the events, and the lists that were shown, that arrived before a date; how many events."""
        dropped = [file for file in self.manifest.files if file.date < before.isoformat()]
        if dropped:
            self._replace_files([file for file in self.manifest.files if file not in dropped], tombstones=())
        return sum(file.rows for file in dropped if file.table == "events")

    def _new(self, entries: Sequence[LogEntry]) -> list[LogEntry]:
        """The entries that are not in.

        What lies behind the offset of its shard usually is, but not after a server has lost the end of its log and
        given the places anew: only the files tell.
        """
        offsets = self.manifest.offsets
        behind = [entry for entry in entries if entry.position <= offsets.get(entry.shard, (0, 0))]
        if not behind:
            return list(entries)
        places = {(entry.shard, entry.position) for entry in behind if entry.erased is not None}
        for table, keys in KEYS.items():
            asked = rows_of(behind, table)
            if asked.is_empty():
                continue
            stored = (
                scan((self.directory / file.path for file in self.manifest.files_of(table)), table)
                .join(asked.lazy(), on=keys, how="semi")
                .select("shard", pl.col("ingested_at").dt.epoch("ms"), "sequence")
                .collect()
            )
            places |= {(shard, (ms, sequence)) for shard, ms, sequence in stored.iter_rows()}
        return [entry for entry in entries if (entry.shard, entry.position) not in places or entry.erased is not None]

    def _work_off_tombstones(self) -> None:
        """Rewrite the files that hold void rows."""
        if not self.manifest.tombstones:
            return
        files: list[DataFile] = []
        for file in self.manifest.files:
            rows = scan([self.directory / file.path], file.table).collect()
            kept = without_erased(rows, self.manifest.tombstones)
            files += [file] if kept.height == rows.height else self._write_files(kept, file.table)
        self._replace_files(files, tombstones=())

    def _merge_small_files(self) -> None:
        """Make one file of many of about the same size that hold rows of one table and date."""
        groups: defaultdict[tuple[Table, str, int], list[DataFile]] = defaultdict(list)
        for file in self.manifest.files:
            groups[file.table, file.date, int(math.log(file.rows, _MERGE))].append(file)
        merged = [file for group in groups.values() if len(group) >= _MERGE for file in group]
        if merged:
            files = [file for file in self.manifest.files if file not in merged]
            for table in sorted({file.table for file in merged}):
                rows = scan((self.directory / file.path for file in merged if file.table == table), table).collect()
                files += self._write_files(rows, table)
            self._replace_files(files, tombstones=())

    def _write_files(self, rows: pl.DataFrame, table: Table) -> list[DataFile]:
        """One durable file a date of arrival, which nobody knows yet."""
        files = []
        dated = rows.sort(ARRIVAL).with_columns(pl.col("ingested_at").dt.date().alias("date"))
        for (day,), part in dated.partition_by("date", as_dict=True, include_key=False).items():
            folder = self.directory / table / f"date={day}"
            if not folder.is_dir():
                folder.mkdir()
                sync_directory(folder.parent)
            path = folder / f"{uuid.uuid4().hex}.parquet"
            temporary = path.with_suffix(".tmp")
            part.write_parquet(temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
            sync_directory(folder)
            times = part["timestamp"].dt.epoch("us").to_list()
            files.append(
                DataFile(
                    path=str(path.relative_to(self.directory)),
                    date=str(day),
                    rows=part.height,
                    first_time=min(times),
                    last_time=max(times),
                )
            )
        return files

    def _replace_files(self, files: Iterable[DataFile], tombstones: tuple[Tombstone, ...]) -> None:
        """Let these be the files, and delete the others."""
        self.manifest = replace(self.manifest, files=tuple(files), tombstones=tombstones).write(self.directory)
        self._delete_unnamed()

    def _delete_unnamed(self) -> None:
        named = {self.directory / file.path for file in self.manifest.files}
        for table in SCHEMAS:
            for path in (self.directory / table).glob("*/*"):
                if path not in named:
                    path.unlink()
