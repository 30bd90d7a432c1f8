"""Users and their histories."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import anyio.to_thread
from fastapi import APIRouter, Path
from fastapi import Query as QueryParameter

from feature_store import HistoryEntry
from serving.context import Context
from serving.problems import ProblemError, responses
from serving.runtime import RecommenderRuntime
from serving.schemas.fields import Limit, Offset, Query
from serving.schemas.users import EvidenceOut, HistoryItem, InterestOut, InterestsOut, InterestTag, UserDetail, UserPage

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


# Not below /users: an id may end in what would follow it.
@router.get("/interests/{user_id:path}", operation_id="get_interests", responses=responses(404, 422, 503))
async def get_interests(user_id: Annotated[str, Path(examples=["196"])], context: Context) -> InterestsOut:
    """What a user is into, by the whole history: in words, as kinds of items, and with the events that bear it out.

    404 also for a model whose bundle has no table of intents."""
    with context.model.use() as model:
        intents = model.intents
        if intents is None:
            raise ProblemError(
                404, f"model {model.version} has no table of intents; make one with `recsys intents build`, and load it"
            )
        entries = await context.on_store(lambda: context.store.user_entries(user_id), user_id=user_id)
        if not entries:
            raise ProblemError(404, f"user {user_id!r} is unknown; post an event to create the user", field="user_id")
        catalog = model.runtime.catalog
        history = catalog.index_of([entry.item_id for entry in entries]).tolist()
        interests = await anyio.to_thread.run_sync(intents.interests, history)
        return InterestsOut(
            user_id=user_id,
            interests=[
                InterestOut(
                    text=interest.text,
                    weight=interest.weight,
                    tags=[InterestTag(name=tag.name, items=intents.num_items(tag)) for tag in interest.tags],
                    evidence=[
                        EvidenceOut(event=each.event, item_id=each.item_id, title=catalog.titles[history[each.event]])
                        for each in interest.evidence
                    ],
                )
                for interest in interests
            ],
            model_version=model.version,
        )


@router.get("/users/{user_id:path}", operation_id="get_user", responses=responses(404, 422, 503))
async def get_user(user_id: Annotated[str, Path(examples=["196"])], context: Context, limit: Limit = 50) -> UserDetail:
    """The newest entries of a user's history, oldest of them first."""
    entries = await context.on_store(lambda: context.store.user_entries(user_id, limit), user_id=user_id)
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
