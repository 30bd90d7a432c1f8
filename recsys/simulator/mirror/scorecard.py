"""How well probabilities of options foretell what users took: accuracy, log-loss, calibration, place. Knows no models.

Intervals resample users. A temperature is fitted on one half of the users and used on the other, and the other way
round, so that no scene is judged with one that it helped to fit.

Shapes: n scenes, S options.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from recsys.evaluation.bootstrap import UserBootstrap
from recsys.evaluation.metrics import CaseMetric
from recsys.generator.calibration import expected_calibration_error
from recsys.simulator.mirror.scenes import Scene
from recsys.simulator.mirror.simulator import Calibration, Read

DoubleArray = npt.NDArray[np.float64]

RESAMPLES, CONFIDENCE = 2000, 0.95
_BINS = 10


def cross_calibrated(scenes: Sequence[Scene], chances: Sequence[DoubleArray], seed: int) -> list[DoubleArray]:
    """The probabilities after a `Calibration` of the other half of the users."""
    users = np.unique([scene.user for scene in scenes])
    first = set(np.random.default_rng(seed).permutation(users)[: len(users) // 2].tolist())
    halves = [[row for row, scene in enumerate(scenes) if (scene.user in first) == flag] for flag in (True, False)]
    found = list(chances)
    for fitted, applied in (halves, halves[::-1]):
        calibration = Calibration.fit([scenes[row] for row in fitted], [chances[row] for row in fitted])
        for row in applied:
            found[row] = calibration.apply(scenes[row], chances[row])
    return found


def score(scenes: Sequence[Scene], chances: Sequence[DoubleArray], seed: int) -> dict[str, Any]:
    """What the probabilities are worth; `chances` has float64 [S] for each of n scenes of two users at least.

    Returns:
        With intervals: `expected_accuracy` (a drawn option is the one that was taken: the mean probability of it),
        `accuracy` (the likeliest option is; ties count their share), `auc` (the taken option is above another one of
        its slate) and `log_loss` in nats, as read and `calibrated`; and `ece_calibrated`, the gap between probability
        and frequency over all options.
    """
    users = np.array([scene.user for scene in scenes], dtype=np.int64)
    bootstrap = UserBootstrap(users, n_resamples=RESAMPLES, seed=seed, confidence=CONFIDENCE)
    calibrated = cross_calibrated(scenes, chances, seed)
    per_scene = {
        "expected_accuracy": [row[scene.chosen] for scene, row in zip(scenes, chances, strict=True)],
        "accuracy": [top_share(scene, row) for scene, row in zip(scenes, chances, strict=True)],
        "auc": [_auc(scene, row) for scene, row in zip(scenes, chances, strict=True)],
        "log_loss": [_log_loss(scene, row) for scene, row in zip(scenes, chances, strict=True)],
        "log_loss_calibrated": [_log_loss(scene, row) for scene, row in zip(scenes, calibrated, strict=True)],
    }
    intervals = bootstrap.intervals([CaseMetric.mean_of(values) for values in per_scene.values()])
    taken = np.concatenate([np.arange(len(row)) == scene.chosen for scene, row in zip(scenes, calibrated, strict=True)])
    return {
        **{name: asdict(interval) for name, interval in zip(per_scene, intervals, strict=True)},
        "ece_calibrated": expected_calibration_error(np.concatenate(calibrated), taken, _BINS, equal_width=True),
    }


def gain(
    scenes: Sequence[Scene], chances: Sequence[DoubleArray], others: Sequence[DoubleArray], seed: int
) -> dict[str, float]:
    """How much more often the likeliest option was taken than with the `others`, paired by user, with an interval."""
    users = np.array([scene.user for scene in scenes], dtype=np.int64)
    bootstrap = UserBootstrap(users, n_resamples=RESAMPLES, seed=seed, confidence=CONFIDENCE)
    both = [
        CaseMetric.mean_of([top_share(scene, row) for scene, row in zip(scenes, rows, strict=True)])
        for rows in (chances, others)
    ]
    return asdict(bootstrap.differences([(both[0], both[1])])[0])


def agreement(chances: Sequence[DoubleArray], others: Sequence[DoubleArray]) -> float:
    """Share of the scenes in which both have the same likeliest option."""
    return float(np.mean([row.argmax() == other.argmax() for row, other in zip(chances, others, strict=True)]))


def by_place(scenes: Sequence[Scene], reads: Sequence[Read]) -> dict[str, Any]:
    """What place does to a reader.

    Returns:
        `spread`: see `Read.spread`, its mean; `chance`: the mean probability of each place over all scenes and orders,
        all the same for a reader without a favourite letter; `accuracy`: of single orders, by the place at which the
        taken option stood; `accuracy_spread`: the highest less the lowest of them. Places are those of the smallest
        scene.
    """
    size = min(len(scene.options) for scene in scenes)
    chance: list[list[float]] = [[] for _ in range(size)]
    hits: list[list[float]] = [[] for _ in range(size)]
    for scene, read in zip(scenes, reads, strict=True):
        for row, places in zip(read.by_order, read.at.tolist(), strict=True):
            for option, place in enumerate(places):
                if place < size:
                    chance[place].append(float(row[option]))
            if places[scene.chosen] < size:
                hits[places[scene.chosen]].append(top_share(scene, row))
    accuracy = [float(np.mean(values)) if values else None for values in hits]
    known = [value for value in accuracy if value is not None]
    return {
        "spread": float(np.mean([read.spread for read in reads])),
        "chance": [float(np.mean(values)) for values in chance],
        "accuracy": accuracy,
        "accuracy_spread": max(known) - min(known),
    }


def top_share(scene: Scene, chances: DoubleArray) -> float:
    """1 where the taken option is the likeliest, a share of it where several are."""
    best = np.isclose(chances, chances.max(), rtol=1e-9)
    return float(best[scene.chosen] / best.sum())


def _auc(scene: Scene, chances: DoubleArray) -> float:
    return float((rankdata(chances)[scene.chosen] - 1) / (len(chances) - 1))


def _log_loss(scene: Scene, chances: DoubleArray) -> float:
    return float(-np.log(max(chances[scene.chosen], 1e-12)))
