"""A run with tokens of users: its stage, its report, what it leaves alone, and what is served from its bundle."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from tiny_lm import save_tiny_lm

from recsys.bundle import Bundle
from recsys.data import Sequences
from recsys.errors import ConfigError
from serving.runtime import RecommenderRuntime
from training.config import RunConfig, config_yaml, load_config
from training.pipeline import run_stages
from training.runs import execute
from training.stages import build_stages

USERS = "users={levels: 3, codebook_size: 8, code_dim: 8, hidden: [16], warmup_steps: 10, steps: 20}"
TASKS = """
teach:
  line_rows: 256
  steps_per_epoch: 4
  report_samples: 4
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, toy_config_text: str) -> Path:
    home = tmp_path_factory.mktemp("users")
    save_tiny_lm(home / "lm")
    (home / "toy.yaml").write_text(toy_config_text.replace("epochs: 3,", "epochs: 1,", 1) + TASKS)
    return home


def configured(home: Path, *overrides: str) -> RunConfig:
    fixed = [
        f"run.dir={home / 'runs'}",
        "generator.model.shape=flat",
        f"generator.model.lm={{name: {home / 'lm'}, lora: {{rank: 2}}}}",
        "fit.batch_positions=512",
        "evaluation.baselines=[popularity]",
        "fusion=null",
    ]
    return load_config(home / "toy.yaml", [*fixed, *overrides])


@pytest.fixture(scope="module")
def run_dir(home: Path) -> Path:
    config = configured(home, "teach.tasks.user_tokens=true", USERS)
    execute(config)
    return config.run_dir


def test_users_are_named_and_the_report_says_how_well(run_dir: Path) -> None:
    report = json.loads((run_dir / "users" / "report.json").read_text())
    assert report["num_users"] == 80
    assert report["unique"]["dup_rate"] == 0
    assert len(report["nearest"]["perplexity"]) == len(report["short"]["perplexity"]) == 3
    told = json.loads((run_dir / "train" / "language.json").read_text())
    assert set(told["user_to_preference"]) == {"samples", "nats_per_token"}


def test_the_bundle_names_users_by_their_histories(run_dir: Path) -> None:
    bundle = Bundle.load(run_dir / "bundle")
    users = bundle.recommender.model.users
    assert users is not None
    assert users.of([1, 2, 3]) == users.of([1, 2, 3])
    assert users.of([]) is None
    assert (bundle.recommender.recommend(Sequences.from_lists([[1, 2, 3], []]), k=5).items >= 0).all()
    answer = RecommenderRuntime.from_bundle(bundle).recommend(["i1", "nobody has this"], k=3)
    assert answer.source == "generator"
    assert len(answer.picks) == 3


def test_other_outcomes_leave_the_names_as_they_were(home: Path, run_dir: Path, toy_dataset: Path) -> None:
    folder = home / "other"
    folder.mkdir()
    shutil.copy(toy_dataset / "items.parquet", folder)
    log = pl.read_parquet(toy_dataset / "interactions.parquet")
    held_out = pl.col("position").max().over("user_id") - pl.col("position") < 2
    others = pl.Series([f"i{item}" for item in np.random.default_rng(7).integers(0, 60, log.height)])
    item = pl.when(held_out).then(others).otherwise(pl.col("item_id"))
    log.with_columns(item.alias("item_id")).write_parquet(folder / "interactions.parquet")
    config = configured(home, "teach.tasks.user_tokens=true", USERS, f"data.path={folder}", "run.name=other")
    run_stages(config.run_dir, build_stages(config)[:4])
    for file in ("users/report.json", "users/indexer/behaviour.safetensors"):
        assert (config.run_dir / file).read_bytes() == (run_dir / file).read_bytes()


def test_runs_without_user_tokens_are_keyed_as_before(home: Path) -> None:
    config = configured(home)
    assert "\nusers:" not in config_yaml(config)
    stages = {stage.name: stage for stage in build_stages(config)}
    assert "users" not in stages
    assert stages["train"].inputs == ("data", "encode", "tokenize")
    assert "user_to_preference" not in json.dumps([stages["train"].settings, stages["bundle"].settings])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([USERS], r"is read with teach\.tasks\.user_tokens only"),
        (["teach.tasks.user_tokens=true", "generator.model.lm=null"], r"set generator\.model\.lm"),
        (["teach.tasks.user_tokens=true", "align={method: group_policy}"], "set align to null"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(home: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        configured(home, *overrides)
    assert "\n" not in str(error.value)
