"""Items and categories: what there is to recommend."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path
from fastapi import Query as QueryParameter

from serving import presentation
from serving.codes import nearest_codes
from serving.context import Context
from serving.problems import responses, unknown_item
from serving.runtime import RecommenderRuntime
from serving.schemas.fields import Limit, Offset, Query
from serving.schemas.items import CategoryCount, ItemDetail, ItemPage, Neighbour, Neighbours

router = APIRouter(prefix="/v1", tags=["catalogue"])


@router.get("/items", operation_id="search_items", responses=responses(422))
async def search_items(
    context: Context,
    query: Annotated[
        Query, QueryParameter(description="Words of the title, the categories or the id.", examples=["star wars"])
    ] = "",
    limit: Limit = 20,
    offset: Offset = 0,
) -> ItemPage:
    """Items that contain every word of the query, best match first; all items when it is empty."""
    model = context.model
    items, total = await context.on_search(lambda: model.search.find(query, limit=limit, offset=offset))
    return ItemPage(items=[presentation.summary(model.runtime, item) for item in items], total=total)


@router.get("/items/{item_id:path}", operation_id="get_item", responses=responses(404))
async def get_item(item_id: Annotated[str, Path(examples=["50"])], context: Context) -> ItemDetail:
    """Everything known about one item."""
    runtime = context.runtime
    return presentation.detail(runtime, _known(runtime, item_id))


@router.get("/neighbours/{item_id:path}", operation_id="get_neighbours", responses=responses(404, 422))
async def get_neighbours(
    item_id: Annotated[str, Path(examples=["50"])], context: Context, limit: Limit = 20
) -> Neighbours:
    """The items whose semantic IDs begin like that of an item: the longest common beginning first, and of equal ones
    the most popular."""
    runtime = context.runtime
    item = _known(runtime, item_id)
    found = await context.on_search(
        lambda: nearest_codes(runtime.codes, runtime.item_counts, item, limit, runtime.with_codes)
    )
    return Neighbours(
        item=presentation.summary(runtime, item),
        sharing=found.sharing.tolist(),
        neighbours=[
            Neighbour(**presentation.summary(runtime, neighbour).model_dump(), shared=shared)
            for neighbour, shared in zip(found.items.tolist(), found.shared.tolist(), strict=True)
        ],
    )


@router.get("/categories", operation_id="list_categories")
async def list_categories(context: Context) -> list[CategoryCount]:
    """The categories that a recommendation can be filtered by, largest first."""
    return [CategoryCount(category=category, items=items) for category, items in context.runtime.rules.categories]


def _known(runtime: RecommenderRuntime, item_id: str) -> int:
    """The dense index of an item."""
    item = runtime.find(item_id)
    if item is None:
        raise unknown_item(item_id)
    return item
