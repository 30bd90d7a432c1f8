"""A run with a head an objective: what is served, how it is mixed, and what is refused before anything is done."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from recsys.bundle import Bundle
from recsys.data import Sequences
from recsys.errors import ConfigError
from training.config import RunConfig, load_config
from training.runs import execute
from training.stages import build_stages

PAIRS = "pairs={beams: {max_cases: 60, beams: 5}, novelty: {max_cases: 60, beams: 5, min_ratio: 1.3}}"
ALIGN = (
    "align={method: preference, preference: {negatives: table, epochs: 1},"
    " objectives: {weights: {accuracy: 3, novelty: 1}}}"
)


def configured(text: str, folder: Path, *overrides: str) -> RunConfig:
    path = folder / "toy.yaml"
    path.write_text(text)
    return load_config(path, [f"run.dir={folder}", "fusion=null", "evaluation.baselines=[popularity]", *overrides])


def test_heads_reach_the_bundle_with_the_weights_of_the_run(toy_config_text: str, tmp_path: Path) -> None:
    config = configured(toy_config_text, tmp_path, "data.split.held_out_items=0.1", PAIRS, ALIGN)
    execute(config)
    served = Bundle.load(config.run_dir / "bundle").recommender
    assert served.objectives == {"accuracy": 0.75, "novelty": 0.25}
    report = json.loads((config.run_dir / "align" / "alignment.json").read_text())
    assert report["objectives"] == served.objectives
    assert [entry["weights"]["novelty"] for entry in report["dial"]] == [0, 0.25, 0.5, 0.75, 1]
    # The run's own weights are one of the dial's settings.
    assert report["after"] == {name: value for name, value in report["dial"][1].items() if name != "weights"}
    state = served.model.state_dict()
    assert not torch.equal(state["depth.objectives.0.heads.0.weight"], state["depth.objectives.1.heads.0.weight"])
    evaluated = json.loads((config.run_dir / "evaluate" / "report.json").read_text())
    assert {"generator", "supervised"} <= set(evaluated["models"])
    lists = served.weighted({"novelty": 1}).recommend(Sequences.from_lists([[1, 2]]), 5)
    assert (lists.items >= 0).all()


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        ([PAIRS, ALIGN, "generator.model.shape=flat"], r"needs generator\.model\.shape=nested, got flat"),
        ([PAIRS, ALIGN, "align.preference.negatives=beam"], r"negatives=beam reads no rejected items, so pairs\.nov"),
        (["pairs={beams: {}}", ALIGN], "no pairs of this run are about novelty; they are about accuracy"),
        (
            ["pairs={beams: {}}", "align={method: preference, objectives: {}}"],
            "negatives=beam knows no objectives",
        ),
    ],
)
def test_objectives_that_cannot_be_learned_are_refused(
    overrides: list[str], problem: str, toy_config_text: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=problem):
        build_stages(configured(toy_config_text, tmp_path, *overrides))


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ("{objectives: {}}", "objectives are those of pairs; set method: preference"),
        ("{method: preference, objectives: {weights: {accuracy: 0}}}", "one must be above 0"),
        ("{method: preference, objectives: {weights: {price: 1}}}", r"align\.objectives\.weights.*'accuracy'"),
        ("{method: preference, objectives: {weights: {accuracy: -1}}}", r"align\.objectives\.weights.*-1"),
    ],
)
def test_weights_that_mean_nothing_are_refused(
    section: str, problem: str, toy_config_text: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=problem):
        configured(toy_config_text, tmp_path, f"align={section}")
