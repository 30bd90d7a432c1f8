"""A run whose generator is aligned: what it leaves, what uses it, and what it may not read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from recsys.bundle import Bundle
from recsys.errors import ConfigError
from recsys.files import sha256_directory
from recsys.generator import GenerativeRecommender
from training.config import load_config
from training.pipeline import run_stages
from training.runs import execute
from training.stages import align, build_stages

GROUP_POLICY = (
    "align={rewards: {terms: [{kind: scorer, scorer: sasrec, normalise: none}, {kind: prefix},"
    " {kind: popularity_guard}]},"
    " prompts: {labelled: 50}, group_policy: {updates: 4, validate_every: 2, batch_prompts: 32,"
    " min_coverage: 0, min_tail_recall: 0, max_popularity: 9, policy: {group_size: 6, pass_at: 2}}}"
)
PREFERENCE = "align={method: preference, preference: {epochs: 1}}"


def shaken(fit: Callable[..., Any]) -> Callable[..., Any]:
    """`fit`, and then all weights a little larger."""

    def tuned(first: Any, *arguments: Any, **named: Any) -> Any:
        result = fit(first, *arguments, **named)
        model = first.model if isinstance(first, GenerativeRecommender) else first
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01)
        return result

    return tuned


def configured(text: str, folder: Path) -> Path:
    path = folder / "toy.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "overrides", [[GROUP_POLICY], [PREFERENCE, "pairs={beams: {max_cases: 40, beams: 5}}"]], ids=["policy", "pairs"]
)
def test_the_aligned_generator_is_what_is_served(
    overrides: list[str], toy_config_text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = configured(toy_config_text, tmp_path)
    config = load_config(path, [f"run.dir={tmp_path}", "data.split.held_out_items=0.1", "fusion=null", *overrides])
    # Whatever tuning comes to here, the weights of the stage must differ from those of training.
    for name in ("fit_group_policy", "fit_preferences"):
        monkeypatch.setattr(align, name, shaken(getattr(align, name)))
    execute(config)
    run = config.run_dir
    report = json.loads((run / "align" / "alignment.json").read_text())
    assert report["before"]["ndcg"] >= 0
    assert len(report["curve"]) > 0
    evaluated = json.loads((run / "evaluate" / "report.json").read_text())
    assert {"generator", "supervised"} <= set(evaluated["models"])
    served = Bundle.load(run / "bundle").recommender.model.state_dict()
    aligned = align.train.load_recommender(
        run / "align",
        config.generator,
        align.tokenize.load_ids(run / "tokenize"),
        align.encode.load_embeddings(run / "encode"),
    ).model.state_dict()
    for name, value in aligned.items():
        assert torch.equal(served[name], value), name
    held_out = align.data.load_split(run / "data").held_out
    assert len(held_out) > 0
    assert not served["learned"][torch.from_numpy(held_out)].any()
    trained = align.train.load_recommender(
        run / "train",
        config.generator,
        align.tokenize.load_ids(run / "tokenize"),
        align.encode.load_embeddings(run / "encode"),
    ).model.state_dict()
    assert not torch.equal(served["depth.heads.0.weight"], trained["depth.heads.0.weight"])


def test_pairs_that_the_run_does_not_make_are_named(toy_config_text: str, tmp_path: Path) -> None:
    config = load_config(configured(toy_config_text, tmp_path), [f"run.dir={tmp_path}", PREFERENCE])
    with pytest.raises(ConfigError, match="section `pairs`"):
        build_stages(config)


def test_an_unknown_reward_is_named_with_what_is_allowed(toy_config_text: str, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"align\.rewards\.terms\[0\]\.kind must be .*'exact'.*'prefix'.*got 'clicks'"
    ):
        load_config(configured(toy_config_text, tmp_path), ["align={rewards: {terms: [{kind: clicks}]}}"])


def test_alignment_does_not_depend_on_test_items(toy_dataset: Path, toy_config_text: str, tmp_path: Path) -> None:
    import numpy as np
    import polars as pl

    other = tmp_path / "other_last_items"
    other.mkdir()
    (other / "items.parquet").write_bytes((toy_dataset / "items.parquet").read_bytes())
    log = pl.read_parquet(toy_dataset / "interactions.parquet")
    is_last = pl.col("position") == pl.col("position").max().over("user_id")
    others = pl.Series([f"i{item}" for item in np.random.default_rng(7).integers(0, 60, log.height)])
    item = pl.when(is_last).then(others).otherwise(pl.col("item_id"))
    log.with_columns(item.alias("item_id")).write_parquet(other / "interactions.parquet")
    aligned = []
    for name, overrides in (("as_it_is", []), ("otherwise", [f"data.path={other}"])):
        config = load_config(
            configured(toy_config_text, tmp_path),
            [f"run.dir={tmp_path}", f"run.name={name}", "fusion=null", GROUP_POLICY, *overrides],
        )
        (tmp_path / name).mkdir()
        stages = build_stages(config)
        assert [stage.name for stage in stages[:6]][-1] == "align"
        run_stages(tmp_path / name, stages[:6])
        aligned.append(sha256_directory(tmp_path / name / "align"))
    assert aligned[0] == aligned[1]


def test_pairs_that_nothing_reads_are_refused(toy_config_text: str, tmp_path: Path) -> None:
    config = load_config(
        configured(toy_config_text, tmp_path), [f"run.dir={tmp_path}", PREFERENCE, "pairs={perturbed: {}}"]
    )
    with pytest.raises(ConfigError, match=r"pairs\.perturbed would teach nothing"):
        build_stages(config)


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ("{prompts: {labelled: 0}}", r"no prompt of prompts\.labelled=0 knows"),
        ("{rewards: {terms: [{kind: future, steps: 9}]}}", "raise the horizon"),
        ("{group_policy: {policy: {updates_per_rollout: 2}}}", "dropout: false"),
        ("{group_policy: {policy: {group_size: 1}}}", "group_size"),
    ],
)
def test_settings_that_do_not_fit_are_refused(section: str, problem: str, toy_config_text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=problem):
        load_config(configured(toy_config_text, tmp_path), [f"align={section}"])


def test_rewards_that_the_stage_cannot_feed_are_refused(toy_config_text: str, tmp_path: Path) -> None:
    config = load_config(
        configured(toy_config_text, tmp_path), [f"run.dir={tmp_path}", "align={rewards: {terms: [{kind: rubric}]}}"]
    )
    with pytest.raises(ConfigError, match="rubric"):
        build_stages(config)
