"""Every stage for real, on a data set and an encoder made here: results, second runs, kills, what scripts read."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from recsys.bundle import Bundle
from recsys.data import Sequences
from recsys.errors import ArtifactError, DataError
from training.config import load_config, stored_config
from training.pipeline import finished_key
from training.results import stage_costs
from training.runs import evaluate_run, execute

STAGES = ("data", "encode", "tokenize", "train", "retrieve", "fuse", "evaluate", "bundle")
MODELS = ("generator", "fused", "popularity", "item_knn", "skip_gram", "sasrec")

# Where a run is killed, one time after the other: in the middle of each stage's work, or between its files.
KILLS = (
    ("data", "before", "recsys.data.split:Split.save", 1),
    ("encode", "after", "recsys.encoder.cache:save_file", 1),  # a shard is written and has not taken its name
    ("tokenize", "before", "recsys.tokenizer.rqvae:RQVAETokenizer._loss", 30),
    ("train", "before", "training.scalars:ScalarLog.__call__", 10),
    ("train", "after", "training.checkpoints:write_json", 1),  # a checkpoint is written and has not taken its name
    ("retrieve", "before", "recsys.evaluation.baselines.sasrec:SasRec.save", 1),
    ("fuse", "before", "recsys.retrieval.ranker:ConditionalLogit.save", 1),
    ("evaluate", "before", "recsys.evaluation.baselines.sasrec:SasRec.__call__", 1),
    ("bundle", "before", "recsys.generator.recommender:GenerativeRecommender.save", 1),
)


def recsys(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "recsys", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def report_of(run_dir: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((run_dir / "evaluate" / "report.json").read_text())
    return report


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory, toy_config_text: str) -> Path:
    """The directory of an undisturbed run; its parent's parent is the working directory it was made in."""
    home = tmp_path_factory.mktemp("undisturbed")
    (home / "toy.yaml").write_text(toy_config_text)
    execute(load_config(home / "toy.yaml", [f"run.dir={home / 'runs'}"]))
    return home / "runs" / "toy"


def test_a_run_leaves_every_artifact(finished_run: Path) -> None:
    assert {path.name for path in finished_run.iterdir()} >= {*STAGES, "config.yaml", "metrics.jsonl", "tensorboard"}
    assert not list(finished_run.glob("*.partial"))
    assert (finished_run / "evaluate" / "report.html").stat().st_size > 1000


def test_report_has_the_names_that_scripts_depend_on(finished_run: Path) -> None:
    report = report_of(finished_run)
    assert set(report["models"]) == set(MODELS)
    for metrics in report["models"].values():
        for metric in ("recall@5", "recall@10", "ndcg@5", "ndcg@10", "mrr@10", "coverage@10"):
            assert set(metrics[metric]) >= {"value", "low", "high"}
    assert report["protocol"]["mask_seen"] is True
    assert report["protocol"]["notes"]["lists certified exact"].endswith("%")


def test_bundle_can_be_served(finished_run: Path) -> None:
    bundle = Bundle.load(finished_run / "bundle")
    assert bundle.manifest.name == "toy"
    assert len(list(bundle.histories())) == 80


def test_a_second_run_does_nothing(finished_run: Path) -> None:
    home = finished_run.parents[1]
    before = {path: path.stat().st_mtime_ns for path in finished_run.rglob("*") if path.parent != finished_run}
    result = recsys("run", "toy.yaml", cwd=home)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("up to date") == len(STAGES)
    assert before == {path: path.stat().st_mtime_ns for path in finished_run.rglob("*") if path.parent != finished_run}


def test_a_wider_search_evaluates_again_and_fits_nothing_again(finished_run: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "toy"
    shutil.copytree(finished_run, run_dir)
    config = load_config(finished_run.parents[1] / "toy.yaml", [f"run.dir={tmp_path}", "generator.beams=20"])
    execute(config)
    renewed = {name for name in STAGES if finished_key(run_dir, name) != finished_key(finished_run, name)}
    assert renewed == {"fuse", "evaluate", "bundle"}
    assert Bundle.load(run_dir / "bundle").recommender.config.beams == 20


def test_a_run_stops_where_it_is_told_to_and_goes_on_from_there(finished_run: Path, tmp_path: Path) -> None:
    shutil.copy(finished_run.parents[1] / "toy.yaml", tmp_path)
    stopped = recsys("run", "toy.yaml", "--until", "data", cwd=tmp_path)
    assert stopped.returncode == 0, stopped.stderr
    made = tmp_path / "runs" / "toy"
    assert {path.name for path in made.iterdir() if path.is_dir()} == {"data"}
    wrong = recsys("run", "toy.yaml", "--until", "tokenise", cwd=tmp_path)
    assert (wrong.returncode, wrong.stderr.count("\n")) == (1, 1)
    assert f"no stage 'tokenise'; its stages are {', '.join(STAGES)}" in wrong.stderr
    further = recsys("run", "toy.yaml", "--until", "encode", cwd=tmp_path)
    assert further.stderr.count("up to date") == 1
    assert finished_key(made, "encode") == finished_key(finished_run, "encode")


def test_a_sample_of_the_users_is_evaluated_and_the_report_says_so(finished_run: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "toy"
    shutil.copytree(finished_run, run_dir)
    settings = ["evaluation.max_users=30", "evaluation.baselines=[popularity]"]
    execute(load_config(finished_run.parents[1] / "toy.yaml", [f"run.dir={tmp_path}", *settings]))
    protocol = report_of(run_dir)["protocol"]
    assert (protocol["num_cases"], protocol["num_users"]) == (30, 30)
    assert protocol["notes"]["users"] == "a sample of 80"
    whole, sampled = (pl.read_parquet(path / "evaluate" / "lists.parquet") for path in (finished_run, run_dir))
    same = sampled.join(whole, on="user", suffix="_of_all")
    assert same["generator"].to_list() == same["generator_of_all"].to_list()
    assert len(same) == 30


def test_the_generator_learns_from_a_sample_of_the_users(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished_run, tmp_path / "toy")
    learned_from = []

    def stop(model: object, train: Sequences, *further: object, **settings: object) -> None:
        learned_from.append(train.users.tolist())
        raise DataError("enough")

    monkeypatch.setattr("training.stages.train.fit_generator", stop)
    for at_most in (20, 20, 1000):
        config = load_config(finished_run.parents[1] / "toy.yaml", [f"run.dir={tmp_path}", f"fit.max_users={at_most}"])
        with pytest.raises(DataError, match="enough"):
            execute(config, until="train")
    assert [len(set(users)) for users in learned_from] == [20, 20, 80]
    assert learned_from[0] == learned_from[1] == sorted(learned_from[0])


def test_costs_of_every_stage_are_kept(finished_run: Path) -> None:
    costs = stage_costs(finished_run)
    assert list(costs["seconds"]) == [*STAGES, "total"]
    assert 0 < costs["peak_memory_gib"] < 64


def test_costs_of_a_run_without_a_finished_stage_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"has no finished stage; finish the run with `recsys run CONFIG`$"):
        stage_costs(tmp_path)


def test_a_finished_run_is_evaluated_again_without_its_raw_data(
    finished_run: Path, toy_dataset: Path, tmp_path: Path
) -> None:
    config = load_config(finished_run.parents[1] / "toy.yaml", [f"run.dir={tmp_path}"])
    run_dir = tmp_path / "toy"
    raw = tmp_path / "raw"
    shutil.copytree(finished_run, run_dir)
    shutil.copytree(toy_dataset, raw)
    moved = config.model_copy(update={"data": config.data.model_copy(update={"path": raw})})
    execute(moved)
    shutil.rmtree(raw)
    shutil.rmtree(run_dir / "evaluate")
    result = recsys("evaluate", run_dir, "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == report_of(finished_run)

    shutil.rmtree(run_dir / "train")
    with pytest.raises(ArtifactError, match=r"toy: not finished: train; finish the run with `recsys run CONFIG`$"):
        evaluate_run(stored_config(run_dir))


def test_histories_too_short_for_sasrec_are_an_error_before_any_training(
    toy_dataset: Path, toy_config_text: str, tmp_path: Path
) -> None:
    short = tmp_path / "short"
    shutil.copytree(toy_dataset, short)
    log = pl.read_parquet(short / "interactions.parquet")
    log.filter(pl.col("position") < 3).write_parquet(short / "interactions.parquet")
    (tmp_path / "toy.yaml").write_text(toy_config_text)
    overrides = [f"run.dir={tmp_path}", f"data.path={short}"]
    with pytest.raises(
        DataError, match=r"^evaluation\.baselines: sasrec needs a training sequence of at least 2 items"
    ):
        execute(load_config(tmp_path / "toy.yaml", overrides))
    assert not (tmp_path / "toy" / "data").exists()
    execute(load_config(tmp_path / "toy.yaml", [*overrides, "evaluation.baselines=[popularity]", "fusion=null"]))
    assert set(report_of(tmp_path / "toy")["models"]) == {"generator", "popularity"}


def test_json_commands_print_one_document_and_nothing_else(finished_run: Path) -> None:
    home = finished_run.parents[1]
    evaluated = recsys("evaluate", "toy", "--json", cwd=home)
    assert json.loads(evaluated.stdout) == report_of(finished_run)
    tokenized = recsys("tokenizer", "report", "toy", "--json", cwd=home)
    assert json.loads(tokenized.stdout).keys() >= {"dup_rate_before", "dup_rate", "perplexity", "dead_codes"}


def test_killed_in_the_middle_of_every_stage_a_run_ends_with_the_same_report(
    finished_run: Path, tmp_path: Path, toy_config_text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What the undisturbed run has encoded would leave nothing to encode here.
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "toy.yaml").write_text(toy_config_text)
    run_dir = tmp_path / "runs" / "toy"
    for stage, when, function, call in KILLS:
        script = Path(__file__).with_name("killed_run.py")
        command = [sys.executable, str(script), when, function, str(call), "run", "toy.yaml"]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert result.returncode == -signal.SIGKILL, f"{function}: {result.stderr}"
        assert (run_dir / f"{stage}.partial").exists()
        assert not (run_dir / stage).exists()
    result = recsys("run", "toy.yaml", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert report_of(run_dir) == report_of(finished_run)
    assert not list(run_dir.glob("*.partial"))
