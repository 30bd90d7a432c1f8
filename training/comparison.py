"""Compares models of finished runs user by user. Fits and ranks nothing: reads the lists that evaluations kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from recsys.errors import ArtifactError, DataError
from recsys.evaluation.bootstrap import Interval, UserBootstrap
from recsys.evaluation.config import EvaluationConfig
from recsys.evaluation.metrics import CaseMetric, accuracy_metrics
from training.layout import EVALUATE, LISTS


def paired_differences(
    first: Sequence[Path],
    second: Sequence[Path],
    config: EvaluationConfig | None = None,
    *,
    models: tuple[str, str] = ("generator", "generator"),
) -> dict[str, Interval]:
    """How much better a model of the runs `first` is than one of `second`, on the same users.

    A case counts with its mean over a side's runs (the seeds), and users are resampled: an interval without 0 is a
    difference that these users support for these seeds.

    Args:
        first: directories of finished runs of one method, one a seed.
        second: those of the other method, evaluated on the same cases.
        config: cut-offs and resampling. None = the default, with those of its cut-offs that all lists reach.
        models: which model of a run's report stands for each side.

    Raises:
        ArtifactError: a run is not evaluated, or has no such model.
        DataError: a side is empty, the runs were evaluated on different cases, or lists are shorter than a cut-off.
    """
    if not first or not second:
        raise DataError("a comparison needs at least one run on each side")
    sides = [[_read(run, model) for run in runs] for runs, model in zip((first, second), models, strict=True)]
    cases = sides[0][0].select("user", "target")
    for frame, run in zip([*sides[0], *sides[1]], [*first, *second], strict=True):
        if not frame.select("user", "target").equals(cases):
            raise DataError(
                f"{run} was evaluated on other cases than {first[0]}; compare runs of one data set and split"
            )
    longest = min(len(frame["items"][0]) for frames in sides for frame in frames)
    if config is None:
        default = EvaluationConfig()
        config = default.model_copy(update={"ks": tuple(k for k in default.ks if k <= longest)})
    elif max(config.ks) > longest:
        raise DataError(f"the runs kept lists of {longest} items, but ks asks for {max(config.ks)}; lower it")
    users, targets = (cases[name].to_numpy() for name in ("user", "target"))
    means = [_mean_metrics(frames, targets, config.ks) for frames in sides]
    bootstrap = UserBootstrap(users, n_resamples=config.n_bootstrap, seed=config.seed, confidence=config.confidence)
    names = list(means[0])
    return dict(zip(names, bootstrap.differences([(means[0][name], means[1][name]) for name in names]), strict=True))


def _read(run: Path, model: str) -> pl.DataFrame:
    path = run / EVALUATE / LISTS
    try:
        return pl.read_parquet(path, columns=["user", "target", model]).rename({model: "items"})
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ArtifactError(f"cannot read {path}: {error}; finish the run with `recsys run CONFIG`") from error


def _mean_metrics(frames: Sequence[pl.DataFrame], targets: np.ndarray, ks: Sequence[int]) -> dict[str, CaseMetric]:
    measured = [accuracy_metrics(np.array(frame["items"].to_list()), targets, tuple(ks)) for frame in frames]
    return {
        name: CaseMetric(
            numerator=np.mean([metrics[name].numerator for metrics in measured], axis=0),
            denominator=measured[0][name].denominator,
        )
        for name in measured[0]
    }
