"""How like real users the simulated ones are, on users whom the model has not seen.

- Choices: each held-out choice among drawn alternatives. AUC is the share of alternatives that the model likes less;
  the calibration error is of the probability of every option.
- Lengths of sessions: Kolmogorov-Smirnov distance, every user counting once, where the log has times.
- Dynamics: which category follows which. Simulated users with the same histories take as many items from the whole
  catalogue as the real ones then did; the distance is the L1 norm between the two tables of transitions, as shares.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from recsys.alignment.reward_models.quality import ProbabilityQuality, probability_quality
from recsys.data.catalog import Catalog
from recsys.data.sequences import IntArray, Sequences
from recsys.evaluation.bootstrap import Interval, UserBootstrap
from recsys.evaluation.metrics import CaseMetric
from recsys.simulator.behaviour.choice_sets import sampled_choices
from recsys.simulator.behaviour.fitting import choice_probabilities
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
    transition_noise: float
    """What the distance would be on average if both tables were samples of one distribution."""

    def failures(self) -> list[str]:
        """What is not met, in words; transitions are judged where the log has sessions."""
        ece, length, transition = self.calibration.ece, self.length_distance, self.transition_distance
        checks = [
            (self.auc.value < LEAST_AUC, f"AUC {self.auc.value:.3f} is below {LEAST_AUC}"),
            (ece > MOST_ECE, f"calibration error {ece:.3f} is above {MOST_ECE}"),
            (
                length is not None and length > MOST_LENGTH_DISTANCE,
                f"lengths of sessions are {length or 0:.3f} apart, more than {MOST_LENGTH_DISTANCE}",
            ),
            (
                length is not None and transition > MOST_TRANSITION_DISTANCE,
                f"transitions of categories are {transition:.3f} apart, more than {MOST_TRANSITION_DISTANCE}",
            ),
        ]
        return [words for failed, words in checks if failed]

    def to_json(self) -> dict[str, Any]:
        """For a report."""
        return {**asdict(self), "failures": self.failures()}


def validity(model: ChoiceModel, catalog: Catalog, held: LoggedSessions, seed: int = 0) -> Validity:
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
    utilities = sets.features @ model.feature_weights
    others = there[:, 1:]
    below = (utilities[:, 1:] < utilities[:, :1]) + 0.5 * (utilities[:, 1:] == utilities[:, :1])
    auc = CaseMetric(numerator=(below * others).sum(axis=1), denominator=others.sum(axis=1).astype(np.float64))
    bootstrap = UserBootstrap(sets.owners, n_resamples=1000, seed=seed, confidence=0.95)
    happened = np.zeros(there.shape, dtype=bool)
    happened[:, 0] = True
    probabilities = choice_probabilities(sets, model.feature_weights)
    distance, noise = _transition_distance(model, catalog, held, seed)
    return Validity(
        num_users=bootstrap.num_users,
        num_choices=len(sets),
        auc=bootstrap.intervals([auc])[0],
        calibration=probability_quality(probabilities[there], happened[there]),
        length_distance=None if held.starts is None else length_distance(model.parameters.patience, held),
        transition_distance=distance,
        transition_noise=noise,
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


def main_categories(catalog: Catalog) -> IntArray:
    """int64 [num_items]: of each item its first category that not more than half of the items have; 0 = none."""
    lists = catalog.frame["categories"].to_list()
    names, counts = np.unique([name for entries in lists for name in set(entries)], return_counts=True)
    index = {name: place + 1 for place, name in enumerate(names.tolist()) if counts[place] <= len(lists) / 2}
    return np.array([next((index[name] for name in entries if name in index), 0) for entries in lists], dtype=np.int64)


def _transition_distance(model: ChoiceModel, catalog: Catalog, held: LoggedSessions, seed: int) -> tuple[float, float]:
    log = held.log
    rows = np.flatnonzero(log.lengths > 1)
    future = np.minimum(log.lengths[rows] // 2, _FUTURE)
    before = Sequences.from_lists([log[row][:-count] for row, count in zip(rows.tolist(), future, strict=True)])
    crowd = Crowd(model, before, users=rows, sessions=np.zeros_like(rows), seed=seed)
    last = np.array([history[-1] for history in before])
    had = [set(history.tolist()) for history in before]
    begin = log.offsets[rows + 1] - future
    real, simulated = [], []
    previous_real, previous = last, last
    for step in range(int(future.max())):
        active = np.flatnonzero(future > step)
        places = begin[active] + step
        if held.starts is not None:
            crowd.begin_session(active[held.starts[places]])
        taken = crowd.take_anything(active, [had[row] for row in active])
        for row, item in zip(active.tolist(), taken.tolist(), strict=True):
            had[row].add(item)
        real.append(np.stack([previous_real[active], log.items[places]], axis=1))
        simulated.append(np.stack([previous[active], taken], axis=1))
        previous_real, previous = previous_real.copy(), previous.copy()
        previous_real[active], previous[active] = log.items[places], taken
    categories = main_categories(catalog)
    size = int(categories.max()) + 1
    tables = []
    for pairs in (np.concatenate(real), np.concatenate(simulated)):
        cells = categories[pairs[:, 0]] * size + categories[pairs[:, 1]]
        tables.append(np.bincount(cells, minlength=size * size) / len(cells))
    count = sum(len(part) for part in real)
    pooled = (tables[0] + tables[1]) / 2
    # The mean absolute difference of two samples of a share p is sqrt(4 p (1 - p) / (pi n)).
    noise = np.sqrt(4 * pooled * (1 - pooled) / (np.pi * count)).sum()
    return float(np.abs(tables[0] - tables[1]).sum()), float(noise)
