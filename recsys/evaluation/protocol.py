"""The evaluation protocol: rank every case with every model, measure, compare. Fits nothing, draws nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from recsys.data.sequences import IntArray
from recsys.data.split import Split
from recsys.errors import DataError
from recsys.evaluation.bootstrap import Interval, UserBootstrap
from recsys.evaluation.config import EvaluationConfig
from recsys.evaluation.metrics import LIST_LENGTH, CaseMetric, ItemPopularity, accuracy_metrics, list_metrics
from recsys.evaluation.ranker import Ranker, rank_cases
from recsys.evaluation.report import EvaluationProtocol, EvaluationReport, Segment, TrainingCurve
from recsys.evaluation.segments import BoolArray, segments

GENERATOR = "generator"
"""Name of the model that baselines are compared with."""

COMPARED_METRICS = (f"recall@{LIST_LENGTH}", f"ndcg@{LIST_LENGTH}")
"""Metrics of the segment rows and of the differences."""


def evaluate(
    rankers: Mapping[str, Ranker],
    split: Split,
    config: EvaluationConfig,
    *,
    subset: Literal["valid", "test"] = "test",
    fitted_on: Literal["train", "train+valid"] = "train",
    seeds: Mapping[str, int] | None = None,
    notes: Mapping[str, str | int | float | bool] | None = None,
    training_curves: Mapping[str, TrainingCurve] | None = None,
    code_usage: Sequence[Sequence[int] | IntArray] | None = None,
) -> EvaluationReport:
    """Rank the cases of `subset` over the whole catalogue with each ranker and report.

    Args:
        rankers: fitted models by the name they have in the report (`generator`, `popularity`, `item_knn`, ...); each
            does its own masking of seen items, which is checked when `config.mask_seen` says so.
        split: the cases, and the training sequences from which popularity is taken.
        config: cut-offs, resampling.
        subset: which cases.
        fitted_on: what the rankers were fitted on; a statement for the report.
        seeds: seeds of the fitted models, for the report.
        notes: further facts for the report's protocol.
        training_curves: learning curves by model, for the report.
        code_usage: items by code, one sequence a level, for the report.

    Raises:
        DataError: there is no case.
        ValueError: a ranker returned impossible lists.
    """
    cases = split.test if subset == "test" else split.valid
    if len(cases) == 0:
        raise DataError(f"nothing to evaluate: the {subset} part of the split has no cases")
    popularity = ItemPopularity.of(split.train, split.num_items)
    bootstrap = UserBootstrap(
        cases.histories.users, n_resamples=config.n_bootstrap, seed=config.seed, confidence=config.confidence
    )
    measured: dict[str, dict[str, CaseMetric]] = {}
    exposure: dict[str, dict[str, Interval]] = {}
    for name, ranker in rankers.items():
        lists = rank_cases(
            name,
            ranker,
            cases,
            max(config.ks),
            num_items=split.num_items,
            mask_seen=config.mask_seen,
            batch_size=config.batch_size,
        )
        measured[name] = accuracy_metrics(lists, cases.targets, config.ks) | list_metrics(lists, popularity)
        exposure[name] = bootstrap.exposure_intervals(lists, split.num_items)
    models = _intervals(bootstrap, measured)
    return EvaluationReport(
        protocol=EvaluationProtocol(
            split=split.protocol.kind,
            subset=subset,
            fitted_on=fitted_on,
            mask_seen=config.mask_seen,
            tie_order=split.protocol.tie_order,
            tie_share=split.protocol.tie_share,
            has_repeats=split.protocol.has_repeats,
            num_items=split.num_items,
            num_users=bootstrap.num_users,
            num_cases=len(cases),
            num_train_interactions=split.protocol.num_train_interactions,
            ks=list(config.ks),
            n_bootstrap=config.n_bootstrap,
            confidence=config.confidence,
            seeds={"bootstrap": config.seed, **(seeds or {})},
            notes=dict(notes or {}),
        ),
        models={name: models[name] | exposure[name] for name in models},
        segments={
            dimension: {label: _segment(bootstrap, measured, mask) for label, mask in groups.items()}
            for dimension, groups in segments(cases, popularity).items()
        },
        differences=_differences(bootstrap, measured),
        training_curves=dict(training_curves) if training_curves else None,
        code_usage=None if code_usage is None else [np.asarray(level).tolist() for level in code_usage],
    )


def _intervals(
    bootstrap: UserBootstrap, measured: Mapping[str, Mapping[str, CaseMetric]]
) -> dict[str, dict[str, Interval]]:
    """One pass of resampling for all models and metrics together."""
    names = [(model, metric) for model, metrics in measured.items() for metric in metrics]
    intervals = bootstrap.intervals([measured[model][metric] for model, metric in names])
    result: dict[str, dict[str, Interval]] = {model: {} for model in measured}
    for (model, metric), interval in zip(names, intervals, strict=True):
        result[model][metric] = interval
    return result


def _segment(bootstrap: UserBootstrap, measured: Mapping[str, Mapping[str, CaseMetric]], mask: BoolArray) -> Segment:
    """Metrics where `mask` holds: cases outside weigh nothing."""
    within = {
        model: {
            name: CaseMetric(numerator=metrics[name].numerator * mask, denominator=metrics[name].denominator * mask)
            for name in COMPARED_METRICS
        }
        for model, metrics in measured.items()
    }
    return Segment(cases=int(mask.sum()), models=_intervals(bootstrap, within))


def _differences(
    bootstrap: UserBootstrap, measured: Mapping[str, Mapping[str, CaseMetric]]
) -> dict[str, dict[str, Interval]]:
    if GENERATOR not in measured:
        return {}
    ours = measured[GENERATOR]
    names = [(model, metric) for model in measured if model != GENERATOR for metric in COMPARED_METRICS]
    intervals = bootstrap.differences([(ours[metric], measured[model][metric]) for model, metric in names])
    result: dict[str, dict[str, Interval]] = {}
    for (model, metric), interval in zip(names, intervals, strict=True):
        result.setdefault(model, {})[metric] = interval
    return result
