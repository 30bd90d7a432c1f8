"""The claims: estimators find what is so on worlds whose truth is known, their intervals hold it as often as they say,
millions of rounds take seconds, and on the Open Bandit sample no more is concluded than so few clicks allow.

Worlds have 5 contexts and 10 actions. `errors` compares a reward model fitted on other users with one that is 20 % low;
`coverage` is of 95 % intervals at 1,000 rounds: of a usual world, of one with 2 rewards in 100 rounds, and of one whose
users have five rounds each and tastes of their own. Open Bandit: the log of one policy estimates the other, whose own
log is the truth, itself uncertain; the policy "bts" is what its log shows how often at each position, as it learned.

    recsys bench off_policy [--runs 500] [--coverage-runs 2000] [--rows 5000000] [--data-root FOLDER] [--json]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from recsys.simulator.off_policy import (
    BanditLog,
    Estimate,
    OffPolicyConfig,
    OffPolicyReport,
    Predictions,
    Refused,
    Rounds,
    cross_fitted,
    evaluate_policy,
    known_rewards,
)
from recsys.simulator.off_policy.estimators import (
    SHRUNKEN,
    Terms,
    direct,
    doubly_robust,
    estimate,
    ips,
    self_normalised_dr,
    snips,
)
from recsys.simulator.off_policy.synthetic import World

_SIZES = (250, 1_000, 4_000)
_WORLD = World.drawn(seed=0)
_WORLDS: dict[str, tuple[World, dict[str, Any]]] = {
    "usual": (_WORLD, {}),
    "rare_rewards": (replace(_WORLD, expected=0.05 * _WORLD.expected), {}),
    "users_with_tastes": (_WORLD, {"rounds_per_user": 5, "taste": 0.6}),
}
_CODES = np.stack([np.arange(10) // 2, np.arange(10)], axis=1)


def main(arguments: list[str]) -> dict[str, Any]:
    """`speed`, `errors`, `coverage` and, with a data root, `open_bandit` by campaign and direction."""
    parser = argparse.ArgumentParser(prog="recsys bench off_policy", description=__doc__)
    parser.add_argument("--runs", type=int, default=500, help="logs of each size")
    parser.add_argument("--coverage-runs", type=int, default=2_000, help="logs of each world")
    parser.add_argument("--rows", type=int, default=5_000_000, help="rounds of the speed test")
    parser.add_argument("--data-root", type=Path, help="folder with open_bandit_sample")
    options = parser.parse_args(arguments)
    found: dict[str, Any] = {
        "speed": _speed(options.rows),
        "truth": _WORLD.truth,
        "errors": _errors(options.runs),
        "coverage_runs": options.coverage_runs,
        "coverage": {name: _coverage(name, options.coverage_runs) for name in _WORLDS},
        "coverage_by_tuning": {
            tuning: _coverage("usual", options.coverage_runs // 10, tuning, names=list(SHRUNKEN))
            for tuning in ("error", "slope")
        },
    }
    if options.data_root is not None:
        found["open_bandit"] = _open_bandit(options.data_root / "open_bandit_sample")
    return found


def _speed(rows: int) -> dict[str, Any]:
    """CPU seconds, since the machine may be shared: of the formulas, and of a whole report with 1,000 resamples."""
    log = _WORLD.log(rows, seed=0, rounds_per_user=4)
    began = time.process_time()
    rounds = _rounds(log, cross_fitted(log, _WORLD.target, num_folds=3, penalty=100.0, seed=0))
    fitted = time.process_time()
    for terms in _estimators(rounds).values():
        estimate(terms)
    done = time.process_time()
    evaluate_policy(log, _WORLD.target)
    whole = time.process_time() - done
    return {
        "rows": rows,
        "reward_model_s": fitted - began,
        "formulas_s": done - fitted,
        "formulas_rows_per_s": rows / (done - fitted),
        "report_s": whole,
        "report_rows_per_s": rows / whole,
    }


def _errors(runs: int) -> dict[str, Any]:
    """By reward model and estimator: bias and mean squared error for each size, and the slope of their logarithms."""
    errors: dict[str, dict[str, dict[int, list[float]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for size in _SIZES:
        for run in range(runs):
            log = _WORLD.log(size, seed=run)
            models = {
                "cross_fitted": cross_fitted(log, _WORLD.target, num_folds=3, penalty=20.0, seed=run),
                "20_percent_low": known_rewards(log, _WORLD.target, 0.8 * _WORLD.expected),
            }
            for model, predictions in models.items():
                for name, terms in _estimators(_rounds(log, predictions)).items():
                    errors[model][name][size].append(estimate(terms) - _WORLD.truth)
    return {
        model: {name: _error_row(by_size) for name, by_size in by_name.items()} for model, by_name in errors.items()
    } | {"ips_mse_by_theory": [_WORLD.ips_variance() / size for size in _SIZES], "sizes": list(_SIZES)}


def _error_row(by_size: dict[int, list[float]]) -> dict[str, Any]:
    squares = [float(np.square(each).mean()) for each in by_size.values()]
    return {
        "bias": [float(np.mean(each)) for each in by_size.values()],
        "mse": squares,
        "slope": float(np.polyfit(np.log(list(by_size)), np.log(squares), 1)[0]),
    }


def _coverage(
    world_name: str,
    runs: int,
    tuning: Literal["error_bound", "error", "slope"] = "error_bound",
    names: Sequence[str] | None = None,
) -> dict[str, Any]:
    """By estimator: how often each kind of interval held the truth, its median width, the bias, the share of
    refusals."""
    world, options = _WORLDS[world_name]
    held: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in range(runs):
        config = OffPolicyConfig(seed=run, penalty=20.0, tuning=tuning)
        report = evaluate_policy(world.log(1_000, seed=run, **options), world.target, config, codes=_CODES)
        for name in names or report.outcomes:
            outcome = report.outcomes[name]
            held[name]["refused"].append(isinstance(outcome, Refused))
            if isinstance(outcome, Refused):
                print(f"run {run}: {name} refused: {outcome.reason}", file=sys.stderr)
                continue
            held[name]["bias"].append(outcome.value - world.truth)
            for kind in ("bootstrap", "student_t", "bernstein"):
                interval = getattr(outcome, kind)
                if interval is not None:
                    held[name][kind].append(interval.low <= world.truth <= interval.high)
                    held[name][f"{kind}_width"].append(interval.high - interval.low)
    return {
        name: {
            # Widths may be infinite.
            kind: float(np.median(values) if kind.endswith("width") else np.mean(values))
            for kind, values in found.items()
        }
        for name, found in held.items()
    }


def _open_bandit(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for folder in sorted(root.glob("random_*")):
        campaign = folder.name.removeprefix("random_")
        tables = {
            policy: pl.read_csv(root / f"{policy}_{campaign}" / f"{campaign}.csv.gz") for policy in ("random", "bts")
        }
        items = pl.read_csv(folder / "item_context.csv.gz").sort("item_id")
        num_items = len(items)
        uniform = np.full((3, num_items), 1 / num_items)
        counts = np.zeros((3, num_items))
        np.add.at(counts, (tables["bts"]["position"].to_numpy() - 1, tables["bts"]["item_id"].to_numpy()), 1)
        targets = {"random": uniform, "bts": counts / counts.sum(axis=1, keepdims=True)}
        # The sample's features of items, from coarse to fine, in place of semantic IDs.
        codes = np.stack(
            [
                *(items[name].rank("dense").to_numpy().astype(np.int64) for name in _item_features(items)),
                np.arange(num_items),
            ],
            axis=1,
        )
        for logged, target in (("random", "bts"), ("bts", "random")):
            log = _bandit_log(tables[logged], num_items, uniform if logged == "random" else None)
            report = evaluate_policy(log, targets[target], codes=codes)
            found[f"{campaign}: {logged} log, {target} policy"] = _against(report, tables[target])
    return found


def _item_features(items: pl.DataFrame) -> list[str]:
    names = [name for name in items.columns if name.startswith("item_feature_") and items[name].dtype == pl.String]
    return sorted(names, key=lambda name: items[name].n_unique())


def _bandit_log(rows: pl.DataFrame, num_items: int, behaviour: np.ndarray | None) -> BanditLog:
    """Positions are the contexts. The sample names no users, so every round counts as somebody else's."""
    return BanditLog(
        actions=rows["item_id"].to_numpy(),
        rewards=rows["click"].to_numpy().astype(np.float64),
        propensities=rows["propensity_score"].to_numpy(),
        num_actions=num_items,
        contexts=rows["position"].to_numpy() - 1,
        features=np.eye(3),
        behaviour=behaviour,
    )


def _against(report: OffPolicyReport, own: pl.DataFrame) -> dict[str, Any]:
    """The report, and how far each estimate is from what the target earned in its own log."""
    clicks = own["click"].to_numpy().astype(np.float64)
    truth, error = float(clicks.mean()), float(clicks.std(ddof=1) / np.sqrt(len(clicks)))
    differences = {}
    for name, outcome in report.outcomes.items():
        if not isinstance(outcome, Estimate):
            continue
        own_error = (outcome.student_t.high - outcome.student_t.low) / 2 / 1.96
        margin = 1.96 * float(np.hypot(own_error, error))
        gap = outcome.value - truth
        differences[name] = {
            "relative_error": abs(gap) / truth,
            "difference": {"value": gap, "low": gap - margin, "high": gap + margin},
            "relative_half_width": (outcome.student_t.high - outcome.value) / outcome.value,
        }
    return {
        "clicks": report.num_rewarded,
        "own_log": {
            "value": truth,
            "low": truth - 1.96 * error,
            "high": truth + 1.96 * error,
            "clicks": int(clicks.sum()),
        },
        "report": report.as_document(),
        "against_own_log": differences,
        "no_difference_excludes_0": all(
            each["difference"]["low"] <= 0 <= each["difference"]["high"] for each in differences.values()
        ),
        "lifts_that_exclude_0": [
            name
            for name, outcome in report.outcomes.items()
            if isinstance(outcome, Estimate) and not outcome.lift.low <= 0 <= outcome.lift.high
        ],
    }


def _rounds(log: BanditLog, model: Predictions) -> Rounds:
    return Rounds(
        rewards=log.rewards,
        weights=_WORLD.target[log.context_of, log.actions] / log.propensities,
        predicted=model.predicted,
        values=model.values,
    )


def _estimators(rounds: Rounds) -> dict[str, Terms]:
    found = {
        "ips": ips(rounds),
        "snips": snips(rounds),
        "direct": direct(rounds),
        "dr": doubly_robust(rounds),
        "sndr": self_normalised_dr(rounds),
    }
    parameters = {"clipped_ips": 3.0, "switch_dr": 3.0, "dros": 10.0, "subgaussian_ips": 0.1, "subgaussian_dr": 0.1}
    return found | {name: SHRUNKEN[name].terms(rounds, parameter) for name, parameter in parameters.items()}
