"""Dense item indices as the API's models."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from serving.answers import Answer
from serving.runtime import RecommenderRuntime
from serving.schemas.items import ItemDetail
from serving.schemas.lists import Because, ItemSummary, ReasonOut, RecommendedItem

SUMMARY_COLUMNS = {"item_id", "title", "categories"}


def summary(runtime: RecommenderRuntime, item: int) -> ItemSummary:
    """An item as lists show it."""
    return ItemSummary(**_summarized(runtime, item))


def detail(runtime: RecommenderRuntime, item: int) -> ItemDetail:
    """Everything known about an item."""
    row = runtime.catalog.frame.row(item, named=True)
    return ItemDetail(
        **summary(runtime, item).model_dump(),
        status=runtime.status(item),
        interactions=int(runtime.item_counts[item]),
        attributes={name: value for name, value in row.items() if name not in SUMMARY_COLUMNS},
    )


def recommended(runtime: RecommenderRuntime, answer: Answer) -> list[RecommendedItem]:
    """The items of an answer, best first, each with the evidence for it."""
    cited = {item for pick in answer.picks for item in pick.reason.evidence}
    named = {item: because(runtime, item) for item in cited}
    return [
        RecommendedItem(
            **_summarized(runtime, pick.item),
            score=None if math.isnan(pick.score) else pick.score,
            source="pin" if math.isnan(pick.score) else answer.source,
            reason=ReasonOut(
                text=pick.reason.text,
                because=named[pick.reason.evidence[0]] if pick.reason.evidence else None,
                similarity=pick.reason.similarity,
                evidence=[named[item] for item in pick.reason.evidence],
            ),
            code_log_probs=None,
        )
        for pick in answer.picks
    ]


def because(runtime: RecommenderRuntime, item: int) -> Because:
    """An item of the history as reasons name it."""
    return Because(item_id=runtime.catalog.item_ids[item], title=runtime.catalog.titles[item])


def _summarized(runtime: RecommenderRuntime, item: int) -> dict[str, Any]:
    return {
        "item_id": runtime.catalog.item_ids[item],
        "title": runtime.catalog.titles[item],
        "categories": runtime.categories_of(item),
        "sid": runtime.codes.take(np.array(item)).tolist() if runtime.is_generatable(item) else [],
    }
