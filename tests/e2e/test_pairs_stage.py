"""A run that writes preference pairs: of training only, from every source."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from recsys.data import DataConfig, Interactions, Split, make_split
from recsys.errors import ConfigError, DataError
from training.config import RunConfig, config_yaml, load_config
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


@pytest.mark.parametrize("kind", ["leave_last_out", "global_time"])
def test_what_came_after_training_is_all_that_training_does_not_have(run: RunConfig, kind: str) -> None:
    told = data.load_interactions(run.run_dir / "data")
    steps = pl.int_range(pl.len()).over("user").alias("timestamp")
    interactions = dataclasses.replace(told, frame=told.frame.with_columns(steps))
    split = make_split(interactions, DataConfig.model_validate({"split": {"kind": kind}}))
    found = pairs.after_training(interactions, split)
    sequences, training = interactions.sequences(), dict(zip(split.train.users.tolist(), split.train, strict=True))
    for user, items in zip(sequences.users.tolist(), sequences, strict=True):
        rest = items[len(training.get(user, [])) :]
        assert found.get(interactions.user_ids[user], frozenset()) == set(rest.tolist())
    targets = {
        (user, target)
        for cases in (split.valid, split.test)
        for user, target in zip(cases.histories.users.tolist(), cases.targets.tolist(), strict=True)
    }
    # Where time divides, cases ask for the last item of a window alone, and the others are no less of the test.
    assert (sum(map(len, found.values())) > len(targets)) == (kind == "global_time")
    assert all(target in found[interactions.user_ids[user]] for user, target in targets)


def changed(run: RunConfig, folder: Path, section: str) -> RunConfig:
    """The run's configuration with another section `pairs`, in another directory."""
    path = folder / "toy.yaml"
    path.write_text(config_yaml(run))
    return load_config(path, [f"run.dir={folder / 'runs'}", f"pairs={section}"])


def run_again(run: RunConfig, folder: Path, section: str) -> RunConfig:
    """A copy of the run with another section `pairs`: only that stage is built again."""
    config = changed(run, folder, section)
    shutil.copytree(run.run_dir, config.run_dir)
    with run_lock(config.run_dir):
        run_stages(config.run_dir, build_stages(config)[:5])
    return config


def slate_file(run: RunConfig, folder: Path) -> Path:
    """Slates of the first users: a click below a skip, after their first items of training."""
    split, interactions = data.load_split(run.run_dir / "data"), data.load_interactions(run.run_dir / "data")
    ids = data.load_catalog(run.run_dir / "data").frame["item_id"].to_list()
    rows: list[dict[str, Any]] = []

    def slate(user: int, history: list[int], clicked: int, **changes: Any) -> None:
        skipped = next(item for item in range(60) if item not in (*history, clicked))
        row = {
            "slate_id": f"s{len(rows)}",
            "user_id": interactions.user_ids[user],
            "history": [ids[item] for item in history],
            "items": [ids[skipped], ids[clicked]],
            "outcomes": ["skip", "click"],
        }
        rows.append(row | changes)

    for number in np.flatnonzero(split.train.lengths > 1)[:40]:
        history = split.train[number]
        slate(int(split.train.users[number]), history[:1].tolist(), int(history[1]))
    target, user = int(split.test.targets[0]), int(split.test.histories.users[0])
    slate(user, [], target)
    slate(user, [target], (target + 1) % 60)
    slate(user, [], 5, items=["gone", "i5"])
    path = folder / "slates.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_clicks_are_learned_from_and_filters_say_what_they_did(run: RunConfig, tmp_path: Path) -> None:
    section = (
        f"{{beams: {{max_cases: 40, beams: 5}}, clicks: {{file: {slate_file(run, tmp_path)}}}, "
        "perturbed: {max_cases: 20}, novelty: {max_cases: 60, min_ratio: 1.2, candidates: 8},"
        " filters: [{kind: confidence, threshold: 0.6}, {kind: peer_review, noise: 0.25, epochs: 2},"
        " {kind: consistency, average: pair}]}"
    )
    config = run_again(run, tmp_path, section)
    report = json.loads((config.run_dir / "pairs" / "report.json").read_text())
    table = pairs.load_pairs(config.run_dir / "pairs")
    assert report["slates_left_out"] == 3, "what knows a test item, and what the catalogue does not have"
    doubted, reviewed, softened = report["filters"]
    assert [entry["kind"] for entry in report["filters"]] == ["confidence", "peer_review", "consistency"]
    # Only the pairs about novelty say how sure they are.
    assert 0 < doubted["dropped"] < doubted["judged"] <= 60
    assert doubted["pairs"] == 40 + 20 + 40 + doubted["judged"] - doubted["dropped"]
    assert reviewed["judged"] == doubted["pairs"]
    novel = doubted["judged"] - doubted["dropped"]
    assert reviewed["dropped"] == round(0.25 * 100) + round(0.25 * novel), "each objective by itself"
    assert softened["dropped"] == 0
    assert 0 < softened["relabelled"] <= softened["judged"] == softened["pairs"] == len(table)
    assert (table.frame.filter(pl.col("source") == "novelty")["confidence"] >= 0.6).all()
    assert set(table.frame["source"]) == {"beam", "perturbed_history", "click_skip", "novelty"}
    assert table.objectives() == ("accuracy", "novelty")
    # Pairs of two, three and four answers agree on 1, 3 and 6 orders, ties being half of one.
    twelfths = 12 * table.frame["label_noise_prob"].to_numpy()
    np.testing.assert_allclose(twelfths, twelfths.round(), atol=1e-6)


def test_graded_lists_come_from_the_same_log(run: RunConfig, tmp_path: Path) -> None:
    config = run_again(run, tmp_path, f"{{beams: null, clicks: {{file: {slate_file(run, tmp_path)}, graded: true}}}}")
    table = pairs.load_pairs(config.run_dir / "pairs")
    assert set(table.frame["source"]) == {"feedback"}
    assert table.frame["chosen_score"].to_list() == [1.0] * 40


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ("{beams: {}, filters: [{kind: confidence}]}", r"filters\[0\]: confidence judges pairs of novelty, which this"),
        ("{filters: [{kind: flip_rate}]}", r"filters\[0\]: flip_rate judges pairs of ratings or clicks, which this"),
        (
            "{novelty: {min_ratio: 3}, filters: [{kind: confidence, threshold: 0.75}]}",
            r"filters\[0\]: no pair of novelty with min_ratio=3 has a confidence below 0\.750, so that threshold=0\.75",
        ),
        ("{filters: [{kind: routing}]}", r"pairs\.filters\[0\]\.kind must be .*'peer_review'.* got 'routing'"),
        ("{filters: [{kind: peer_review, noise: 0.7}]}", r"pairs\.filters\[0\]\.noise should be less than 0\.5"),
        ("{beams: null}", "give at least one of beams, ratings, perturbed, clicks and novelty"),
    ],
)
def test_filters_without_anything_to_judge_are_refused(
    run: RunConfig, section: str, problem: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=problem):
        changed(run, tmp_path, section)


def test_a_missing_log_of_slates_is_named_before_anything_is_done(run: RunConfig, tmp_path: Path) -> None:
    section = f"{{clicks: {{file: {tmp_path / 'none.parquet'}}}}}"
    config = changed(run, tmp_path, section)
    with pytest.raises(DataError, match=r"pairs\.clicks\.file: no file .*none\.parquet"):
        build_stages(config)
