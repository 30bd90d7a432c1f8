"""Pairs that a judge labels: a reward model, a simulator, a rubric, whatever gives numbers to answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from recsys.alignment.pairs import PreferencePair, PreferencePairs, Source
from recsys.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Question:
    """A prompt and the answers to compare: items or texts."""

    question_id: str
    """Unique among the questions."""
    user_id: str
    """The source's own id."""
    prompt_items: Sequence[int] = ()
    """The history."""
    prompt_text: str | None = None
    """The prompt of texts."""
    items: Sequence[int] = ()
    """Items to compare, no two alike; or"""
    texts: Sequence[str] = ()
    """texts to compare, no two alike."""

    @property
    def num_answers(self) -> int:
        """How many there are to compare."""
        return len(self.items) + len(self.texts)


Judge: TypeAlias = Callable[[Sequence[Question]], Sequence[Sequence[float]]]
"""For each question a score an answer; larger is better, differences are log-odds of being preferred."""


def scored_pairs(
    questions: Sequence[Question],
    judge: Judge,
    *,
    source: Source,
    created_by: str,
    min_gap: float = 0.0,
    max_rejected: int = 3,
) -> PreferencePairs:
    """One pair a question: its best answer against the best of those that score more than `min_gap` lower.

    `confidence` is sigma(gap) of the closest rejected answer: the judge's probability of that order (Bradley-Terry).
    The filter by confidence then applies as it does to people's labels. Questions whose answers score alike are left
    out.

    Args:
        questions: what to compare.
        judge: gives the scores; called once.
        source: what kind of label this is.
        created_by: the judge and its checkpoint.
        min_gap: smallest difference of scores.
        max_rejected: hardest ones first.

    Raises:
        DataError: the judge gave other than one finite score an answer; the message names the question.
    """
    rows = []
    for question, given in zip(questions, judge(questions), strict=True):
        scores = np.asarray(given, dtype=np.float64)
        if scores.shape != (question.num_answers,) or not np.isfinite(scores).all():
            raise DataError(
                f"question {question.question_id!r}: the judge must give {question.num_answers} finite scores, "
                f"got {list(given)}"
            )
        order = np.argsort(-scores, kind="stable")
        rejected = [int(place) for place in order if scores[place] < scores[order[0]] - min_gap][:max_rejected]
        if not rejected:
            continue
        best = int(order[0])
        rows.append(
            PreferencePair(
                pair_id=f"{source}-{question.question_id}",
                user_id=question.user_id,
                source=source,
                created_by=created_by,
                prompt_items=question.prompt_items,
                prompt_text=question.prompt_text,
                chosen_item=question.items[best] if question.items else None,
                chosen_text=question.texts[best] if question.texts else None,
                rejected_items=[question.items[place] for place in rejected] if question.items else [],
                rejected_texts=[question.texts[place] for place in rejected] if question.texts else [],
                chosen_score=float(scores[best]),
                rejected_scores=scores[rejected].tolist(),
                confidence=float(1 / (1 + np.exp(scores[rejected[0]] - scores[best]))),
            )
        )
    return PreferencePairs.from_rows(rows)
