"""`POST /v1/similar-items`, `/v1/rank` and `/v1/search`: lists that are not the next items, in the same envelope."""

from __future__ import annotations

from fastapi import APIRouter

from serving import looking_up
from serving.context import Context
from serving.problems import responses
from serving.routes.recommend import DeadlineMs
from serving.schemas.lists import RecommendResponse
from serving.schemas.requests import RankRequest, SearchRequest, SimilarRequest

router = APIRouter(prefix="/v1", tags=["recommend"])


@router.post("/similar-items", operation_id="similar_items", responses=responses(400, 404, 413, 422, 503))
async def similar_items(request: SimilarRequest, context: Context, deadline_ms: DeadlineMs = None) -> RecommendResponse:
    """Items whose content is most like that of one item, without it; the score is the cosine of their vectors."""
    with context.model.use() as model:
        return await looking_up.similar(context, model, request, _seconds(deadline_ms))


@router.post("/rank", operation_id="rank_items", responses=responses(400, 404, 413, 422, 503))
async def rank_items(request: RankRequest, context: Context, deadline_ms: DeadlineMs = None) -> RecommendResponse:
    """The given items in the order in which they are likely to be wanted next.

    The score is the generator's exact log-probability of the item among all items of the catalogue: no search is made
    that could miss one, and no rule leaves one out. Those that the catalogue does not have, or that wait for a semantic
    ID, are in `unknown_items`.
    """
    with context.model.use() as model:
        return await looking_up.rank(context, model, request, _seconds(deadline_ms))


@router.post("/search", operation_id="search", responses=responses(400, 413, 422, 503))
async def search(request: SearchRequest, context: Context, deadline_ms: DeadlineMs = None) -> RecommendResponse:
    """Items that a text describes.

    `source` says how they were found: `words` by titles, categories and ids that have all of its words; where the
    settings of the service say so (`search.by`), `dense` by what the text means to the bundle's text encoder, or
    `generator` by what its language model generates after the text.
    """
    with context.model.use() as model:
        return await looking_up.search(context, model, request, _seconds(deadline_ms))


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000
