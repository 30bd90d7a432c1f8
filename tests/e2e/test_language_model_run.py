"""A run whose generator is a language model: every stage for real, then the bundle is served and searched by words."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_lm import save_tiny_lm

from recsys.bundle import Bundle
from recsys.data.sequences import Sequences
from recsys.errors import ConfigError, DataError
from recsys.generator.lm.reason import ReasonConfig, recommend_with_reasons
from serving.runtime import RecommenderRuntime
from training.config import load_config
from training.pipeline import run_stages
from training.reasons import reasoned_list
from training.runs import execute
from training.stages import align, build_stages

TASKS = """
teach:
  line_rows: 256
  steps_per_epoch: 4
  report_samples: 4
  tasks: {shares: {reasoning: {passes: 1}}}
"""


@pytest.fixture(scope="module", params=["flat", "nested"])
def run_dir(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, toy_config_text: str) -> Path:
    home = tmp_path_factory.mktemp(request.param)
    save_tiny_lm(home / "lm")
    (home / "toy.yaml").write_text(toy_config_text.replace("epochs: 3,", "epochs: 2,", 1) + TASKS)
    execute(load_config(home / "toy.yaml", overrides(home, request.param, home / "runs")))
    return home / "runs" / "toy"


def overrides(home: Path, shape: str, runs: Path) -> list[str]:
    return [
        f"run.dir={runs}",
        f"generator.model.shape={shape}",
        f"generator.model.lm={{name: {home / 'lm'}, lora: {{rank: 2}}}}",
        "fit.batch_positions=512",
        "evaluation.baselines=[popularity]",
        "fusion=null",
    ]


def test_the_bundle_needs_nothing_but_itself(run_dir: Path) -> None:
    bundle = Bundle.load(run_dir / "bundle")
    served = bundle.recommender.recommend(Sequences.from_lists([[1, 2, 3], []]), k=5)
    assert (served.items >= 0).all()
    assert "lora" not in " ".join(bundle.recommender.model.state_dict())
    answer = RecommenderRuntime.from_bundle(bundle).recommend(["i1", "i2"], k=5)
    assert answer.source == "generator"
    assert len(answer.picks) == 5


def test_the_report_says_what_was_learned_of_each_task(run_dir: Path) -> None:
    report = json.loads((run_dir / "train" / "language.json").read_text())
    assert set(report["title_to_item"]) == {"samples", "recall@1", "recall@10"}
    assert set(report["item_to_title"]) == {"samples", "nats_per_token"}
    assert report["reasoning"]["samples"] == 4
    curve = json.loads((run_dir / "train" / "curve.json").read_text())["curve"]
    assert curve[-1]["steps"] == 8


def test_reasons_come_with_an_answer(run_dir: Path) -> None:
    recommender = Bundle.load(run_dir / "bundle").recommender
    config = ReasonConfig(chains=2, max_tokens=8)
    reasoned = recommend_with_reasons(recommender, Sequences.from_lists([[1, 2]]), 5, config)
    assert (reasoned.recommendations.items >= 0).all()
    assert np.exp(reasoned.recommendations.scores).sum() <= 1
    assert [len(chains) for chains in reasoned.chains] == [2]


def test_reasons_are_served_and_written_on_the_command_line(run_dir: Path) -> None:
    bundle = Bundle.load(run_dir / "bundle")
    assert bundle.no_reasons is None
    config = ReasonConfig(chains=2, max_tokens=8)
    answer = RecommenderRuntime.from_bundle(bundle).recommend(["i1", "i2"], k=3, mode="reason", reason=config)
    assert answer.source == "reasoning"
    items = [bundle.catalog.item_ids[pick.item] for pick in answer.picks]
    command = [sys.executable, "-m", "recsys", "reason", str(run_dir), "--item", "i1", "--item", "i2"]
    command += ["-k", "3", "--chains", "2", "--max-tokens", "8", "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["history"] == ["i1", "i2"]
    assert found["chains"] == list(answer.chains)
    assert [item["item_id"] for item in found["items"]] == items


def test_a_user_of_the_data_is_asked_for_by_id_or_refused(run_dir: Path) -> None:
    bundle = Bundle.load(run_dir / "bundle")
    config = ReasonConfig(chains=1, max_tokens=2)
    found = reasoned_list(bundle, "u3", None, 2, config, seed=0)
    assert found["history"] == dict(bundle.histories())["u3"]
    assert not {item["item_id"] for item in found["items"]} & set(found["history"])
    with pytest.raises(DataError, match="no user 'nobody'"):
        reasoned_list(bundle, "nobody", None, 2, config, seed=0)
    with pytest.raises(DataError, match="no item 'x'"):
        reasoned_list(bundle, None, ["x"], 2, config, seed=0)
    with pytest.raises(ConfigError, match="and not both"):
        reasoned_list(bundle, "u3", ["i1"], 2, config, seed=0)


def test_a_model_that_was_not_taught_to_reason_says_so(run_dir: Path) -> None:
    bundle = Bundle.load(run_dir / "bundle")
    without = {**bundle.manifest.config, "teach": {"tasks": {"shares": {"reasoning": {"passes": 0}}}}}
    bundle = replace(bundle, manifest=bundle.manifest.model_copy(update={"config": without}))
    with pytest.raises(ConfigError, match=r"was not taught to reason; train it with teach\.tasks"):
        reasoned_list(bundle, "u3", None, 2, ReasonConfig(), seed=0)
    runtime = RecommenderRuntime.from_bundle(bundle)
    assert runtime.no_reasons is not None
    assert runtime.no_reasons.startswith("the model of toy was not taught to reason")


def test_items_are_searched_by_words_on_the_command_line(run_dir: Path) -> None:
    command = [sys.executable, "-m", "recsys", "search", str(run_dir), "red lamp", "-k", "3", "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert len(found["items"]) == 3
    assert set(found["items"][0]) == {"item_id", "title", "log_probability"}


ALIGN = (
    "align={rewards: {terms: [{kind: prefix}, {kind: rubric, weight: 0.1}]}, prompts: {labelled: 20},"
    " group_policy: {updates: 2, validate_every: 2, batch_prompts: 3, min_coverage: 0, min_tail_recall: 0,"
    " max_popularity: 9, reasoning: {chains: 3, answers: 3, max_tokens: 6, validation_users: 5,"
    " served: {chains: 2, max_tokens: 4}}}}"
)


def test_the_reasons_of_a_run_are_tuned(run_dir: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    shape = request.node.callspec.params["run_dir"]
    home, run = run_dir.parent.parent, tmp_path / "toy"
    shutil.copytree(run_dir, run)
    config = load_config(home / "toy.yaml", [*overrides(home, shape, tmp_path), ALIGN])
    stages = build_stages(config)
    run_stages(run, stages[: 1 + [stage.name for stage in stages].index("align")])
    report = json.loads((run / "align" / "alignment.json").read_text())
    (entry,) = report["curve"]
    assert {"chain_length", "chain_entropy", "unfinished", "reward_rubric", "legality"} <= set(entry)
    assert entry["ndcg@10"] >= 0
    assert set(report["direct_mode"]) == {"before", "after"}
    aligned = align.train.load_recommender(
        run / "align",
        config.generator,
        align.tokenize.load_ids(run / "tokenize"),
        align.encode.load_embeddings(run / "encode"),
    )
    reasoned = recommend_with_reasons(aligned, Sequences.from_lists([[1, 2]]), 3, ReasonConfig(max_tokens=4))
    assert (reasoned.recommendations.items >= 0).all()


def test_reasons_are_tuned_only_of_models_that_give_some(
    run_dir: Path, toy_config_text: str, request: pytest.FixtureRequest
) -> None:
    home, shape = run_dir.parent.parent, request.node.callspec.params["run_dir"]
    asked = [*overrides(home, shape, home / "runs"), ALIGN]
    untaught = load_config(home / "toy.yaml", [*asked, "teach.tasks.shares.reasoning.passes=0"])
    with pytest.raises(ConfigError, match=r"align\.group_policy\.reasoning: .* set teach\.tasks\.shares\.reasoning"):
        build_stages(untaught)
    wordless = load_config(home / "toy.yaml", [*asked, "generator.model.lm=null"])
    with pytest.raises(ConfigError, match=r"align\.group_policy\.reasoning: .* set generator\.model\.lm"):
        build_stages(wordless)
