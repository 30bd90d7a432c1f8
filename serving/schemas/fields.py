"""What fields and bodies of the API have in common."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from feature_store.events import MAX_ID_LENGTH

MAX_CATEGORIES = 100
MAX_TEXT = 10_000
MAX_PAGE = 100
MAX_QUERY = 200
MAX_SECONDS = 20_000_000_000
"""The year 2603; larger numbers are milliseconds."""

Id = Annotated[str, Field(min_length=1, max_length=MAX_ID_LENGTH)]
Limit = Annotated[int, Field(ge=1, le=MAX_PAGE, description="Length of the page.")]
Offset = Annotated[int, Field(ge=0, le=10_000_000, description="Entries to skip.")]
Query = Annotated[str, Field(max_length=MAX_QUERY)]
Text = Annotated[str, Field(max_length=MAX_TEXT)]


def _in_seconds(value: Any) -> Any:
    """Refuse numbers that pydantic would take for milliseconds.

    Raises:
        ValueError: the number, or the text of one, is above `MAX_SECONDS`.
    """
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return value  # a date, or nothing that this has to judge
    if number > MAX_SECONDS:
        raise ValueError(f"must be seconds since 1970 UTC, got {value!r:.40}: divide milliseconds by 1000")
    return value


Moment = Annotated[
    datetime,
    BeforeValidator(_in_seconds),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "format": "date-time"},
                {"type": "number", "minimum": 0, "maximum": MAX_SECONDS},
            ],
            "description": "ISO 8601, or seconds since 1970 UTC.",
        }
    ),
]


class RequestBody(BaseModel):
    """What a client sends; unknown fields are errors."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class ResponseBody(BaseModel):
    """What the service answers."""

    model_config = ConfigDict(use_attribute_docstrings=True)
