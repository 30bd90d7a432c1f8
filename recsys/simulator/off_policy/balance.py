"""Weights without logged propensities: a classifier tells actions that were taken from those the target would take.

If it says that an action is of the target with probability p, its weight is p / (1 - p). Balanced off-policy
evaluation: Sondhi, Arbour and Dimmery, AISTATS 2020.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse
from sklearn.linear_model import LogisticRegression

from recsys.data.sequences import IntArray
from recsys.simulator.off_policy.log import BanditLog, FloatArray
from recsys.simulator.off_policy.rewards import user_folds

_INVERSE_PENALTY = 10.0
_MAX_ITERATIONS = 1000


def balanced_weights(log: BanditLog, target: FloatArray, *, num_folds: int, seed: int) -> FloatArray:
    """float64 [n], each from a classifier that was fitted on other users; the log's propensities are not read.

    The classifier knows the action and, for each action, the features of the context.

    Args:
        log: n rounds.
        target: float64 [C, K].
        num_folds: at least 2.
        seed: of the folds and of the target's actions.
    """
    folds, contexts = user_folds(log.user_of, num_folds, seed), log.context_of
    wanted = _drawn(target, contexts, seed)
    weights = np.empty(len(log))
    for fold in range(num_folds):
        others = np.flatnonzero(folds != fold)
        rows = np.flatnonzero(folds == fold)
        # Equal pairs of context and action are one row with their number as its weight.
        pairs = np.concatenate([_pairs(log, contexts[others], each[others]) for each in (log.actions, wanted)])
        label = np.repeat([0, 1], len(others))
        unique, counts = np.unique(pairs * 2 + label, return_counts=True)
        model = LogisticRegression(C=_INVERSE_PENALTY, max_iter=_MAX_ITERATIONS)
        model.fit(_design(log, unique // 2), unique % 2, sample_weight=counts)
        asked, index = np.unique(_pairs(log, contexts[rows], log.actions[rows]), return_inverse=True)
        weights[rows] = np.exp(model.decision_function(_design(log, asked)))[index]
    return weights


def _drawn(target: FloatArray, contexts: IntArray, seed: int) -> IntArray:
    """int64 [n], an action of the target for each round."""
    chances = np.random.default_rng(seed).random(len(contexts))
    cumulative = np.cumsum(target, axis=1)
    drawn = np.empty(len(contexts), dtype=np.int64)
    order = np.argsort(contexts, kind="stable")
    ends = np.searchsorted(contexts[order], np.arange(len(target) + 1))
    for context in np.unique(contexts):
        rows = order[ends[context] : ends[context + 1]]
        drawn[rows] = np.searchsorted(cumulative[context], chances[rows] * cumulative[context, -1], side="right")
    return np.asarray(np.minimum(drawn, target.shape[1] - 1))


def _pairs(log: BanditLog, contexts: IntArray, actions: IntArray) -> IntArray:
    return contexts * log.num_actions + actions


def _design(log: BanditLog, pairs: IntArray) -> sparse.csr_array:
    """One column an action, and one for each action and feature of the context."""
    contexts, actions = np.divmod(pairs, log.num_actions)
    rows = np.arange(len(pairs))
    blocks = [sparse.csr_array((np.ones(len(pairs)), (rows, actions)), shape=(len(pairs), log.num_actions))]
    if log.features is not None:
        blocks += [
            sparse.csr_array((column[contexts], (rows, actions)), shape=(len(pairs), log.num_actions))
            for column in log.features.T
        ]
    return sparse.csr_array(sparse.hstack(blocks, format="csr"))
