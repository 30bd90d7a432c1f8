"""The state of the service and of its models."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from serving.schemas.fields import Id, RequestBody, ResponseBody


class ModelResponse(ResponseBody):
    """What is being served."""

    name: str
    model_version: str
    created_at: datetime
    num_items: int
    catalog_version: int
    """Each change of items since the bundle was made counts one."""
    catalog_columns: list[str]
    """What the catalogue knows of items beside title and categories: what `attributes` may hold."""
    libraries: dict[str, str]
    objectives: dict[str, float]
    """What the generator's heads are for, and how much each counts where a request does not say; empty for a model with
    one head."""
    has_intents: bool
    """Whether its bundle has a table of intents, which reasons by `intent` and `/v1/interests` come from."""
    loaded: list[str]
    """Versions of all models in memory, which a request may name as `model_version`."""


class LoadModel(RequestBody):
    """Which bundle to read."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"bundle": "beauty"}]})

    bundle: Id
    """A bundle's or a run's directory, relative to the directory that holds the runs of the service."""


class ModelVersion(RequestBody):
    """A model in memory."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"model_version": "cc45bc8eaf75"}]})

    model_version: Id


class ShadowModel(RequestBody):
    """Who sees requests without answering them."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model_version": "cc45bc8eaf75", "share": 0.1}, {"model_version": None}]}
    )

    model_version: Id | None
    """Null ends it."""
    share: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Of the requests; fewer when the shadow is busy."""


class ModelState(ResponseBody):
    """A model in memory."""

    model_version: str
    name: str
    created_at: datetime
    num_items: int
    state: Literal["active", "previous", "loaded", "shadow"]
    in_flight: int
    """Requests that are being answered by it, in all processes of the service together; one that does not say within
    two seconds is left out."""


class ModelStates(ResponseBody):
    """All models in memory."""

    models: list[ModelState]


class Health(ResponseBody):
    """State of the service."""

    status: Literal["ok", "degraded", "unavailable"]
    """`degraded`: the store is down, and lists that need no user are still made."""
    checks: dict[str, str] = {}
    """What was looked at, by name: `ok` or what is wrong."""
