"""Lists for all users of a toy bundle: what they are, and what a killed or changed job does."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from toy_bundle import NUM_ITEMS, NUM_USERS, write_toy_bundle
from typer.testing import CliRunner

import training.batch.run
from recsys.bundle import Bundle
from recsys.cli.main import build_app
from recsys.data import Sequences
from recsys.errors import ArtifactError, ConfigError, DataError
from recsys.generator import Constraints
from training.batch.job import BatchJob, Shard, make_shard, plan_job
from training.batch.run import run_job
from training.pipeline import RunLockedError, run_lock


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("batch")
    write_toy_bundle(directory / "toy", fusion=directory / "fusion")
    return directory / "toy"


def job_of(bundle: Path, out: Path, **changed: Any) -> BatchJob:
    return plan_job(bundle, out, **{"k": 4, "shard_size": 5, "include_seen": False, **changed})


def lists_in(out: Path) -> pl.DataFrame:
    return pl.read_parquet(out / "*.parquet")


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.parquet"))}


def test_lists_are_those_of_the_fusion_without_what_was_seen(bundle: Path, tmp_path: Path) -> None:
    document = run_job(job_of(bundle, tmp_path / "out"))
    frame = lists_in(tmp_path / "out")
    loaded = Bundle.load(bundle)
    users, named = zip(*loaded.histories(), strict=True)
    histories = Sequences.from_lists([loaded.catalog.index_of(ids) for ids in named])
    assert loaded.fused is not None
    expected = loaded.fused.recommend(histories, 4, constraints=Constraints(deny=list(histories)))
    assert frame["user_id"].to_list() == list(users)
    ids = loaded.catalog.item_ids
    assert frame["item_ids"].to_list() == [[ids[item] for item in row] for row in expected.items.tolist()]
    # Shards are other batches, whose products are rounded otherwise.
    assert frame["scores"].explode().to_list() == pytest.approx(expected.scores.ravel().tolist(), abs=1e-5)
    assert set(frame["source"]) == {"fusion"}
    assert set(frame["model_version"]) == {loaded.manifest.model_version}
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.name[0] != ".") == [
        "_SUCCESS",
        "_manifest.json",
        "part-00000.parquet",
        "part-00001.parquet",
        "part-00002.parquet",
    ]
    assert (document["num_users"], document["made_shards"], document["kept_shards"]) == (NUM_USERS, 3, 0)


def test_users_of_a_folder_are_read_with_their_unknown_items_left_out(tmp_path: Path) -> None:
    write_toy_bundle(tmp_path / "toy")
    (tmp_path / "users" / "day=1").mkdir(parents=True)
    everything = [f"i{item}" for item in range(NUM_ITEMS)]
    pl.DataFrame({"user_id": ["a", "b"], "item_ids": [["i1", "gone", "i2"], ["gone"]]}).write_parquet(
        tmp_path / "users" / "day=1" / "0.parquet"
    )
    pl.DataFrame({"user_id": ["c", "d"], "item_ids": [[], everything[:-2]]}).write_parquet(
        tmp_path / "users" / "day=1" / "1.parquet"
    )
    (tmp_path / "users" / "_SUCCESS").touch()
    job = job_of(tmp_path / "toy", tmp_path / "out", histories=str(tmp_path / "users"), shard_size=3)
    document = run_job(job)
    frame = lists_in(tmp_path / "out")
    loaded = Bundle.load(tmp_path / "toy")
    by_count = loaded.item_counts.argsort(kind="stable")
    assert frame["user_id"].to_list() == ["a", "b", "c", "d"]
    assert frame["source"].to_list() == ["generator", "popularity", "popularity", "generator"]
    assert frame["item_ids"].list.len().to_list() == [4, 4, 4, 2]
    assert set(frame["item_ids"][3]) == {"i38", "i39"}
    assert not {"i1", "i2"} & set(frame["item_ids"][0])
    assert frame["item_ids"][1].to_list() == frame["item_ids"][2].to_list()
    assert loaded.item_counts[loaded.catalog.index_of(frame["item_ids"][1].to_list())[0]] == max(
        loaded.item_counts[by_count]
    )
    assert (document["num_popular"], document["num_unknown"]) == (2, 2)
    seen = job_of(tmp_path / "toy", tmp_path / "seen", histories=str(tmp_path / "users"), include_seen=True)
    run_job(seen)
    assert lists_in(tmp_path / "seen")["item_ids"].list.len().to_list() == [4] * 4


def test_a_url_and_whole_numbers_as_ids_are_read(bundle: Path, tmp_path: Path) -> None:
    pl.DataFrame({"user_id": [7, 8], "item_ids": [["i1"], ["i2"]]}).write_parquet(tmp_path / "users.parquet")
    run_job(job_of(bundle, tmp_path / "out", histories=f"file://{tmp_path}/users.parquet"))
    assert lists_in(tmp_path / "out")["user_id"].to_list() == ["7", "8"]


def test_a_finished_job_does_nothing_and_damaged_shards_are_made_again(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    job = job_of(bundle, out)
    run_job(job)
    before, made = contents(out), []

    def counted(job: BatchJob, number: int) -> Shard:
        assert not (out / "_SUCCESS").exists()
        made.append(number)
        return make_shard(job, number)

    monkeypatch.setattr(training.batch.run, "make_shard", counted)
    assert run_job(job)["users_per_second"] is None
    (out / "part-00001.parquet").write_bytes(b"PAR1")
    (out / "part-00002.parquet").unlink()
    assert run_job(job)["kept_shards"] == 1
    assert made == [1, 2]
    assert contents(out) == before
    assert (out / "_SUCCESS").exists()


def test_a_job_whose_shard_fails_keeps_the_others(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(job: BatchJob, number: int) -> Shard:
        if number == 2:
            raise DataError("broken")
        return make_shard(job, number)

    job = job_of(bundle, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(training.batch.run, "make_shard", failing)
        with pytest.raises(DataError, match="broken"):
            run_job(job)
    assert not (tmp_path / "_SUCCESS").exists()
    assert [each["number"] for each in json.loads((tmp_path / "_manifest.json").read_text())["shards"]] == [0, 1]
    assert run_job(job)["kept_shards"] == 2


def test_two_processes_write_the_same_files(bundle: Path, tmp_path: Path) -> None:
    run_job(job_of(bundle, tmp_path / "one"))
    run_job(job_of(bundle, tmp_path / "two"), workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


_KILLED = """
import os, sys
from pathlib import Path
import training.batch.run as run
from training.batch.job import make_shard, plan_job

out = Path(sys.argv[2])
def make(job, number):
    if number == 2:
        (out / ".part-00002.parquet.elsewhere-1.tmp").write_bytes(b"half")
        print("in the middle", flush=True)
        sys.stdin.read()
    return make_shard(job, number)

run.make_shard = make
run.run_job(plan_job(Path(sys.argv[1]), out, k=4, shard_size=3, include_seen=False))
"""


def test_a_job_that_was_killed_in_the_middle_goes_on(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with subprocess.Popen(
        [sys.executable, "-c", _KILLED, str(bundle), str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"in the middle\n"
        process.kill()
    assert process.returncode == -signal.SIGKILL
    finished = {path.name: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    assert sorted(finished) == ["part-00000.parquet", "part-00001.parquet"]
    assert not (out / "_SUCCESS").exists()
    document = run_job(job_of(bundle, out, shard_size=3))
    assert (document["kept_shards"], document["made_shards"]) == (2, 2)
    assert {path: (out / path).stat().st_mtime_ns for path in finished} == finished
    assert lists_in(out)["user_id"].to_list() == sorted(f"u{user}" for user in range(NUM_USERS))
    assert (out / "_SUCCESS").exists()
    run_job(job_of(bundle, tmp_path / "whole", shard_size=3))
    assert contents(tmp_path / "whole") == contents(out)


def test_another_job_is_refused_in_the_same_folder(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_job(job_of(bundle, out))
    before = contents(out)
    with pytest.raises(ConfigError, match=r"holds another job: k is 4 there and 3 here; name a new folder"):
        run_job(job_of(bundle, out, k=3))
    with pytest.raises(ConfigError, match=r"shard_size is 5 there and 6 here, include_seen is False there and True"):
        run_job(job_of(bundle, out, shard_size=6, include_seen=True))
    version = write_toy_bundle(tmp_path / "other", seed=1).model_version
    with pytest.raises(ConfigError, match=f"model_version is .* there and {version} here"):
        run_job(job_of(tmp_path / "other", out))
    turned = pl.read_parquet(bundle / "histories.parquet").reverse()
    turned.write_parquet(tmp_path / "users.parquet")
    with pytest.raises(ConfigError, match=r"another job: histories is \w+ there and \w+ here"):
        run_job(job_of(bundle, out, histories=str(tmp_path / "users.parquet")))
    assert contents(out) == before


def test_folders_that_are_no_job_or_in_use_are_left_alone(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ConfigError, match=r"other files, such as notes.txt"):
        run_job(job_of(bundle, tmp_path))
    (tmp_path / "_manifest.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"cannot read .*_manifest.json"):
        run_job(job_of(bundle, tmp_path))
    with run_lock(tmp_path / "busy", "folder"), pytest.raises(RunLockedError, match="choose another folder"):
        run_job(job_of(bundle, tmp_path / "busy"))


def test_a_bundle_that_changes_under_the_job_is_noticed(bundle: Path, tmp_path: Path) -> None:
    write_toy_bundle(tmp_path / "toy", seed=2)
    job = job_of(tmp_path / "toy", tmp_path / "out")
    write_toy_bundle(tmp_path / "toy", seed=3)
    with pytest.raises(ArtifactError, match="by now, the job began with"):
        run_job(job)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"user": ["a"], "item_ids": [["i1"]]}, r"no column 'user_id'; there are user, item_ids"),
        ({"user_id": ["a"], "items": [["i1"]]}, r"no column 'item_ids'"),
        ({"user_id": ["a", "a"], "item_ids": [["i1"], ["i2"]]}, r"1 of 2 rows name a user again"),
        ({"user_id": ["a", None], "item_ids": [["i1"], ["i2"]]}, r"'user_id' has no value in 1 of 2 rows"),
        ({"user_id": ["a"], "item_ids": ["i1"]}, r"'item_ids' must hold lists of item ids, found String"),
        ({"user_id": ["a", "b"], "item_ids": [["i1"], None]}, r"'item_ids' has no value in 1 of 2 rows, e.g. row 2"),
        ({"user_id": [0.5], "item_ids": [["i1"]]}, r"'user_id' is not a whole number"),
        ({"user_id": [], "item_ids": []}, r"the table has no rows"),
    ],
)
def test_bad_tables_of_users_are_refused(
    bundle: Path, tmp_path: Path, columns: dict[str, list[Any]], message: str
) -> None:
    pl.DataFrame(columns).write_parquet(tmp_path / "users.parquet")
    with pytest.raises(DataError, match=message):
        run_job(job_of(bundle, tmp_path / "out", histories=str(tmp_path / "users.parquet")))


def refusal(*arguments: object) -> str:
    result = CliRunner().invoke(build_app(), ["recommend", *map(str, arguments), "--json"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_mistakes_are_one_line(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no bundle at 'nowhere'; name a bundle, or a run" in refusal("nowhere", tmp_path / "out")
    assert "nowhere/*.parquet: there is no such Parquet file" in refusal(
        bundle, tmp_path / "out", "--users", tmp_path / "nowhere" / "*.parquet"
    )
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "needs the extra 'ray' (ray not found); install" in refusal(bundle, tmp_path / "out", "--engine", "ray")


def test_the_command_says_what_it_made(bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["recommend", str(bundle), str(tmp_path / "out"), "-k", "3", "--shard-size", "7"]
    first = CliRunner().invoke(build_app(), arguments)
    assert first.exit_code == 0
    assert f"12 lists in 2 files of {tmp_path / 'out'}\n12 lists made in " in first.stdout
    CliRunner().invoke(build_app(), [*arguments, "--json"])
    document = json.loads(capfd.readouterr().out)
    assert (document["kept_shards"], document["made_shards"], document["num_popular"]) == (2, 0, 0)
    assert lists_in(tmp_path / "out")["item_ids"].list.len().to_list() == [3] * NUM_USERS


def test_without_a_gpu_the_option_for_one_is_refused(bundle: Path, tmp_path: Path) -> None:
    job = job_of(bundle, tmp_path / "out", device="cuda")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="device: PyTorch finds no CUDA device here; choose cpu"):
            run_job(job)
    with pytest.raises(ConfigError, match="device: Ray's workers make lists on the CPU"):
        run_job(job, engine="ray")


@pytest.mark.gpu
def test_lists_of_a_gpu_are_those_of_the_cpu(bundle: Path, tmp_path: Path) -> None:
    run_job(job_of(bundle, tmp_path / "cpu"))
    run_job(job_of(bundle, tmp_path / "gpu", device="cuda"))
    here, there = lists_in(tmp_path / "cpu"), lists_in(tmp_path / "gpu")
    assert there["item_ids"].to_list() == here["item_ids"].to_list()
    assert there["scores"].explode().to_list() == pytest.approx(here["scores"].explode().to_list(), abs=1e-4)
