"""The claim: group policy optimisation makes the supervised generator better at what is served, within its guards.

Runs `configs/beauty.yaml` under several seeds (finished runs are only read), tunes each run's generator as the section
`align` of `configs/beauty-aligned.yaml` says, and compares the served lists before and after, user by user:

    recsys bench alignment [--seeds 3] [--data-path FOLDER] [--variants policy exact prefix ...] [--updates N] [--json]

Early stopping sees a sample of validation cases (`align.validation_users`); `validation` below is measured on the
others, `test` on all test cases. Seen items are masked, lists are those of 50 beams.

Variants beside `policy`: `exact` and `prefix` (labelled prompts, rewarded by the exact item alone, or by the shared
prefix), `vocabulary` (as `policy`, with probabilities over all codes instead of the legal ones), `sdpo_beam` and
`sdpo_random` (S-DPO on training pairs, with negatives from the policy's own beams or at random), `sdpo_unseen_beam` and
`sdpo_unseen_random` (the same on what some users took in validation, which the supervised model has not learned by
heart; measured on the other users).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from recsys.alignment.builders.beams import beam_pairs
from recsys.alignment.builders.config import BeamPairsConfig
from recsys.data import Examples, IntArray
from recsys.evaluation.bootstrap import UserBootstrap
from recsys.evaluation.metrics import CaseMetric, accuracy_metrics
from recsys.generator import GenerativeRecommender
from training.bench import run_seeds
from training.config import RunConfig, load_config, stored_config
from training.layout import ALIGN_REPORT, DATA, ENCODE, PAIRS, RETRIEVE, TOKENIZE, TRAIN
from training.pipeline import Workspace
from training.runs import packaged_config
from training.stages import align, data, encode, pairs, tokenize, train

_METRICS = ("recall@1", "recall@10", "ndcg@10", "recall@50")
_LABELLED = ["align.prompts={labelled: 50000, current: false}"]
_GRPO = [
    "align.group_policy.policy.advantage=grpo",
    "align.group_policy.policy.weight_power=1",
    "align.group_policy.policy.kl_place=loss",
    "align.group_policy.policy.kl_weight=0.001",
]
_PAIRED = BeamPairsConfig(max_cases=6000)
_SDPO = ["align.method=preference", f"pairs={{beams: {{max_cases: {_PAIRED.max_cases}}}}}"]
_ANCHORED = ["align.preference.loss={name: sdpo, beta: 0.1, sft_weight: 1.0}", "align.preference.learning_rate=2e-5"]
"""Without an anchor as strong as the preference, each epoch is worse than none."""
VARIANTS: dict[str, list[str]] = {
    "policy": [],
    "exact": [*_LABELLED, *_GRPO, "align.rewards.terms=[{kind: exact}]"],
    "prefix": [*_LABELLED, *_GRPO, "align.rewards.terms=[{kind: prefix}, {kind: rank, weight: 0.3}]"],
    "vocabulary": ["align.group_policy.policy.normalise=vocabulary"],
    "sdpo_beam": _SDPO,
    "sdpo_random": [*_SDPO, "align.preference.negatives=random"],
    "sdpo_unseen_beam": [*_SDPO, *_ANCHORED],
    "sdpo_unseen_random": [*_SDPO, *_ANCHORED, "align.preference.negatives=random"],
}
"""Overrides of the configuration by variant."""
_UNSEEN = {"sdpo_unseen_beam", "sdpo_unseen_random"}
"""Variants whose pairs are validation cases of users on whom nothing is measured."""


def main(arguments: list[str]) -> dict[str, Any]:
    """By variant: metrics before and after with paired differences for each seed, and what the tuning cost."""
    parser = argparse.ArgumentParser(prog="recsys bench alignment", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, choices=range(1, 101), metavar="N", help="seeds 0 .. N - 1")
    parser.add_argument("--data-path", type=Path, help="folder with the data set in the import format")
    parser.add_argument("--variants", nargs="+", default=["policy"], choices=list(VARIANTS), help="what is compared")
    parser.add_argument("--updates", type=int, help="of group policy optimisation, instead of the configuration's")
    options = parser.parse_args(arguments)
    overrides = [f"data.path={options.data_path}"] if options.data_path else []
    runs = run_seeds("beauty", "beauty", options.seeds, overrides)
    if options.updates is not None:
        overrides.append(f"align.group_policy.updates={options.updates}")
    variants: dict[str, Any] = {}
    for name in options.variants:
        found = [
            _tuned(run, seed, [*overrides, *VARIANTS[name]], unseen_pairs=name in _UNSEEN)
            for seed, run in enumerate(runs)
        ]
        variants[name] = {"seeds": found, "mean": _means(found)}
    first = variants[options.variants[0]]["mean"]
    return {"gain_validation": first["validation"]["gain"], "gain_test": first["test"]["gain"], "variants": variants}


def _tuned(run: Path, seed: int, overrides: list[str], *, unseen_pairs: bool) -> dict[str, Any]:
    config = load_config(
        packaged_config("beauty-aligned"),
        [*overrides, f"run.seed={seed}", f"run.dir={run.parent}", f"run.name={run.name}"],
    )
    settings = config.align
    assert settings is not None, "beauty-aligned has the section"
    split = data.load_split(run / DATA)
    unseen = _others(split.valid, train.sample(split.valid, settings.validation_users, seed))
    cases = {"validation": unseen, "test": split.test}
    paired = None
    if unseen_pairs:
        paired = train.sample(unseen, _PAIRED.max_cases, seed)
        cases = {name: _others(part, paired) for name, part in cases.items()}
    before = {name: _lists(config, run, run / TRAIN, part) for name, part in cases.items()}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        started = time.monotonic()
        inputs = {name: run / name for name in (DATA, ENCODE, TOKENIZE, TRAIN, RETRIEVE)}
        if paired is not None:
            inputs[PAIRS] = _pairs_of(config, run, paired, place / PAIRS)
        elif config.pairs is not None:
            inputs[PAIRS] = _build(pairs.stage(config, config.pairs), inputs, place / PAIRS)
        result = _build(align.stage(config, settings), inputs, place / "align")
        seconds = time.monotonic() - started
        after = {name: _lists(config, run, result, part) for name, part in cases.items()}
        report = json.loads((result / ALIGN_REPORT).read_text())
    return {
        "seconds": seconds,
        "best": report["best"],
        "curve": report["curve"],
        **{name: _compared(part, before[name], after[name], split.num_items, seed) for name, part in cases.items()},
    }


def _build(stage: Any, inputs: dict[str, Path], place: Path) -> Path:
    output, resume = place / "output", place / "resume"
    output.mkdir(parents=True)
    resume.mkdir()
    stage.build(Workspace(inputs=inputs, output=output, resume=resume, run_dir=place))
    return output


def _pairs_of(config: RunConfig, run: Path, cases: Examples, place: Path) -> Path:
    """What stage `pairs` would leave of these cases."""
    table = beam_pairs(
        _recommender(run, run / TRAIN),
        cases,
        data.load_interactions(run / DATA).user_ids,
        count=_PAIRED.num_rejected,
        beams=_PAIRED.beams,
        mask_seen=config.evaluation.mask_seen,
        created_by=f"generator of run {run.name}",
    )
    place.mkdir()
    table.save(place / pairs.PAIRS_FILE)
    return place


def _others(cases: Examples, seen: Examples) -> Examples:
    """The cases of users that are not among `seen`."""
    rows = np.flatnonzero(~np.isin(cases.histories.users, seen.histories.users))
    return cases.select(rows)


def _lists(config: RunConfig, run: Path, directory: Path, cases: Examples) -> IntArray:
    return train.rank(
        _recommender(run, directory), cases.histories, 50, beams=50, mask_seen=config.evaluation.mask_seen
    )


def _recommender(run: Path, directory: Path) -> GenerativeRecommender:
    ids, vectors = tokenize.load_ids(run / TOKENIZE), encode.load_embeddings(run / ENCODE)
    return train.load_recommender(directory, stored_config(run).generator, ids, vectors)


def _compared(cases: Examples, before: IntArray, after: IntArray, num_items: int, seed: int) -> dict[str, Any]:
    first, second = (accuracy_metrics(lists, cases.targets, (1, 10, 50)) for lists in (before, after))
    bootstrap = UserBootstrap(cases.histories.users, n_resamples=1000, seed=seed, confidence=0.95)
    pairs_of: list[tuple[CaseMetric, CaseMetric]] = [(second[name], first[name]) for name in _METRICS]
    differences = dict(zip(_METRICS, map(asdict, bootstrap.differences(pairs_of)), strict=True))
    coverage = [len(np.unique(lists[:, :10])) / num_items for lists in (before, after)]
    return {
        "before": {name: float(first[name].numerator.mean()) for name in _METRICS} | {"coverage": coverage[0]},
        "after": {name: float(second[name].numerator.mean()) for name in _METRICS} | {"coverage": coverage[1]},
        "difference": differences,
        "gain": float(second["ndcg@10"].numerator.mean() / first["ndcg@10"].numerator.mean() - 1),
        "coverage_ratio": coverage[1] / coverage[0],
        "cases": len(cases),
    }


def _means(found: list[dict[str, Any]]) -> dict[str, Any]:
    def spread(values: list[float]) -> dict[str, Any]:
        return {
            "mean": statistics.fmean(values),
            "std": statistics.stdev(values) if len(values) > 1 else None,
        }

    policies = [entry for one in found for entry in one["curve"] if "zero_variance" in entry]
    summary: dict[str, Any] = {
        name: {
            "gain": statistics.fmean(one[name]["gain"] for one in found),
            "coverage_ratio": statistics.fmean(one[name]["coverage_ratio"] for one in found),
            **{
                side: {metric: spread([one[name][side][metric] for one in found]) for metric in _METRICS}
                for side in ("before", "after")
            },
        }
        for name in ("validation", "test")
    }
    summary["seconds"] = statistics.fmean(one["seconds"] for one in found)
    if policies:
        summary["zero_variance"] = statistics.fmean(entry["zero_variance"] for entry in policies)
    return summary
