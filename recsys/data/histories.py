"""The histories of a data set's users in one Parquet file, which is read as a whole or for one user.

    user_id (String), item_ids (List[String], oldest first); ascending by the bytes of the user id

Rows are in groups of a thousand, and the file's metadata name the first user of each: one user's history takes the
reading of one group, a millisecond or two, whatever the number of users. A file of an earlier version, with users in
any order, is put in order once, beside it, which takes five seconds for a million of them. Where nothing can be written
there, each process does so for itself, in a temporary directory.
"""

from __future__ import annotations

import fcntl
import glob
import json
import logging
import os
import shutil
import tempfile
import weakref
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as parquet

from recsys.data.interactions import Interactions
from recsys.files import atomic_path, sha256_file

_SCHEMA = pa.schema([("user_id", pa.large_string()), ("item_ids", pa.large_list(pa.large_string()))])
_USERS_A_GROUP = 1024
_USERS_A_BATCH = 1 << 16
_FIRST_USERS = "recsys.first_users"
_COPY_OF = "recsys.copy_of"
_MEMORY = "2GiB"
"""Of putting a file in order; the rest goes to the disk."""

_log = logging.getLogger(__name__)


def write_histories(path: Path, item_ids: pl.Series, interactions: Interactions) -> None:
    """Write all users who have interactions, with all their items.

    Args:
        path: the file to make.
        item_ids: by dense index.
        interactions: the log.
    """
    log = interactions.frame
    users, items = log["user"].to_numpy(), log["item"].to_numpy()
    begins = np.flatnonzero(np.diff(users, prepend=-1))
    lengths = np.diff(begins, append=len(users))
    names = pl.Series("user_id", interactions.user_ids, dtype=pl.String).gather(users[begins])
    order = names.arg_sort().to_numpy()

    def groups() -> Iterator[pa.Table]:
        # The names of all items of a large log at once would take more memory than the log.
        for first in range(0, len(order), _USERS_A_GROUP):
            group = order[first : first + _USERS_A_GROUP]
            offsets = np.concatenate([[0], np.cumsum(lengths[group])])
            rows = np.repeat(begins[group] - offsets[:-1], lengths[group]) + np.arange(offsets[-1])
            named = item_ids.gather(items[rows]).to_arrow().cast(pa.large_string())
            yield pa.table(
                [names.gather(group).to_arrow().cast(pa.large_string()), pa.LargeListArray.from_arrays(offsets, named)],
                schema=_SCHEMA,
            )

    _write(path, groups())


def _write(path: Path, groups: Iterable[pa.Table], copy_of: str | None = None) -> None:
    """Write tables of ascending users, each a group of rows; `copy_of`: see `_OrderedFile`."""
    first_users: list[str] = []
    with parquet.ParquetWriter(path, _SCHEMA, compression="zstd") as writer:
        for group in groups:
            first_users.append(group["user_id"][0].as_py())
            writer.write_table(group, row_group_size=len(group))
        writer.add_key_value_metadata({_FIRST_USERS: json.dumps(first_users)})
        if copy_of is not None:
            writer.add_key_value_metadata({_COPY_OF: copy_of})


@dataclass(frozen=True)
class Histories:
    """The histories in a file; reads only what it is asked for. Thread-safe."""

    path: Path
    """Of the file, which stays as it is; another may be made beside it, whose name begins with a dot."""

    def __len__(self) -> int:
        """Users."""
        return int(parquet.read_metadata(self.path).num_rows)

    def items(self) -> Iterator[tuple[str, list[str]]]:
        """User ids with their item ids, oldest first; read as they are asked for."""
        for batch in parquet.ParquetFile(self.path).iter_batches(_USERS_A_BATCH):
            yield from pl.DataFrame(batch).iter_rows()

    def get(self, user_id: str) -> list[str] | None:
        """The item ids of a user, oldest first; None: there is no such user."""
        ordered = self._ordered
        group = bisect_right(ordered.first_users, user_id) - 1
        if group < 0:
            return None
        # Threads share what was read of the file's metadata, but no reader.
        with parquet.ParquetFile(ordered.path, metadata=ordered.metadata, memory_map=True) as file:
            users = file.read_row_group(group, columns=["user_id"], use_threads=False)["user_id"]
            row = pa.compute.index(users, user_id).as_py()
            if row < 0:
                return None
            found: list[str] = file.read_row_group(group, columns=["item_ids"], use_threads=False)["item_ids"][
                row
            ].as_py()
        return found

    @cached_property
    def _ordered(self) -> _OrderedFile:
        if (found := _OrderedFile.read(self.path)) is not None:
            return found
        sha256 = sha256_file(self.path)
        copy = self.path.with_name(f".{self.path.stem}-by-user.parquet")
        # Other processes want the same: one makes it, and they wait.
        with self.path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if copy.exists() and (found := _OrderedFile.read(copy)) is not None and found.copy_of == sha256:
                return found
            _log.warning(
                "%s is of an earlier version, with users in any order: putting %d users in order before the first "
                "is answered; a bundle that is built again needs none of this",
                self.path.name,
                len(self),
            )
            if not os.access(copy.parent, os.W_OK):
                scratch = tempfile.mkdtemp(prefix="recsys-histories-")
                weakref.finalize(self, shutil.rmtree, scratch, ignore_errors=True)
                copy = Path(scratch, copy.name)
            with atomic_path(copy) as temporary:
                _write(temporary, _in_order(self.path), copy_of=sha256)
        ordered = _OrderedFile.read(copy)
        assert ordered is not None
        return ordered


@dataclass(frozen=True, kw_only=True)
class _OrderedFile:
    """A file whose groups of rows can be told apart by their users."""

    path: Path
    metadata: parquet.FileMetaData
    first_users: list[str]
    """Of each group, ascending."""
    copy_of: str | None
    """The SHA-256 of the file whose users were put in order here; None: it is no copy."""

    @classmethod
    def read(cls, path: Path) -> _OrderedFile | None:
        """None: the file is not of this kind."""
        metadata = parquet.read_metadata(path)
        facts = metadata.metadata or {}
        first_users = facts.get(_FIRST_USERS.encode())
        if first_users is None:
            return None
        copy_of = facts.get(_COPY_OF.encode())
        return cls(
            path=path,
            metadata=metadata,
            first_users=json.loads(first_users),
            copy_of=None if copy_of is None else copy_of.decode(),
        )


def _in_order(path: Path) -> Iterator[pa.Table]:
    with tempfile.TemporaryDirectory(prefix="recsys-histories-") as overflow, duckdb.connect() as database:
        database.execute(f"SET memory_limit = '{_MEMORY}'")
        database.execute("SET temp_directory = $1", [overflow])
        rows = database.sql(
            "SELECT user_id, item_ids FROM read_parquet($1) ORDER BY user_id", params=[glob.escape(str(path))]
        )
        for batch in rows.to_arrow_reader(_USERS_A_BATCH):
            for first in range(0, len(batch), _USERS_A_GROUP):
                yield pa.Table.from_batches([batch.slice(first, _USERS_A_GROUP)]).cast(_SCHEMA)
