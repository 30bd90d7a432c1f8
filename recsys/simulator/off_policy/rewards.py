"""Reward models that are never asked about the rounds they were fitted on. Know no estimators.

The model is a ridge regression an action, on the features of the context, of what the reward is above the mean of all
rounds. Without features that is the action's mean, shrunk towards that of all as if `penalty` further rounds had it.

Cross-fitting: Chernozhukov et al., "Double/debiased machine learning", 2018. MRDR: Farajtabar, Chow and Ghavamzadeh,
"More robust doubly robust off-policy evaluation", ICML 2018.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from recsys.data.sequences import IntArray
from recsys.simulator.off_policy.log import BanditLog, FloatArray, SlateLog

_CELLS_AT_ONCE = 4_000_000


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """Of a reward model for a log and a target, float64 [n] each."""

    predicted: FloatArray
    """q of the action taken."""
    values: FloatArray
    """Mean of q over the target's actions."""


def cross_fitted(
    log: BanditLog,
    target: FloatArray,
    *,
    num_folds: int,
    penalty: float,
    seed: int,
    round_weights: FloatArray | None = None,
) -> Predictions:
    """Fit a model for each fold of users on all other folds, and predict the fold.

    Args:
        log: n rounds.
        target: float64 [C, K], the policy under test.
        num_folds: at least 2.
        penalty: of the ridge, above 0, in rounds.
        seed: of the folds.
        round_weights: float64 [n], how much a round counts in the fit, not all 0; None: all alike.
    """
    folds = user_folds(log.user_of, num_folds, seed)
    # Of mean 1, so that the penalty is in rounds.
    weights = np.ones(len(log)) if round_weights is None else round_weights / round_weights.mean()
    design = _design(log)
    sums = [_Sums.of(log, design, weights, np.flatnonzero(folds == fold)) for fold in range(num_folds)]
    predicted, values = np.empty(len(log)), np.empty(len(log))
    low, high = float(log.rewards.min()), float(log.rewards.max())
    contexts = log.context_of
    for fold in range(num_folds):
        rows = np.flatnonzero(folds == fold)
        level, slopes = _Sums.total([each for other, each in enumerate(sums) if other != fold]).solve(penalty)
        seen = np.einsum("nd,nd->n", design[contexts[rows]], slopes[log.actions[rows]])
        predicted[rows] = np.clip(level + seen, low, high)
        used, index = np.unique(contexts[rows], return_inverse=True)
        step = max(1, _CELLS_AT_ONCE // log.num_actions)
        parts = [
            np.einsum("ck,ck->c", target[chosen], np.clip(level + design[chosen] @ slopes.T, low, high))
            for chosen in (used[begin : begin + step] for begin in range(0, len(used), step))
        ]
        if parts:
            values[rows] = np.concatenate(parts)[index]
    return Predictions(predicted=predicted, values=values)


def place_and_item_means(
    log: SlateLog, num_items: int, *, num_folds: int, penalty: float, seed: int
) -> tuple[IntArray, FloatArray]:
    """What a place of a list earns, and what an item adds to that: each fold's from the lists of other users.

    Args:
        log: n lists of L places.
        num_items: of the catalogue.
        num_folds: at least 2.
        penalty: shown places that add nothing, with which an item's own are mixed; above 0.
        seed: of the folds.

    Returns:
        int64 [n], the fold of each list; float64 [folds, L, num_items], the expected reward.
    """
    folds = user_folds(log.user_of, num_folds, seed)
    shown = log.items >= 0
    means = np.empty((num_folds, log.items.shape[1], num_items))
    for fold in range(num_folds):
        used = shown & (folds != fold)[:, None]
        of_place = (log.rewards * used).sum(axis=0) / np.maximum(used.sum(axis=0), 1)
        added = np.bincount(log.items[used], (log.rewards - of_place)[used], minlength=num_items)
        counts = np.bincount(log.items[used], minlength=num_items)
        means[fold] = of_place[:, None] + added / (counts + penalty)
    return folds, means


def known_rewards(log: BanditLog, target: FloatArray, q: FloatArray) -> Predictions:
    """Predictions of a given table of expected rewards.

    Args:
        log: n rounds.
        target: float64 [C, K].
        q: float64 [C, K].
    """
    contexts = log.context_of
    return Predictions(predicted=q[contexts, log.actions], values=np.einsum("ck,ck->c", target, q)[contexts])


def robust_round_weights(log: BanditLog, target: FloatArray) -> FloatArray:
    """float64 [n]: under them the fit minimises the variance of DR (MRDR), not the error of the model.

    Never 0, so that a log without chance, which has no such variance, has a fit too.
    """
    chance = log.propensities
    return np.maximum(target[log.context_of, log.actions] * (1 - chance) / np.square(chance), 1e-9)


def user_folds(users: IntArray, num_folds: int, seed: int) -> IntArray:
    """int64 [n]: the fold of each round; all rounds of a user are in one."""
    unique, index = np.unique(users, return_inverse=True)
    folds = np.arange(len(unique)) % num_folds
    return np.asarray(np.random.default_rng(seed).permutation(folds)[index])


def _design(log: BanditLog) -> FloatArray:
    """float64 [C, 1 + d]."""
    constant = np.ones((log.num_contexts, 1))
    return constant if log.features is None else np.concatenate([constant, log.features], axis=1)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Sums:
    """All that a ridge regression an action reads of rounds; sums of two sets of rounds are those of both."""

    gram: FloatArray
    """float64 [K, 1 + d, 1 + d]."""
    moments: FloatArray
    """float64 [K, 1 + d], of features and rewards."""

    @classmethod
    def of(cls, log: BanditLog, design: FloatArray, weights: FloatArray, rows: IntArray) -> _Sums:
        width, places = design.shape[1], (log.actions[rows], log.context_of[rows])
        shape = (log.num_actions, len(design))
        # Rounds with equal action and context become one entry.
        counts = sparse.csr_array((weights[rows], places), shape=shape)
        moments = sparse.csr_array((weights[rows] * log.rewards[rows], places), shape=shape) @ design
        gram = np.empty((log.num_actions, width, width))
        for one in range(width):
            gram[:, one] = np.asarray(counts @ (design[:, one, None] * design))
        return cls(gram=gram, moments=np.asarray(moments))

    @classmethod
    def total(cls, parts: list[_Sums]) -> _Sums:
        return cls(
            gram=np.sum([part.gram for part in parts], axis=0), moments=np.sum([part.moments for part in parts], axis=0)
        )

    def solve(self, penalty: float) -> tuple[float, FloatArray]:
        """The mean reward, and what each action's features add: float64 [K, 1 + d]."""
        rounds = self.gram[:, 0, 0].sum()
        level = float(self.moments[:, 0].sum() / rounds) if rounds > 0 else 0.0
        above = self.moments - level * self.gram[:, 0]
        ridge = self.gram + penalty * np.eye(self.gram.shape[1])
        return level, np.linalg.solve(ridge, above[..., None])[..., 0].astype(np.float64, copy=False)
