"""Errors of the API as `application/problem+json` (RFC 9457), each with the field and the fix."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from feature_store import StoreUnavailableError

MEDIA_TYPE = "application/problem+json"


class FieldProblem(BaseModel):
    """What is wrong with one field."""

    field: str
    message: str


class Problem(BaseModel):
    """An error and how to fix it."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str = Field(description="What is wrong and what to do, in one line.")
    fields: list[FieldProblem] = Field(default=[], description="The offending fields, when the request is invalid.")


class ProblemError(Exception):
    """Raised by a route to answer with a problem.

    Args:
        status: HTTP status.
        detail: what is wrong and what to do, in one line.
        field: the offending field, if it is one.
        extra: further members of the answer.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        field: str | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.fields = [] if field is None else [FieldProblem(field=field, message=detail)]
        self.extra = extra or {}


def unknown_item(item_id: str) -> ProblemError:
    """What is answered to whoever names an item that the catalogue does not have."""
    return ProblemError(404, f"the catalogue has no item {item_id!r}; search it with /v1/items?query=", field="item_id")


def problem_response(
    status: int,
    detail: str,
    *,
    fields: Sequence[FieldProblem] = (),
    headers: Mapping[str, str] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> JSONResponse:
    """The answer for a problem."""
    content = problem(status, detail, fields).model_dump() | dict(extra or {})
    return JSONResponse(content, status_code=status, headers=headers, media_type=MEDIA_TYPE)


def problem(status: int, detail: str, fields: Sequence[FieldProblem] = ()) -> Problem:
    """What is wrong, with the title of its status."""
    return Problem(title=HTTPStatus(status).phrase, status=status, detail=detail, fields=list(fields))


def invalid_fields(errors: Sequence[Any], skipped: int = 0) -> list[FieldProblem]:
    """What pydantic found, at most 20 fields; `skipped` leading parts of a place are not the sender's."""
    # What is wrong with the request as a whole has a place without further parts.
    places = [entry["loc"][skipped:] if len(entry["loc"]) > skipped else entry["loc"] for entry in errors[:20]]
    return [
        FieldProblem(field=field_name(place), message=_message(entry))
        for place, entry in zip(places, errors, strict=False)
    ]


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI description of a route's problems."""
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status in statuses
    }


def install_handlers(app: FastAPI, *, retry_after_s: int, on_store_error: Callable[[], None]) -> None:
    """Answer every error of `app` as a problem; `on_store_error` is called for each that the store caused."""

    async def on_problem(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ProblemError)
        return problem_response(error.status, error.detail, fields=error.fields, extra=error.extra)

    async def on_invalid(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        fields = invalid_fields(error.errors(), skipped=1)
        first = fields[0]
        return problem_response(422, f"{first.field}: {first.message}", fields=fields)

    async def on_http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        detail = str(error.detail)
        if error.status_code == 404:
            detail = f"nothing is at {request.url.path}; see /docs"
        elif error.status_code == 405:
            detail = f"{request.method} is not possible at {request.url.path}; see /docs"
        elif error.status_code == 400 and (reason := _unreadable_json(error.__cause__)):
            detail = reason
        return problem_response(error.status_code, detail, headers=error.headers)

    async def on_store_down(_: Request, error: Exception) -> JSONResponse:
        on_store_error()
        return problem_response(
            503,
            f"the feature store does not answer ({error}); nothing was acknowledged, retry is safe",
            headers={"Retry-After": str(retry_after_s)},
        )

    app.add_exception_handler(ProblemError, on_problem)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(StoreUnavailableError, on_store_down)


def install_schema(app: FastAPI, describe: Callable[[dict[str, Any]], None]) -> None:
    """Describe problems in the OpenAPI document, which `responses` refers to, and what `describe` adds to it."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is not None:
            return app.openapi_schema
        schema = plain()
        schemas = schema["components"]["schemas"]
        if "Problem" not in schemas:
            problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas.update(problem.pop("$defs"))
            schemas["Problem"] = problem
        describe(schema)
        return schema

    app.openapi = openapi  # type: ignore[method-assign]


def _unreadable_json(cause: BaseException | None) -> str | None:
    """What is wrong with a body that even the reader of JSON gave up on; None when it is something else."""
    if isinstance(cause, RecursionError):
        return "the body is nested too deeply; no request needs more than a few levels"
    if isinstance(cause, UnicodeDecodeError):
        return f"the body is not UTF-8: byte {cause.start} cannot be read"
    if isinstance(cause, ValueError):  # int() of thousands of digits
        return "the body holds a number with too many digits"
    return None


def field_name(location: Sequence[int | str]) -> str:
    """`("events", 0, "item_id")` as `events[0].item_id`; a request as a whole is `body`.

    A union that is told apart by keys names the key before the field of the same name; it is said once.
    """
    text = ""
    last: int | str | None = None
    for part in location or ("body",):
        if part != last or isinstance(part, int):
            text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
        last = part
    return text


def _message(entry: Mapping[str, Any]) -> str:
    message = str(entry["msg"]).removeprefix("Value error, ")
    value = entry.get("input")
    if isinstance(value, str | int | float) and entry["type"] not in ("json_invalid", "value_error"):
        shown = repr(value)
        message += f", got {shown if len(shown) <= 60 else shown[:60] + '...'}"
    return message
