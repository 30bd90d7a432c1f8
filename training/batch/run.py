"""All shards of a job: what is done is kept, the rest is made, and the folder says which is which.

    part-00000.parquet …   the rows (`training.batch.job`, `training.batch.vectors`)
    _manifest.json         the job, and the shards that are finished, with rows and checksums
    _SUCCESS               empty; there once all shards are

Names that begin with `_` are no data to Spark, DuckDB and Polars' patterns. Only the process that starts a job writes
the manifest; a shard that it did not note before it was killed is made again, and takes the other's place.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

from recsys.errors import ArtifactError, ConfigError
from recsys.files import sha256_file, write_json
from recsys.progress import progress_bar
from training.batch import on_ray, processes
from training.batch.shards import Job, Shard
from training.pipeline import run_lock

MANIFEST = "_manifest.json"
SUCCESS = "_SUCCESS"
FORMAT = 1
Engine = Literal["local", "ray"]
_Made = Callable[[Callable[[int], Shard], Sequence[int], int], Iterator[Shard]]
_ENGINES: Mapping[Engine, _Made] = {"local": processes.made, "ray": on_ray.made}


def make_shard(job: Job, number: int) -> Shard:
    """What each process is told to do."""
    return job.make(number)


def run_job(job: Job, *, engine: Engine = "local", workers: int = 1) -> dict[str, Any]:
    """Make the shards that are not there yet.

    Args:
        job: see `plan_job` and `plan_vectors`.
        engine: who runs the processes.
        workers: processes that make shards, at most; changes time and memory, not results.

    Returns:
        `out`, `model_version`, the job's `counts` and `num_shards` of the whole job; of this run `kept_shards`,
        `made_shards`, `made_users`, `seconds` and `users_per_second` (null where nothing was made), or of what else the
        job's unit is.

    Raises:
        ConfigError: the folder holds something else, the engine is not installed, or cannot make this job.
        RunLockedError: another process makes this job.
        ArtifactError: the manifest or the bundle is damaged.
        RecsysError: a process died, or see `Job.make`.
    """
    if engine == "ray" and job.not_on_ray is not None:
        raise ConfigError(job.not_on_ray)
    num_rows = job.counts[0]
    with run_lock(job.out, "folder"):
        shards = _finished(job)
        missing = [number for number in range(job.num_shards) if number not in shards]
        kept_shards, kept_rows = len(shards), _sum(shards, num_rows)
        started = time.monotonic()
        if missing:
            (job.out / SUCCESS).unlink(missing_ok=True)
            _note(job, shards)
            with progress_bar(job.unit.capitalize(), job.table.num_rows) as advance:
                advance(kept_rows, "")
                for shard in _ENGINES[engine](partial(make_shard, job), missing, workers):
                    shards[shard.number] = shard
                    _note(job, shards)
                    advance(shard.counts[num_rows], "")
        (job.out / SUCCESS).touch()
    seconds = time.monotonic() - started
    made_rows = _sum(shards, num_rows) - kept_rows
    return {
        "out": str(job.out),
        "model_version": job.model_version,
        **{name: _sum(shards, name) for name in job.counts},
        "num_shards": job.num_shards,
        "kept_shards": kept_shards,
        "made_shards": len(missing),
        f"made_{job.unit}": made_rows,
        "seconds": round(seconds, 3),
        f"{job.unit}_per_second": round(made_rows / seconds, 1) if missing else None,
    }


def _note(job: Job, shards: Mapping[int, Shard]) -> None:
    document = {
        "format": FORMAT,
        "bundle": str(job.bundle),
        job.reads: job.table.source,
        "job": job.facts,
        "num_shards": job.num_shards,
        "shards": [shards[number].to_json() for number in sorted(shards)],
    }
    write_json(job.out / MANIFEST, document)


def _finished(job: Job) -> dict[int, Shard]:
    """By number, the noted shards whose files are as they were written."""
    file = job.out / MANIFEST
    if not file.is_file():
        if others := sorted(path.name for path in job.out.iterdir() if not path.name.startswith(".")):
            raise ConfigError(
                f"{job.out} has no {MANIFEST} but other files, such as {others[0]}; name a new or an empty folder"
            )
        return {}
    try:
        document = json.loads(file.read_text())
        there, noted = dict(document["job"]), document["shards"]
        # The job first: what is noted of the shards of another one may be something else.
        _check_same(job, there)
        shards = [Shard.from_json(facts, job.counts) for facts in noted]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ArtifactError(f"cannot read {file}: {error!r}; name a new folder") from error
    return {shard.number: shard for shard in shards if _is_whole(job, shard)}


def _check_same(job: Job, there: Mapping[str, Any]) -> None:
    facts = job.facts
    if job.reads not in there:
        raise ConfigError(
            f"{job.out} holds the job of another command, without {job.reads}; name a new folder, or remove this one"
        )
    if differing := [
        f"{name} is {there.get(name)} there and {facts[name]} here" for name in facts if there.get(name) != facts[name]
    ]:
        raise ConfigError(f"{job.out} holds another job: {', '.join(differing)}; name a new folder, or remove this one")


def _is_whole(job: Job, shard: Shard) -> bool:
    path = job.out / shard.file
    return path.is_file() and sha256_file(path) == shard.sha256


def _sum(shards: Mapping[int, Shard], name: str) -> int:
    return sum(shard.counts[name] for shard in shards.values())
