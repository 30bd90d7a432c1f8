"""Users: their history, their profile and what they are into."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import ConfigDict, Field

from recsys.profile.profile import MAX_STATEMENT_LENGTH, MAX_STATEMENTS
from recsys.profile.profile import Source as StatementSource
from serving.schemas.fields import RequestBody, ResponseBody


class HistoryItem(ResponseBody):
    """An entry of a user's history."""

    item_id: str
    title: str | None
    categories: list[str]
    event_type: str | None
    """Null for an entry that came with the data set."""
    timestamp: datetime | None
    """Null for an entry that came with the data set."""


class UserDetail(ResponseBody):
    """A user and the newest part of the history."""

    user_id: str
    history: list[HistoryItem]
    """Oldest first."""


class ProfileIn(RequestBody):
    """What the user leaves of the profile, and adds to it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"statements": ["Likes Drama (12 of 40).", "No musicals, please."], "revision": "5f0c1a7e90b2d3c4"}
            ]
        }
    )

    statements: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=MAX_STATEMENT_LENGTH)]], Field(max_length=MAX_STATEMENTS)
    ]
    """Sentences in their order. One that stands in the profile stays as it is, any other is the user's own; what is
    left out is not said again."""
    revision: Annotated[str, Field(max_length=64)]
    """The `revision` of the profile that was read and is edited; the answer is 409 if it is another one by now."""


class EvidenceOut(ResponseBody):
    """An event that supports a statement."""

    event: int
    """Its position in the history, from 0."""
    item_id: str
    title: str | None


class StatementOut(ResponseBody):
    """One thing that is said about a user."""

    text: str
    source: StatementSource
    evidence: list[EvidenceOut]


class ProfileOut(ResponseBody):
    """A user's profile in words."""

    user_id: str
    version: int
    revision: str
    """Names what the statements say; `PUT` gives it back."""
    upto: int
    """Entries of the history that it has read."""
    statements: list[StatementOut]
    edited: bool
    """Whether the user has ever edited it; one that was not is made from the history each time."""
    used_by_model: bool
    """Whether recommendations in mode `direct` are made with it: the user has edited it, and the model knows words.
    Else it is for display only."""


class InterestTag(ResponseBody):
    """A kind of items that follows from an interest."""

    name: str
    items: int
    """How many the catalogue has, or had when the model's table was made."""


class InterestOut(ResponseBody):
    """One thing that a user is into."""

    text: str
    weight: float
    """Comparable among the user's interests."""
    tags: list[InterestTag]
    """Best first."""
    evidence: list[EvidenceOut]
    """Events that bear it out, oldest first."""


class InterestsOut(ResponseBody):
    """What a user is into, strongest first."""

    user_id: str
    interests: list[InterestOut]
    model_version: str


class UserPage(ResponseBody):
    """One page of a search for users."""

    users: list[str]
    total: int
