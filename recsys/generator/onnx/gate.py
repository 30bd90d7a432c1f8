"""Does a cheaper form of a recommender rank as well as the recommender itself? Knows lists, not how they were made."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from recsys.config import StrictConfig
from recsys.data.sequences import Examples, IntArray
from recsys.errors import QualityError
from recsys.evaluation.metrics import LIST_LENGTH, accuracy_metrics


class GateConfig(StrictConfig):
    """What a cheaper form may lose, on cases that neither was fitted on."""

    max_recall_drop: float = Field(default=0.02, ge=0, le=1)
    """Largest relative loss of Recall@10."""
    max_ndcg_drop: float = Field(default=0.02, ge=0, le=1)
    """Largest relative loss of NDCG@10."""
    min_overlap: float = Field(default=0.95, ge=0, le=1)
    """Least share of items that both lists of ten have in common, on average."""


class GateReport(StrictConfig):
    """A recommender and its cheaper form on the same cases."""

    cases: int
    """Number of cases."""
    recall: float
    """Recall@10 of the recommender."""
    recall_after: float
    """Recall@10 of its cheaper form."""
    ndcg: float
    """NDCG@10 of the recommender."""
    ndcg_after: float
    """NDCG@10 of its cheaper form."""
    overlap: float
    """Mean share of the recommender's first ten items that the cheaper form has among its own."""

    @property
    def recall_drop(self) -> float:
        """Relative loss of Recall@10; negative for a gain."""
        return 1 - self.recall_after / self.recall

    @property
    def ndcg_drop(self) -> float:
        """Relative loss of NDCG@10; negative for a gain."""
        return 1 - self.ndcg_after / self.ndcg


def compare(lists: IntArray, lists_after: IntArray, cases: Examples) -> GateReport:
    """What the lists of ten (int64 [n, 10], -1 = no item) of a recommender and of its cheaper form come to.

    Raises:
        QualityError: the recommender itself has no hit, so that no loss could be seen.
    """
    before = accuracy_metrics(lists, cases.targets, (LIST_LENGTH,))
    after = accuracy_metrics(lists_after, cases.targets, (LIST_LENGTH,))
    recall, ndcg = f"recall@{LIST_LENGTH}", f"ndcg@{LIST_LENGTH}"
    if not before[recall].numerator.any():
        raise QualityError(f"cases: the model has no hit among {len(cases)}, so no loss can be seen; give more cases")
    shared = (lists[:, :, None] == lists_after[:, None, :]).any(axis=-1) & (lists >= 0)
    return GateReport(
        cases=len(cases),
        recall=float(before[recall].numerator.mean()),
        recall_after=float(after[recall].numerator.mean()),
        ndcg=float(before[ndcg].numerator.mean()),
        ndcg_after=float(after[ndcg].numerator.mean()),
        overlap=float(np.mean(shared.sum(axis=1) / np.maximum((lists >= 0).sum(axis=1), 1))),
    )


def check(report: GateReport, config: GateConfig) -> None:
    """Let a cheaper form pass.

    Raises:
        QualityError: it loses more than `config` allows; the message holds the figures.
    """
    problems = [
        f"{name} falls by {drop:.1%} ({before:.4f} to {after:.4f}), {limit:.1%} is allowed"
        for name, drop, before, after, limit in (
            ("Recall@10", report.recall_drop, report.recall, report.recall_after, config.max_recall_drop),
            ("NDCG@10", report.ndcg_drop, report.ndcg, report.ndcg_after, config.max_ndcg_drop),
        )
        if drop > limit
    ]
    if report.overlap < config.min_overlap:
        problems.append(f"the lists share {report.overlap:.1%} of their items, {config.min_overlap:.1%} are asked for")
    if problems:
        raise QualityError(f"export: {'; '.join(problems)} ({report.cases} cases); export without int8")
