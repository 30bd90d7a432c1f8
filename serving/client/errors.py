"""What can go wrong with a call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class ClientError(Exception):
    """Base of every error of the client."""


class UnreachableError(ClientError):
    """The service did not answer, however often it was asked."""


class ApiError(ClientError):
    """The service refused a call.

    Args:
        status: HTTP status.
        detail: what is wrong and what to do, in the service's words.
        fields: the offending fields.
        request_id: names the call in the service's log.
        retry_after_s: when to ask again, if the service has said so.
        problem: the whole answer, where it is a problem as the API words them.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        fields: Sequence[str] = (),
        request_id: str | None = None,
        retry_after_s: float | None = None,
        problem: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(f"{status}: {detail}" + (f" (request {request_id})" if request_id else ""))
        self.status = status
        self.detail = detail
        self.fields = tuple(fields)
        self.request_id = request_id
        self.retry_after_s = retry_after_s
        self.problem = problem or {}
