"""A run that writes preference pairs: of training only, from every source."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recsys.data import Interactions, Split
from training.config import RunConfig, load_config
from training.pipeline import run_lock, run_stages
from training.stages import build_stages, data, pairs


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, toy_dataset: Path, toy_config_text: str) -> RunConfig:
    folder = tmp_path_factory.mktemp("pairs")
    rated = folder / "rated"
    rated.mkdir()
    (rated / "items.parquet").write_bytes((toy_dataset / "items.parquet").read_bytes())
    log = pl.read_parquet(toy_dataset / "interactions.parquet")
    ratings = pl.Series("rating", np.random.default_rng(0).integers(1, 6, len(log)).astype(np.float64))
    log.with_columns(ratings).write_parquet(rated / "interactions.parquet")
    path = folder / "toy.yaml"
    path.write_text(toy_config_text)
    config = load_config(
        path,
        [
            f"data.path={rated}",
            f"run.dir={folder / 'runs'}",
            "data.split.held_out_items=0.1",
            "pairs={beams: {max_cases: 40, beams: 5}, ratings: {}, perturbed: {max_cases: 30}}",
        ],
    )
    with run_lock(config.run_dir):
        run_stages(config.run_dir, build_stages(config)[:5])
    return config


def test_every_source_is_there_and_nothing_but_training_is_told(run: RunConfig) -> None:
    split: Split = data.load_split(run.run_dir / "data")
    interactions: Interactions = data.load_interactions(run.run_dir / "data")
    table = pairs.load_pairs(run.run_dir / "pairs")
    table.check_items(split.num_items)
    report = json.loads((run.run_dir / "pairs" / "report.json").read_text())
    assert set(report) == {"beam", "rating", "perturbed_history"}
    assert report["beam"]["pairs"] == 40
    assert report["perturbed_history"]["pairs"] == 30
    assert report["rating"]["pairs"] > 30
    train = {
        interactions.user_ids[int(user)]: history.tolist()
        for user, history in zip(split.train.users, split.train, strict=True)
    }
    held_out = set(split.held_out.tolist())
    for pair in table:
        known = train[pair.user_id]
        assert pair.chosen_item in known
        size = len(pair.prompt_items)
        assert any(known[begin : begin + size] == pair.prompt_items for begin in range(len(known)))
        if pair.source == "rating":
            assert set(pair.rejected_items) <= set(known)
            assert not set(pair.rejected_items) & set(pair.prompt_items)
        if pair.source == "beam":
            assert not set(pair.rejected_items) & held_out


def test_the_training_log_is_the_training_sequences(run: RunConfig) -> None:
    split: Split = data.load_split(run.run_dir / "data")
    found = pairs.training_log(data.load_interactions(run.run_dir / "data"), split)
    assert np.array_equal(found["item"].to_numpy(), split.train.items)
