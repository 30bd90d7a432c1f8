"""What all jobs are: the rows of a table become, shard by shard, files in a folder, by what a bundle knows.

Any process can make any shard, and knows no other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import polars as pl

from recsys.bundle import Bundle
from recsys.errors import ArtifactError
from recsys.files import atomic_path, sha256_file
from training.batch.tables import Table


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A finished file."""

    number: int
    file: str
    """Its name in the folder."""
    counts: dict[str, int]
    """The `Job.counts`."""
    sha256: str

    def to_json(self) -> dict[str, Any]:
        """As the manifest has it."""
        return {"number": self.number, "file": self.file, **self.counts, "sha256": self.sha256}

    @classmethod
    def from_json(cls, facts: Mapping[str, Any], counts: Sequence[str]) -> Shard:
        """What `to_json` made, with counts of these names. Raises KeyError when something is missing."""
        return cls(
            number=facts["number"],
            file=facts["file"],
            counts={name: facts[name] for name in counts},
            sha256=facts["sha256"],
        )


@dataclass(frozen=True, kw_only=True)
class Job(ABC):
    """All that a shard depends on; it can be pickled."""

    unit: ClassVar[str]
    """What a row is, in the plural."""
    reads: ClassVar[str]
    """What the manifest calls the table."""
    counts: ClassVar[tuple[str, ...]]
    """What is counted of each shard; first, as `num_` and the unit, its rows."""

    bundle: Path
    model_version: str
    """That the bundle must have."""
    table: Table
    out: Path
    """An absolute path."""
    shard_size: int
    """Rows of a shard, at most."""

    @property
    def num_shards(self) -> int:
        """How many files there will be."""
        return -(-self.table.num_rows // self.shard_size)

    @property
    def facts(self) -> dict[str, Any]:
        """What makes two jobs the same one, JSON-able."""
        return {
            "model_version": self.model_version,
            f"num_{self.unit}": self.table.num_rows,
            self.reads: self.table.content,
            "shard_size": self.shard_size,
        }

    @property
    def not_on_ray(self) -> str | None:
        """Why Ray cannot make it, and the fix; None if it can."""
        return None

    @abstractmethod
    def make(self, number: int) -> Shard:
        """Write shard `number` (from 0), whole or not at all; an earlier file of that number is replaced.

        Raises:
            RecsysError: the bundle is another one by now, or rows cannot be used.
        """

    def rows(self, number: int) -> pl.DataFrame:
        """Those of a shard. Raises DataError when the files are damaged."""
        return self.table.read(number * self.shard_size, self.shard_size)

    def write(self, number: int, frame: pl.DataFrame, counts: Mapping[str, int]) -> Shard:
        """The file of a shard, with the version of the model beside `frame`; `counts` are those beside the rows."""
        path = self.out / f"part-{number:05d}.parquet"
        with atomic_path(path) as temporary:
            frame.with_columns(model_version=pl.lit(self.model_version)).write_parquet(temporary)
            digest = sha256_file(temporary)
        return Shard(number=number, file=path.name, counts={f"num_{self.unit}": len(frame), **counts}, sha256=digest)


def load_bundle(path: Path, model_version: str) -> Bundle:
    """The bundle that a job began with. Raises ArtifactError when it is another one by now, or damaged."""
    bundle = Bundle.load(path)
    if bundle.manifest.model_version != model_version:
        raise ArtifactError(
            f"bundle: {path} is {bundle.manifest.model_version} by now, the job began with {model_version}; "
            "start anew in another folder"
        )
    return bundle
