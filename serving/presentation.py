"""Dense item indices as the API's models."""

from __future__ import annotations

import math

from serving.answers import Answer
from serving.runtime import RecommenderRuntime
from serving.schemas.items import ItemDetail
from serving.schemas.lists import Because, ItemSummary, ReasonOut, RecommendedItem

SUMMARY_COLUMNS = {"item_id", "title", "categories"}


def summary(runtime: RecommenderRuntime, item: int) -> ItemSummary:
    """An item as lists show it."""
    return ItemSummary(
        item_id=runtime.catalog.item_ids[item],
        title=runtime.catalog.titles[item],
        categories=runtime.categories_of(item),
        sid=runtime.codes[item].tolist() if runtime.is_generatable(item) else [],
    )


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
    """The items of an answer, best first."""
    return [
        RecommendedItem(
            **summary(runtime, pick.item).model_dump(),
            score=None if math.isnan(pick.score) else pick.score,
            source="pin" if math.isnan(pick.score) else answer.source,
            reason=ReasonOut(
                text=pick.reason.text,
                because=None if pick.reason.because is None else _because(runtime, pick.reason.because),
                similarity=pick.reason.similarity,
            ),
            code_log_probs=None,
        )
        for pick in answer.picks
    ]


def _because(runtime: RecommenderRuntime, item: int) -> Because:
    return Because(item_id=runtime.catalog.item_ids[item], title=runtime.catalog.titles[item])
