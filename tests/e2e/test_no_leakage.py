"""Nothing that is fitted sees what it is judged by: shown by what comes out when only that is changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recsys.bundle import Bundle
from recsys.data import Split
from recsys.files import sha256_directory
from training.config import load_config
from training.pipeline import run_stages
from training.runs import execute
from training.stages import build_stages

METHODS = {
    "residual k-means": ["tokenizer={method: rkmeans, levels: 2, codebook_size: 8, code_dim: 8}"],
    "RQ-VAE on fused vectors": [],
    "LETTER": [
        "tokenizer={method: rqvae, levels: 2, codebook_size: 8, code_dim: 8, hidden: [16], warmup_steps: 5, steps: 20, "
        "codebook: gradient, collaborative_weight: 1, diversity_weight: 0.1}"
    ],
    "DAS": [
        "tokenizer={method: das, levels: 3, codebook_size: 8, code_dim: 8, hidden: [16], warmup_steps: 5, steps: 20, "
        "batch_size: 16, behaviour_dim: 4}"
    ],
    "MPQ": [
        "tokenizer={method: mpq, num_experts: 2, codebook_size: 8, code_dim: 8, hidden: [16], decoder_hidden: [16], "
        "warmup_steps: 5, steps: 20, batch_size: 16}"
    ],
    "LightGCN": ["encoder.collaborative={method: lightgcn, dim: 4, steps: 5, batch_size: 16, neighbours: 3}"],
    "contrastive tuning with mined negatives and profiles": [
        "encoder.alignment={steps: 5, batch_size: 8, evaluate_every: 5, holdout_users: 10, holdout_candidates: 20, "
        "hard_negatives: 1, user_view: both}"
    ],
    "contrastive tuning": [
        "encoder.alignment={steps: 5, batch_size: 8, evaluate_every: 5, holdout_users: 10, holdout_candidates: 20}"
    ],
    "CM3": ["encoder.collaborative={method: cm3, dim: 4, hidden_dim: 8, steps: 5, batch_size: 16, neighbours: 3}"],
    "SIGER": ["encoder.collaborative={method: siger, dim: 4, hidden_dim: 8, steps: 5, batch_size: 16, neighbours: 3}"],
}


@pytest.fixture(scope="module")
def other_outcomes(toy_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy data set with other validation and test items: each user's last two interactions are replaced."""
    folder = tmp_path_factory.mktemp("other_outcomes")
    shutil.copy(toy_dataset / "items.parquet", folder)
    log = pl.read_parquet(toy_dataset / "interactions.parquet")
    random = np.random.default_rng(7)
    from_end = pl.col("position").max().over("user_id") - pl.col("position")
    others = pl.Series([f"i{item}" for item in random.integers(0, 60, log.height)])
    item = pl.when(from_end < 2).then(others).otherwise(pl.col("item_id"))
    log.with_columns(item.alias("item_id")).write_parquet(folder / "interactions.parquet")
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_codes_do_not_depend_on_validation_and_test_items(
    method: str, toy_config_text: str, other_outcomes: Path, tmp_path: Path
) -> None:
    (tmp_path / "toy.yaml").write_text(toy_config_text)
    fitted = []
    for name, overrides in (("as_it_is", []), ("otherwise", [f"data.path={other_outcomes}"])):
        config = load_config(
            tmp_path / "toy.yaml", [f"run.dir={tmp_path}", f"run.name={name}", *METHODS[method], *overrides]
        )
        (tmp_path / name).mkdir()
        run_stages(tmp_path / name, build_stages(config)[:3])
        split = Split.load(tmp_path / name / "data" / "split")
        parts = ("encode/embeddings", "tokenize/semantic_ids", "tokenize/tokenizer")
        fitted.append((split, {part: sha256_directory(tmp_path / name / part) for part in parts}))
    (split, codes), (other_split, other_codes) = fitted
    assert split.train.items.tolist() == other_split.train.items.tolist()
    assert (split.test.targets != other_split.test.targets).mean() > 0.9
    assert (split.valid.targets != other_split.valid.targets).mean() > 0.9
    assert codes == other_codes


@pytest.mark.parametrize("shape", ["nested", "flat", "any_order"])
def test_items_held_out_of_everything_are_served_afterwards(shape: str, toy_config_text: str, tmp_path: Path) -> None:
    (tmp_path / "toy.yaml").write_text(toy_config_text)
    settings = ["data.split.held_out_items=0.2", "generator.new_item_slots=2", f"generator.model.shape={shape}"]
    config = load_config(tmp_path / "toy.yaml", [f"run.dir={tmp_path}", *settings])
    execute(config)
    bundle = Bundle.load(config.run_dir / "bundle")
    split = Split.load(config.run_dir / "data" / "split")
    assert len(split.held_out) == 12
    assert np.flatnonzero(~bundle.recommender.model.learned.numpy()).tolist() == split.held_out.tolist()
    found = bundle.recommender.recommend(split.test.histories, 10).items
    assert (np.isin(found, split.held_out).sum(axis=1) >= 2).all()
    report = json.loads((config.run_dir / "evaluate" / "report.json").read_text())
    assert report["protocol"]["notes"]["held out items"] == 12
    assert report["segments"]["target_popularity"]["cold"]["cases"] >= np.isin(split.test.targets, split.held_out).sum()


def test_a_fusion_does_not_depend_on_test_items(toy_dataset: Path, toy_config_text: str, tmp_path: Path) -> None:
    (tmp_path / "toy.yaml").write_text(toy_config_text)
    other = tmp_path / "other_last_items"
    shutil.copytree(toy_dataset, other)
    log = pl.read_parquet(toy_dataset / "interactions.parquet")
    is_last = pl.col("position") == pl.col("position").max().over("user_id")
    others = pl.Series([f"i{item}" for item in np.random.default_rng(7).integers(0, 60, log.height)])
    item = pl.when(is_last).then(others).otherwise(pl.col("item_id"))
    log.with_columns(item.alias("item_id")).write_parquet(other / "interactions.parquet")
    fitted = []
    for name, overrides in (("as_it_is", []), ("otherwise", [f"data.path={other}"])):
        config = load_config(tmp_path / "toy.yaml", [f"run.dir={tmp_path}", f"run.name={name}", *overrides])
        (tmp_path / name).mkdir()
        run_stages(tmp_path / name, build_stages(config)[:6])
        split = Split.load(tmp_path / name / "data" / "split")
        fitted.append((split, sha256_directory(tmp_path / name / "fuse" / "fusion")))
    (split, fusion), (other_split, other_fusion) = fitted
    assert (split.test.targets != other_split.test.targets).mean() > 0.9
    assert split.valid.targets.tolist() == other_split.valid.targets.tolist()
    assert fusion == other_fusion
