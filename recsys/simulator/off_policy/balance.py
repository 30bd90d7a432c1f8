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

_INVERSE_PENALTY = 1.0
_MAX_ITERATIONS = 1000


def balanced_weights(log: BanditLog, target: FloatArray, *, num_folds: int, seed: int) -> FloatArray:
    """float64 [n], each from a classifier that was fitted on other users; the log's propensities are not read.

    They are too large by about one over the rounds of a context and action (odds of noisy counts): estimates from them
    must be self-normalised.

    The classifier knows the action and, for each action, the features of the context. What the target would take is
    not drawn but counted as it is likely, which adds no chance of its own.

    Args:
        log: n rounds.
        target: float64 [C, K].
        num_folds: at least 2.
        seed: of the folds.
    """
    folds, contexts = user_folds(log.user_of, num_folds, seed), log.context_of
    weights = np.empty(len(log))
    for fold in np.unique(folds):
        others, rows = (np.flatnonzero(mask) for mask in (folds != fold, folds == fold))
        # A pair of context and action is one row, with how often it was logged, or the target would take it, as weight.
        logged, counts = np.unique(_pairs(log, others), return_counts=True)
        served, of_context = np.unique(contexts[others], return_counts=True)
        wanted = (served[:, None] * log.num_actions + np.arange(log.num_actions)).ravel()
        expected = (of_context[:, None] * target[served]).ravel()
        model = LogisticRegression(C=_INVERSE_PENALTY, max_iter=_MAX_ITERATIONS)
        model.fit(
            _design(log, np.concatenate([logged, wanted[expected > 0]])),
            np.repeat([0, 1], [len(logged), int((expected > 0).sum())]),
            sample_weight=np.concatenate([counts, expected[expected > 0]]),
        )
        asked, index = np.unique(_pairs(log, rows), return_inverse=True)
        weights[rows] = np.exp(model.decision_function(_design(log, asked)))[index]
    return weights


def _pairs(log: BanditLog, rows: IntArray) -> IntArray:
    return np.asarray(log.context_of[rows] * log.num_actions + log.actions[rows])


def _design(log: BanditLog, pairs: IntArray) -> sparse.csr_array:
    """One column an action, and one for each action and feature of the context."""
    contexts, actions = np.divmod(pairs, log.num_actions)
    columns = [np.ones(len(pairs))]
    if log.features is not None:
        columns += [column[contexts] for column in log.features.T]
    blocks = []
    for column in columns:
        there = np.flatnonzero(column)
        block = sparse.csr_array((column[there], (there, actions[there])), shape=(len(pairs), log.num_actions))
        blocks.append(block)
    return sparse.csr_array(sparse.hstack(blocks, format="csr"))
