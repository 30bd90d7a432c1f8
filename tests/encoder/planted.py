"""Catalogues whose content says who consumes what: groups of items that look alike and share their users."""

from __future__ import annotations

import numpy as np

from recsys.data import Examples, Sequences
from recsys.encoder.graph import GraphEmbeddings
from recsys.encoder.modalities import Modality

GROUPS = 6
GROUP_SIZE = 20
NUM_ITEMS = GROUPS * GROUP_SIZE
NUM_USERS = 240
COLD = np.arange(GROUPS) * GROUP_SIZE
"""One item of each group that nobody has consumed."""
OF_GROUP = np.arange(NUM_ITEMS) // GROUP_SIZE


def content(name: str = "text", dim: int = 16, seed: int = 0, groups: np.ndarray = OF_GROUP) -> Modality:
    """Centre of the group and noise; of one item for each entry of `groups`, the centres the same for any `seed`."""
    centres = np.random.default_rng(7).normal(size=(GROUPS, dim))
    noise = np.random.default_rng(seed).normal(size=(len(groups), dim))
    return Modality.from_vectors(name, (centres[groups] + 0.7 * noise).astype(np.float32))


def behaviour(*, shuffled: bool = False, items_a_user: int = 4) -> tuple[Sequences, Examples]:
    """Training sequences within one group each, and cases that ask for one more item of it.

    `shuffled`: the same cases, but the training sequences hold items of any group.
    """
    random = np.random.default_rng(1)
    lists, targets = [], []
    for user in range(NUM_USERS):
        group = user % GROUPS
        own = group * GROUP_SIZE + 1 + random.permutation(GROUP_SIZE - 1)[: items_a_user + 1]
        lists.append(own[:-1])
        targets.append(own[-1])
    users = list(range(1000, 1000 + NUM_USERS))
    histories = Sequences.from_lists(lists, users=users)
    cases = Examples(histories=histories, targets=np.asarray(targets, dtype=np.int64))
    if not shuffled:
        return histories, cases
    warm = np.setdiff1d(np.arange(NUM_ITEMS), COLD)
    return Sequences.from_lists([random.permutation(warm)[:items_a_user] for _ in lists], users=users), cases


def recall(embeddings: GraphEmbeddings, cases: Examples, k: int = 10) -> float:
    """Over all items that are not in the history."""
    scores = embeddings.user_vectors(cases.histories) @ embeddings.item_vectors.T
    for row, history in enumerate(cases.histories):
        scores[row, history] = -np.inf
    targets = scores[np.arange(len(scores)), cases.targets]
    return float(((scores > targets[:, None]).sum(axis=1) < k).mean())


def cosines(vectors: np.ndarray) -> np.ndarray:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit @ unit.T
