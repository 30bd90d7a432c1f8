"""The jobs of lists for all users and of vectors of items on a cluster of this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from toy_bundle import NUM_USERS, write_toy_bundle
from toy_encoder import write_toy_encoder

from recsys.errors import ArtifactError
from training.batch.job import plan_job
from training.batch.run import run_job
from training.batch.vectors import plan_vectors

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # the actors import what the tests import
        ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
        if not ray.is_initialized():
            ray.init(num_cpus=2, include_dashboard=False, object_store_memory=200 << 20, _node_ip_address="127.0.0.1")
        yield
        ray.shutdown()


def test_actors_write_the_files_of_one_process_and_keep_those_that_are_there(tmp_path: Path) -> None:
    write_toy_bundle(tmp_path / "toy", fusion=tmp_path / "fusion")
    outs = [tmp_path / "here", tmp_path / "ray"]
    here, there = (plan_job(tmp_path / "toy", out, k=4, shard_size=2, include_seen=False) for out in outs)
    run_job(here)
    run_job(there)
    for number in (1, 3, 4):
        (there.out / f"part-{number:05d}.parquet").unlink()
    kept = {path: path.stat().st_mtime_ns for path in there.out.glob("*.parquet")}
    document = run_job(there, engine="ray", workers=2)
    assert (document["kept_shards"], document["made_shards"]) == (3, 3)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert (there.out / "_SUCCESS").exists()
    assert len(list(there.out.glob("*.parquet"))) == NUM_USERS // 2
    for path in here.out.glob("*.parquet"):
        assert (there.out / path.name).read_bytes() == path.read_bytes()
    assert pl.read_parquet(there.out / "*.parquet")["user_id"].n_unique() == NUM_USERS


_KILLED = """
import sys, time
from pathlib import Path
import training.batch.run as run
from training.batch.job import make_shard, plan_job

def make(job, number):
    while number == 2:
        time.sleep(1)
    return make_shard(job, number)

run.make_shard = make
job = plan_job(Path(sys.argv[1]), Path(sys.argv[2]), k=4, shard_size=3, include_seen=False)
run.run_job(job, engine="ray")
"""


def test_a_job_that_was_killed_in_the_middle_goes_on(tmp_path: Path) -> None:
    import ray

    write_toy_bundle(tmp_path / "toy")
    job = plan_job(tmp_path / "toy", tmp_path / "out", k=4, shard_size=3, include_seen=False)
    with subprocess.Popen(
        [sys.executable, "-c", _KILLED, str(job.bundle), str(job.out)],
        env={**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address},
    ) as process:
        while not (job.out / "part-00001.parquet").exists() or len(noted(job.out)) < 2:
            assert process.poll() is None
            time.sleep(0.1)
        process.kill()
    finished = {path: path.stat().st_mtime_ns for path in job.out.glob("*.parquet")}
    assert len(finished) == 2
    document = run_job(job, engine="ray")
    assert (document["kept_shards"], document["made_shards"]) == (2, 2)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert pl.read_parquet(job.out / "*.parquet")["user_id"].to_list() == sorted(
        f"u{user}" for user in range(NUM_USERS)
    )


def noted(out: Path) -> list[str]:
    return [shard["file"] for shard in json.loads((out / "_manifest.json").read_text())["shards"]]


def test_an_error_of_the_input_comes_back_as_it_is(tmp_path: Path) -> None:
    write_toy_bundle(tmp_path / "toy")
    job = plan_job(tmp_path / "toy", tmp_path / "out", k=4, shard_size=6, include_seen=False)
    with pytest.raises(ArtifactError, match="by now, the job began with other"):
        run_job(replace(job, model_version="other"), engine="ray", workers=1)


def test_actors_write_the_vectors_of_one_process_and_keep_those_that_are_there(tmp_path: Path) -> None:
    write_toy_bundle(tmp_path / "toy", encoder=write_toy_encoder(tmp_path, ("film", "number"), 16))
    columns = {"item_id": ["i3", "n0", "n1", "i4"], "title": ["Film", "Number", "Film number", None]}
    items = tmp_path / "items.parquet"
    pl.DataFrame(columns).with_columns(categories=[], year=pl.lit(None)).write_parquet(items)
    outs = [tmp_path / "here", tmp_path / "ray"]
    here, there = (plan_vectors(tmp_path / "toy", out, items=str(items), shard_size=1) for out in outs)
    run_job(here)
    run_job(there)
    for number in (1, 3):
        (there.out / f"part-{number:05d}.parquet").unlink()
    document = run_job(there, engine="ray", workers=1)
    assert (document["kept_shards"], document["made_shards"], document["num_known"]) == (2, 2, 2)
    assert (there.out / "_SUCCESS").exists()
    assert [(there.out / path.name).read_bytes() == path.read_bytes() for path in here.out.glob("*.parquet")] == [
        True
    ] * 4
