"""All shards of a job: what is done is kept, the rest is made, and the folder says which is which.

    part-00000.parquet …   the lists (`training.batch.job`)
    _manifest.json         the job, and the shards that are finished, with rows and checksums
    _SUCCESS               empty; there once all shards are

Names that begin with `_` are no data to Spark, DuckDB and Polars' patterns. Only the process that starts a job writes
the manifest; a shard that it did not note before it was killed is made again, and takes the other's place.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, Literal

from recsys.errors import ArtifactError, ConfigError
from recsys.files import sha256_file, write_json
from recsys.progress import progress_bar
from training.batch import on_ray, processes
from training.batch.job import BatchJob, Shard, make_shard
from training.pipeline import run_lock

MANIFEST = "_manifest.json"
SUCCESS = "_SUCCESS"
FORMAT = 1
Engine = Literal["local", "ray"]
_Made = Callable[[Callable[[int], Shard], Sequence[int], int], Iterator[Shard]]
_ENGINES: Mapping[Engine, _Made] = {"local": processes.made, "ray": on_ray.made}


def run_job(job: BatchJob, *, engine: Engine = "local", workers: int = 1) -> dict[str, Any]:
    """Make the shards that are not there yet.

    Args:
        job: see `plan_job`.
        engine: who runs the processes.
        workers: processes that make shards, at most; changes time and memory, not results.

    Returns:
        `out`, `model_version`, `num_users`, `num_shards`, `num_popular` and `num_unknown` (see `Shard`) of the whole
        job; of this run `kept_shards`, `made_shards`, `made_users`, `seconds` and `users_per_second` (null where
        nothing was made).

    Raises:
        ConfigError: the folder holds something else, the engine is not installed, or has no such device.
        RunLockedError: another process makes this job.
        ArtifactError: the manifest or the bundle is damaged.
        DataError: see `make_shard`.
        RecsysError: a process died.
    """
    if engine == "ray" and job.device == "cuda":
        raise ConfigError("device: Ray's workers make lists on the CPU; leave out --device cuda or --engine ray")
    with run_lock(job.out, "folder"):
        shards = _finished(job)
        missing = [number for number in range(job.num_shards) if number not in shards]
        kept_shards, kept_users = len(shards), _sum(shards, "num_users")
        started = time.monotonic()
        if missing:
            (job.out / SUCCESS).unlink(missing_ok=True)
            _note(job, shards)
            with progress_bar("Users", job.num_users) as advance:
                advance(kept_users, "")
                for shard in _ENGINES[engine](partial(make_shard, job), missing, workers):
                    shards[shard.number] = shard
                    _note(job, shards)
                    advance(shard.num_users, "")
        (job.out / SUCCESS).touch()
    seconds = time.monotonic() - started
    made_users = _sum(shards, "num_users") - kept_users
    return {
        "out": str(job.out),
        "model_version": job.model_version,
        "num_users": job.num_users,
        "num_shards": job.num_shards,
        "num_popular": _sum(shards, "num_popular"),
        "num_unknown": _sum(shards, "num_unknown"),
        "kept_shards": kept_shards,
        "made_shards": len(missing),
        "made_users": made_users,
        "seconds": round(seconds, 3),
        "users_per_second": round(made_users / seconds, 1) if missing else None,
    }


def _facts(job: BatchJob) -> dict[str, Any]:
    """What makes two jobs the same one."""
    return {
        "model_version": job.model_version,
        "num_users": job.num_users,
        "histories": job.content,
        "k": job.k,
        "shard_size": job.shard_size,
        "include_seen": job.include_seen,
    }


def _note(job: BatchJob, shards: Mapping[int, Shard]) -> None:
    document = {
        "format": FORMAT,
        "bundle": str(job.bundle),
        "histories": job.histories,
        "job": _facts(job),
        "num_shards": job.num_shards,
        "shards": [asdict(shards[number]) for number in sorted(shards)],
    }
    write_json(job.out / MANIFEST, document)


def _finished(job: BatchJob) -> dict[int, Shard]:
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
        there, shards = document["job"], [Shard(**facts) for facts in document["shards"]]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ArtifactError(f"cannot read {file}: {error!r}; name a new folder") from error
    facts = _facts(job)
    if differing := [
        f"{name} is {there.get(name)} there and {facts[name]} here" for name in facts if there.get(name) != facts[name]
    ]:
        raise ConfigError(f"{job.out} holds another job: {', '.join(differing)}; name a new folder, or remove this one")
    return {shard.number: shard for shard in shards if _is_whole(job, shard)}


def _is_whole(job: BatchJob, shard: Shard) -> bool:
    path = job.out / shard.file
    return path.is_file() and sha256_file(path) == shard.sha256


def _sum(shards: Mapping[int, Shard], field: str) -> int:
    return sum(getattr(shard, field) for shard in shards.values())
