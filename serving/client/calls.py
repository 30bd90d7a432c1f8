"""The calls of the API as values: what to send, and how to read the answer. Sends nothing itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from serving.client.errors import ApiError, ClientError
from serving.client.models import (
    Event,
    EventsResult,
    Interests,
    Item,
    ItemChange,
    ItemPage,
    ItemsResult,
    Model,
    Neighbours,
    NewItem,
    Recommendations,
    Rules,
    User,
)
from serving.client.retry import RETRIED_STATUSES, parse_retry_after

AnswerT = TypeVar("AnswerT", bound=BaseModel)


@dataclass(frozen=True, kw_only=True)
class Call(Generic[AnswerT]):
    """One call."""

    method: Literal["GET", "POST", "PUT", "DELETE"]
    path: str
    answer: type[AnswerT]
    body: Any = None
    lines: Sequence[BaseModel] | None = None
    """Sent one a line, instead of `body`."""
    parameters: Mapping[str, str | int] | None = None

    def request(self, client: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        """The request, made by the client that will send it."""
        if self.lines is None:
            return client.build_request(self.method, self.path, json=self.body, params=self.parameters)
        content = "".join(line.model_dump_json(exclude_none=True) + "\n" for line in self.lines).encode()
        headers = {"Content-Type": "application/x-ndjson"}
        return client.build_request(self.method, self.path, content=content, headers=headers)

    def read(self, response: httpx.Response) -> AnswerT:
        """The answer.

        Raises:
            ApiError: it is a refusal.
            ClientError: it is not what the API answers; something else may be at the address.
        """
        if not response.is_success:
            raise _refusal(response)
        try:
            return self.answer.model_validate_json(response.content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "answer"
            raise ClientError(f"{self.path}: unexpected answer ({where}: {first['msg']}); is this the API?") from error


def is_worth_another_attempt(response: httpx.Response) -> bool:
    """Whether the same call may succeed later."""
    return response.status_code in RETRIED_STATUSES


def retry_after(response: httpx.Response) -> float | None:
    """Seconds that the service asks to wait."""
    return parse_retry_after(response.headers.get("retry-after"))


def recommend(
    *,
    user_id: str | None,
    history: Sequence[str] | None,
    k: int,
    exclude: Sequence[str],
    categories: Sequence[str],
    max_per_category: int | None,
    exclude_seen: bool | str,
    seen_window: int | None,
    mode: str,
    explain: str,
    objectives: Mapping[str, float] | None,
    model_version: str | None,
    rules: Rules | None,
) -> Call[Recommendations]:
    """`POST /v1/recommend`."""
    given = {
        "user_id": user_id,
        "history": None if history is None else list(history),
        "k": k,
        "exclude": list(exclude) or None,
        "categories": list(categories) or None,
        "max_per_category": max_per_category,
        "exclude_seen": exclude_seen,
        "seen_window": seen_window,
        "mode": mode,
        "explain": explain,
        "objectives": dict(objectives) if objectives else None,
        "model_version": model_version,
    }
    body = _body(rules) | {name: value for name, value in given.items() if value is not None}
    return Call(method="POST", path="/v1/recommend", body=body, answer=Recommendations)


def similar_items(item_id: str, k: int, rules: Rules | None) -> Call[Recommendations]:
    """`POST /v1/similar-items`."""
    body = _body(rules) | {"item_id": item_id, "k": k}
    return Call(method="POST", path="/v1/similar-items", body=body, answer=Recommendations)


def rank(user_id: str | None, history: Sequence[str] | None, items: Sequence[str]) -> Call[Recommendations]:
    """`POST /v1/rank`."""
    body: dict[str, Any] = {"items": list(items)}
    if user_id is not None:
        body["user_id"] = user_id
    if history is not None:
        body["history"] = list(history)
    return Call(method="POST", path="/v1/rank", body=body, answer=Recommendations)


def search(query: str, k: int, rules: Rules | None) -> Call[Recommendations]:
    """`POST /v1/search`."""
    body = _body(rules) | {"query": query, "k": k}
    return Call(method="POST", path="/v1/search", body=body, answer=Recommendations)


def _body(rules: Rules | None) -> dict[str, Any]:
    return {} if rules is None else rules.model_dump(mode="json", exclude_none=True)


def send_events(events: Sequence[Event]) -> Call[EventsResult]:
    """`POST /v1/events`; the ids are in the events, so that every attempt sends the same."""
    body = [event.model_dump(mode="json", exclude_none=True) for event in events]
    return Call(method="POST", path="/v1/events", body=body, answer=EventsResult)


def get_user(user_id: str, limit: int) -> Call[User]:
    """`GET /v1/users/{user_id}`."""
    return Call(method="GET", path=f"/v1/users/{_segment(user_id)}", parameters={"limit": limit}, answer=User)


def get_interests(user_id: str) -> Call[Interests]:
    """`GET /v1/interests/{user_id}`."""
    return Call(method="GET", path=f"/v1/interests/{_segment(user_id)}", answer=Interests)


def get_item(item_id: str) -> Call[Item]:
    """`GET /v1/items/{item_id}`."""
    return Call(method="GET", path=f"/v1/items/{_segment(item_id)}", answer=Item)


def put_item(item: NewItem) -> Call[ItemChange]:
    """`PUT /v1/items/{item_id}`."""
    body = item.model_dump(mode="json", exclude={"item_id"})
    return Call(method="PUT", path=f"/v1/items/{_segment(item.item_id)}", body=body, answer=ItemChange)


def delete_item(item_id: str) -> Call[ItemChange]:
    """`DELETE /v1/items/{item_id}`."""
    return Call(method="DELETE", path=f"/v1/items/{_segment(item_id)}", answer=ItemChange)


def import_items(items: Sequence[NewItem]) -> Call[ItemsResult]:
    """`POST /v1/items:bulk`."""
    return Call(method="POST", path="/v1/items:bulk", lines=items, answer=ItemsResult)


def get_neighbours(item_id: str, limit: int) -> Call[Neighbours]:
    """`GET /v1/neighbours/{item_id}`."""
    path = f"/v1/neighbours/{_segment(item_id)}"
    return Call(method="GET", path=path, parameters={"limit": limit}, answer=Neighbours)


def search_items(query: str, limit: int, offset: int) -> Call[ItemPage]:
    """`GET /v1/items`."""
    parameters: dict[str, str | int] = {"query": query, "limit": limit, "offset": offset}
    return Call(method="GET", path="/v1/items", parameters=parameters, answer=ItemPage)


def get_model() -> Call[Model]:
    """`GET /v1/model`."""
    return Call(method="GET", path="/v1/model", answer=Model)


def _segment(value: str) -> str:
    return quote(value, safe="")


def _refusal(response: httpx.Response) -> ApiError:
    try:
        problem = response.json()
    except ValueError:
        problem = None
    if not isinstance(problem, dict):  # a proxy's page, for instance
        problem = {}
    return ApiError(
        response.status_code,
        str(problem.get("detail") or response.reason_phrase),
        fields=[str(entry.get("field")) for entry in problem.get("fields", [])],
        request_id=response.headers.get("x-request-id"),
        retry_after_s=retry_after(response),
        problem=problem,
    )
