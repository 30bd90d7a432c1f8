"""Weights of groups of actions in place of actions: where items of one semantic-ID prefix are liked alike, the log of
one says something about the others, and few groups have weights of small variance.

MIPS: Saito and Joachims, "Off-policy evaluation for large action spaces via embeddings", ICML 2022.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from recsys.data.sequences import IntArray
from recsys.simulator.off_policy.errors import BadLogError
from recsys.simulator.off_policy.log import BanditLog, FloatArray, check_policy


def prefix_groups(codes: IntArray, depth: int) -> IntArray:
    """int64 [K]: the group of each action, those with the same first `depth` codes.

    Args:
        codes: int64 [K, levels], semantic IDs.
        depth: 1 .. levels; all codes of unique semantic IDs make every action its own group.
    """
    if not 1 <= depth <= codes.shape[1]:
        raise ValueError(f"depth must be 1..{codes.shape[1]}, got {depth}")
    _, groups = np.unique(codes[:, :depth], axis=0, return_inverse=True)
    return np.asarray(groups.reshape(-1), dtype=np.int64)


def marginalised_weights(log: BanditLog, target: FloatArray, groups: IntArray) -> FloatArray:
    """float64 [n]: how much more likely the target takes any action of the group of the one that was taken.

    Args:
        log: with `behaviour`, the whole policy that served.
        target: float64 [C, K].
        groups: int64 [K].

    Raises:
        BadLogError: the log has no `behaviour`, or the target is no policy.
    """
    if log.behaviour is None:
        raise BadLogError("marginalised weights need the whole policy that served; give the log its behaviour")
    check_policy("target", target, log)
    member = sparse.csr_array(
        (np.ones(len(groups)), (np.arange(len(groups)), groups)), shape=(len(groups), int(groups.max()) + 1)
    )
    contexts, taken = log.context_of, groups[log.actions]
    wanted, served = (np.asarray(policy @ member) for policy in (target, log.behaviour))
    return np.asarray(wanted[contexts, taken] / served[contexts, taken])
