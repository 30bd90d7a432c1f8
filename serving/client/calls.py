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
    BatchResult,
    Event,
    EventsResult,
    Explain,
    Interests,
    ItemChange,
    ItemDetail,
    ItemPage,
    ItemsResult,
    Model,
    Neighbours,
    NewItem,
    Options,
    Recommendations,
    Request,
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


def recommend(user_id: str | None, options: Options) -> Call[Recommendations]:
    """`POST /v1/recommend`."""
    body = _request(options) | ({} if user_id is None else {"user_id": user_id})
    return Call(method="POST", path="/v1/recommend", body=body, answer=Recommendations)


def recommend_batch(requests: Sequence[Request]) -> Call[BatchResult]:
    """`POST /v1/recommend:batch`."""
    body = {"requests": [_request(request) for request in requests]}
    return Call(method="POST", path="/v1/recommend:batch", body=body, answer=BatchResult)


def next_page(cursor: str, k: int, explain: Explain) -> Call[Recommendations]:
    """`POST /v1/recommend:next`."""
    body = {"cursor": cursor, "k": k, "explain": explain}
    return Call(method="POST", path="/v1/recommend:next", body=body, answer=Recommendations)


def similar_items(item_id: str, k: int, explain: Explain, details: bool, rules: Rules | None) -> Call[Recommendations]:
    """`POST /v1/similar-items`."""
    body = _body(rules) | {"item_id": item_id, "k": k, "explain": explain, "details": details}
    return Call(method="POST", path="/v1/similar-items", body=body, answer=Recommendations)


def rank(
    user_id: str | None, history: Sequence[str] | None, items: Sequence[str], explain: Explain, details: bool
) -> Call[Recommendations]:
    """`POST /v1/rank`."""
    body: dict[str, Any] = {"items": list(items), "explain": explain, "details": details}
    if user_id is not None:
        body["user_id"] = user_id
    if history is not None:
        body["history"] = list(history)
    return Call(method="POST", path="/v1/rank", body=body, answer=Recommendations)


def search(query: str, k: int, explain: Explain, details: bool, rules: Rules | None) -> Call[Recommendations]:
    """`POST /v1/search`."""
    body = _body(rules) | {"query": query, "k": k, "explain": explain, "details": details}
    return Call(method="POST", path="/v1/search", body=body, answer=Recommendations)


def _request(request: Options) -> dict[str, Any]:
    """What is sent of a request: nothing of what is None, which is as good as left out."""
    given = {name: value for name, value in request.items() if name != "rules" and value is not None}
    return _body(request.get("rules")) | given


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


def get_item(item_id: str) -> Call[ItemDetail]:
    """`GET /v1/items/{item_id}`."""
    return Call(method="GET", path=f"/v1/items/{_segment(item_id)}", answer=ItemDetail)


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
