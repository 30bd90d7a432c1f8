"""Users and their histories."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Path
from fastapi import Query as QueryParameter

from feature_store import HistoryEntry
from serving.context import Context
from serving.problems import ProblemError, responses
from serving.runtime import RecommenderRuntime
from serving.schemas import HistoryItem, Limit, Offset, Query, UserDetail, UserPage

router = APIRouter(prefix="/v1", tags=["users"])


@router.get("/users", operation_id="search_users", responses=responses(422, 503))
async def search_users(
    context: Context,
    query: Annotated[Query, QueryParameter(description="What the user id begins with.", examples=["19"])] = "",
    limit: Limit = 20,
    offset: Offset = 0,
) -> UserPage:
    """User ids that begin with the query, in alphabetical order."""
    users, total = await context.on_store(lambda: context.store.search_users(query, limit=limit, offset=offset))
    return UserPage(users=users, total=total)


@router.get("/users/{user_id:path}", operation_id="get_user", responses=responses(404, 422, 503))
async def get_user(user_id: Annotated[str, Path(examples=["196"])], context: Context, limit: Limit = 50) -> UserDetail:
    """The newest entries of a user's history, oldest of them first."""
    entries = await context.on_store(lambda: context.store.user_entries(user_id, limit))
    if not entries:
        raise ProblemError(404, f"user {user_id!r} is unknown; post an event to create the user", field="user_id")
    return UserDetail(user_id=user_id, history=_with_titles(context.runtime, entries))


@router.delete("/users/{user_id:path}", operation_id="delete_user", status_code=204, responses=responses(422, 503))
async def delete_user(user_id: Annotated[str, Path(examples=["196"])], context: Context) -> None:
    """Erase all that is known of a user: history, events and their ids, profile and session. 204 also when nothing was.

    Online at once; the offline store follows when its consumer comes to this point of the event log. What a data set
    brought does not return with its next version; new events make a new user. After a 503 simply repeat it.
    """
    await context.on_store(lambda: context.store.erase_user(user_id))


def _with_titles(runtime: RecommenderRuntime, entries: list[HistoryEntry]) -> list[HistoryItem]:
    items = runtime.catalog.index_of([entry.item_id for entry in entries])
    return [
        HistoryItem(
            item_id=entry.item_id,
            title=runtime.catalog.titles[item] if item >= 0 else None,
            categories=runtime.categories_of(item) if item >= 0 else [],
            event_type=entry.event_type,
            timestamp=None if entry.timestamp is None else datetime.fromtimestamp(entry.timestamp, UTC),
        )
        for entry, item in zip(entries, items.tolist(), strict=True)
    ]
