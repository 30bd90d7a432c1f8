"""How like real users the simulated ones are, on users whom the model has not seen.

- Choices: each held-out choice among drawn alternatives. AUC is the share of alternatives that the model likes less;
  the calibration error is of the probability of every option.
- Lengths of sessions: Kolmogorov-Smirnov distance, every user counting once, where the log has times.
- Dynamics: which category follows which. Simulated users with the same histories take as many items from the whole
  catalogue as the real ones then did, on their own: nothing that the real ones took after that corrects them. The
  distance is the L1 norm between the two tables of transitions, as shares. Two runs of the simulator differ too, the
  tables being of few choices: that noise is given beside it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from recsys.alignment.reward_models.quality import ProbabilityQuality, probability_quality
from recsys.data.sequences import IntArray, Sequences
from recsys.evaluation.bootstrap import Interval, UserBootstrap
from recsys.evaluation.metrics import CaseMetric
from recsys.simulator.behaviour.choice_sets import sampled_choices
from recsys.simulator.behaviour.fitting import choice_probabilities, choice_utilities
from recsys.simulator.behaviour.logged_sessions import LoggedSessions
from recsys.simulator.behaviour.model import ChoiceModel
from recsys.simulator.behaviour.patience import Patience
from recsys.simulator.sessions.crowd import Crowd

DoubleArray = npt.NDArray[np.float64]

LEAST_AUC, MOST_ECE, MOST_LENGTH_DISTANCE, MOST_TRANSITION_DISTANCE = 0.70, 0.05, 0.10, 0.15
"""What a simulator must meet before its verdicts are worth reading."""

_OPTIONS = 10
_MOST_CHOICES = 30
_LONGEST = 1000
_FUTURE = 40
_RUNS = 5


@dataclass(frozen=True, kw_only=True)
class Validity:
    """A choice model on held-out users."""

    num_users: int
    num_choices: int
    auc: Interval
    """Interval over users."""
    calibration: ProbabilityQuality
    """Of the options' probabilities."""
    length_distance: float | None
    """None where the log has no times."""
    transition_distance: float
    """Of the real users from the mean of runs of the simulator."""
    transition_noise: float
    """Of one more run from the same mean: what the distance would be if the real users were simulated ones."""
    transition_excess: float
    """The distance without the noise, which adds to it in squares (of each cell, roughly): what is judged."""

    def failures(self) -> list[str]:
        """What is not met, in words; transitions are judged where the log has sessions."""
        ece, length, transition = self.calibration.ece, self.length_distance, self.transition_excess
        checks = [
            (self.auc.value < LEAST_AUC, f"AUC {self.auc.value:.3f} is below {LEAST_AUC}"),
            (ece > MOST_ECE, f"calibration error {ece:.3f} is above {MOST_ECE}"),
            (
                length is not None and length > MOST_LENGTH_DISTANCE,
                f"lengths of sessions are {length or 0:.3f} apart, more than {MOST_LENGTH_DISTANCE}",
            ),
            (
                length is not None and transition > MOST_TRANSITION_DISTANCE,
                f"transitions of categories are {transition:.3f} off, more than {MOST_TRANSITION_DISTANCE}",
            ),
        ]
        return [words for failed, words in checks if failed]

    def to_json(self) -> dict[str, Any]:
        """For a report."""
        return {**asdict(self), "failures": self.failures()}


def validity(model: ChoiceModel, held: LoggedSessions, seed: int = 0) -> Validity:
    """Measure on whole histories of users that the model was not fitted on.

    Raises:
        DataError: no history has two items.
    """
    sets = sampled_choices(
        held.log,
        model.featurizer,
        alternatives=_OPTIONS - 1,
        most_per_user=_MOST_CHOICES,
        seed=seed,
        session_starts=held.starts,
    )
    there = np.isfinite(sets.corrections)
    utilities = choice_utilities(sets, model.feature_weights, model.category_constants)
    others = there[:, 1:]
    below = (utilities[:, 1:] < utilities[:, :1]) + 0.5 * (utilities[:, 1:] == utilities[:, :1])
    auc = CaseMetric(numerator=(below * others).sum(axis=1), denominator=others.sum(axis=1).astype(np.float64))
    bootstrap = UserBootstrap(sets.owners, n_resamples=1000, seed=seed, confidence=0.95)
    happened = np.zeros(there.shape, dtype=bool)
    happened[:, 0] = True
    probabilities = choice_probabilities(sets, utilities)
    distance, noise = _transitions(model, held, seed)
    return Validity(
        num_users=bootstrap.num_users,
        num_choices=len(sets),
        auc=bootstrap.intervals([auc])[0],
        calibration=probability_quality(probabilities[there], happened[there]),
        length_distance=None if held.starts is None else length_distance(model.parameters.patience, held),
        transition_distance=distance,
        transition_noise=noise,
        transition_excess=float(np.sqrt(max(distance**2 - noise**2, 0.0))),
    )


def length_distance(patience: Patience, held: LoggedSessions) -> float:
    """Largest difference of the two distribution functions, that of sessions in which each step is a choice."""
    lengths, weights = held.lengths()
    lengths = np.minimum(lengths, _LONGEST)
    real = np.cumsum(np.bincount(lengths, weights, _LONGEST + 1)[1:]) / weights.sum()
    never, always = np.zeros(1, dtype=np.int64), np.ones(1)
    staying = [1 - patience.leaving(step, never, always)[0] for step in range(_LONGEST)]
    # Whoever is still there is at the last length: both are cut.
    return float(np.abs(real - (1 - np.cumprod(staying)))[:-1].max())


def _transitions(model: ChoiceModel, held: LoggedSessions, seed: int) -> tuple[float, float]:
    """Distance and noise, see `Validity`."""
    log = held.log
    rows = np.flatnonzero(log.lengths > 1)
    future = np.minimum(log.lengths_of(rows) // 2, _FUTURE)
    before = Sequences.from_lists([log[row][:-count] for row, count in zip(rows.tolist(), future, strict=True)])
    sessions = np.zeros_like(rows)
    real = [log[row][-count:] for row, count in zip(rows.tolist(), future, strict=True)]
    runs = []
    for luck in range(_RUNS):
        crowd = Crowd(model, before, users=rows, sessions=sessions, seed=seed + luck)
        had = [set(history.tolist()) for history in before]
        taken = np.full((len(rows), int(future.max())), -1)
        for step in range(taken.shape[1]):
            active = np.flatnonzero(future > step)
            if held.starts is not None:
                crowd.begin_session(active[held.starts[log.offsets[rows + 1][active] - future[active] + step]])
            taken[active, step] = crowd.take_anything(active, [had[row] for row in active])
            for row, item in zip(active.tolist(), taken[active, step].tolist(), strict=True):
                had[row].add(item)
        runs.append([items[:count] for items, count in zip(taken, future, strict=True)])
    last = [history[-1:] for history in before]
    tables = np.stack([_table(last, futures, model.categories) for futures in runs])
    others = (tables.sum(axis=0) - tables) / (_RUNS - 1)
    # Reality takes the place of one run: compared with as many of the others.
    distance = np.abs(_table(last, real, model.categories) - others).sum(axis=(1, 2)).mean()
    return float(distance), float(np.abs(tables - others).sum(axis=(1, 2)).mean())


def _table(last: list[IntArray], futures: list[IntArray], categories: IntArray) -> DoubleArray:
    """float64 [categories, categories]: share of each pair among what followed what, sums to 1."""
    size = int(categories.max()) + 1
    table: DoubleArray = np.zeros((size, size))
    for before, future in zip(last, futures, strict=True):
        path = categories[np.concatenate([before, future])]
        np.add.at(table, (path[:-1], path[1:]), 1.0)
    table /= table.sum()
    return table
