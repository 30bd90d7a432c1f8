"""`/v1/profiles/{user_id}`: a user in words, to be read, edited and erased."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path

from recsys.errors import DataError
from recsys.profile.profile import Profile
from serving.context import Context, ServingContext
from serving.problems import ProblemError, responses
from serving.profiles import StaleProfileError, UnreadableProfileError, UserProfile
from serving.schemas.users import EvidenceOut, ProfileIn, ProfileOut, StatementOut

router = APIRouter(prefix="/v1", tags=["profiles"])
UserId = Annotated[str, Path(examples=["196"])]


@router.get("/profiles/{user_id:path}", operation_id="get_profile", responses=responses(404, 409, 422, 503))
async def get_profile(user_id: UserId, context: Context) -> ProfileOut:
    """What is said about the user after all entries of the history, with the entries that support it."""
    try:
        found = await context.on_store(lambda: context.profiles.read(context.store, user_id), user_id=user_id)
    except UnreadableProfileError as error:
        raise ProblemError(409, str(error), field="user_id") from error
    return _out(context, user_id, _known(found, user_id))


@router.put("/profiles/{user_id:path}", operation_id="put_profile", responses=responses(400, 404, 409, 413, 422, 503))
async def put_profile(user_id: UserId, body: ProfileIn, context: Context) -> ProfileOut:
    """Edit the profile that was read, named by its `revision`. Edits survive all that the user does afterwards."""
    try:
        found = await context.on_store(
            lambda: context.profiles.edit(context.store, user_id, body.statements, body.revision), user_id=user_id
        )
    except UnreadableProfileError as error:
        raise ProblemError(409, str(error), field="user_id") from error
    except StaleProfileError as error:
        raise ProblemError(409, str(error), field="revision") from error
    except DataError as error:
        raise ProblemError(422, str(error), field="statements") from error
    return _out(context, user_id, _known(found, user_id))


@router.delete("/profiles/{user_id:path}", operation_id="delete_profile", responses=responses(404, 422, 503))
async def delete_profile(user_id: UserId, context: Context) -> ProfileOut:
    """Erase what the user has edited. The answer is the profile as the history alone gives it."""
    was_stored = await context.on_store(lambda: context.store.delete_profile(user_id))
    found = await context.on_store(lambda: context.profiles.read(context.store, user_id), user_id=user_id)
    if found is None and was_stored:
        # The edits have outlived the history.
        found = UserProfile(profile=Profile(), is_stored=False)
    return _out(context, user_id, _known(found, user_id))


def _known(found: UserProfile | None, user_id: str) -> UserProfile:
    if found is None:
        raise ProblemError(404, f"user {user_id!r} is unknown; post an event to create the user", field="user_id")
    return found


def _out(context: ServingContext, user_id: str, found: UserProfile) -> ProfileOut:
    catalog, profile = context.runtime.catalog, found.profile
    ids = [evidence.item_id for statement in profile.statements for evidence in statement.evidence]
    titles = {
        item_id: catalog.titles[item] if item >= 0 else None
        for item_id, item in zip(ids, catalog.index_of(ids).tolist(), strict=True)
    }
    return ProfileOut(
        user_id=user_id,
        version=profile.version,
        revision=found.revision,
        upto=profile.upto,
        statements=[
            StatementOut(
                text=statement.text,
                source=statement.source,
                evidence=[
                    EvidenceOut(event=each.event, item_id=each.item_id, title=titles[each.item_id])
                    for each in statement.evidence
                ],
            )
            for statement in profile.statements
        ],
        edited=found.is_stored,
        used_by_model=found.is_stored and context.runtime.reads_profiles,
    )
