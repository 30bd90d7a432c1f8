"""What an item graph is worth before anything is trained on it (checks 1 and 2 of SIGER, arXiv 2508.06154).

Reads TRAINING sequences only: the last item of each is kept back, the graphs are made of the rest. Trains nothing.

Shapes: N items, k neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from recsys.config import StrictConfig
from recsys.data import IntArray, Sequences
from recsys.encoder.graph.config import SIGERConfig
from recsys.encoder.graph.item_graph import (
    collaborative_graph,
    companions,
    content_graph,
    enhanced_graph,
    semantic_graph,
    strongest,
)
from recsys.encoder.graph.propagation import interaction_matrix
from recsys.encoder.graph.sampling import keep_back_last
from recsys.encoder.modalities import Modality, check_modalities
from recsys.errors import DataError

# Shares of content in the blend for which recall is told.
_SWEEP = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)


class ModalityGraphReport(StrictConfig):
    """One modality's graph against behaviour."""

    name: str
    """The modality."""
    consumed_together: float
    """Share of the pairs of neighbours by content that at least one user has both of; the paper finds under 10 %."""
    together_by_chance: float
    """The same of random pairs of items: what `consumed_together` is to be compared with."""
    companions_found: float
    """Share of the pairs that at least one user has both of that are neighbours by content."""
    recall_by_share: dict[float, float]
    """For each share of content in the enhanced graph, the share of held-out companions among an item's strongest k
    neighbours, itself left out. 1 is content alone, 0 behaviour alone."""
    unseen_recall_by_share: dict[float, float]
    """The same over pairs that no user of the rest has, with neighbours of neighbours: one step of behaviour cannot
    hold these."""


@dataclass(frozen=True, kw_only=True, eq=False)
class GraphReport:
    """Of all modalities."""

    modalities: tuple[ModalityGraphReport, ...]
    """In the order given."""
    num_pairs: int
    """How many held-out pairs the recalls are over: each item of a history with the item kept back."""
    num_unseen_pairs: int
    """How many of them no user of the rest has."""


def graph_report(
    modalities: Sequence[Modality], train: Sequences, num_items: int, config: SIGERConfig, neighbours: int = 10
) -> GraphReport:
    """Compare content, behaviour and their blends as neighbours.

    Args:
        modalities: of the catalogue.
        train: TRAINING sequences only.
        num_items: N.
        config: how the graphs are made; its `semantic_share` is swept, its seed draws the random pairs.
        neighbours: k of the recalls.

    Raises:
        DataError: a modality is empty or not of this catalogue, or no training sequence has an item to keep back.
    """
    check_modalities(modalities, num_items)
    rest, cases = keep_back_last(train, 1.0, np.random.default_rng(config.seed))
    if len(cases) == 0:
        raise DataError("the graph report needs training sequences of at least 3 items, found none; use more data")
    interactions, _ = interaction_matrix(rest, num_items)
    together = companions(interactions)
    sources = cases.histories.items
    targets = np.repeat(cases.targets, cases.histories.lengths)
    unseen = _cells(together, sources, targets) == 0
    collaborative = collaborative_graph(interactions, config)
    reports = []
    for modality in modalities:
        content = content_graph(modality, config.neighbours).tocoo()
        pairs = _distinct_pairs(content.row.astype(np.int64), content.col.astype(np.int64))
        semantic = semantic_graph(modality, interactions, config)
        blends = {share: enhanced_graph(semantic, collaborative, share) for share in _SWEEP}
        found = int((_cells(together, *pairs) > 0).sum())
        reports.append(
            ModalityGraphReport(
                name=modality.name,
                consumed_together=found / max(len(pairs[0]), 1),
                together_by_chance=together.nnz / (num_items * (num_items - 1)),
                companions_found=found / max(together.nnz // 2, 1),
                recall_by_share={
                    share: _recall(graph, sources, targets, neighbours) for share, graph in blends.items()
                },
                unseen_recall_by_share={
                    share: _recall(_two_steps(graph), sources[unseen], targets[unseen], neighbours)
                    for share, graph in blends.items()
                },
            )
        )
    return GraphReport(modalities=tuple(reports), num_pairs=len(targets), num_unseen_pairs=int(unseen.sum()))


def _two_steps(graph: sparse.csr_array) -> sparse.csr_array:
    return sparse.csr_array(graph @ graph)


def _recall(graph: sparse.csr_array, sources: IntArray, targets: IntArray, k: int) -> float:
    """Share of the pairs whose target is among the k strongest others in the row of the source."""
    if len(sources) == 0:
        return 0.0
    others = sparse.csr_array(graph.copy())
    others.setdiag(0.0)
    others.eliminate_zeros()
    return float((_cells(strongest(others, k), sources, targets) > 0).mean())


def _cells(matrix: sparse.csr_array, rows: IntArray, columns: IntArray) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """float64 [n]: the entries at (rows, columns)."""
    return np.asarray(matrix[rows, columns], dtype=np.float64).ravel()


def _distinct_pairs(rows: IntArray, columns: IntArray) -> tuple[IntArray, IntArray]:
    """Unordered pairs of different items, each once."""
    low, high = np.minimum(rows, columns), np.maximum(rows, columns)
    pairs = np.unique(np.stack([low, high], axis=1)[low < high], axis=0)
    return pairs[:, 0], pairs[:, 1]
