"""What the guards add to the OpenAPI document: the scheme of the keys, each operation's role, and the refusals."""

from __future__ import annotations

from typing import Any

from serving.guard.roles import role_of
from serving.problems import responses


def describe_guards(document: dict[str, Any]) -> None:
    """Add to `document`, in place, what holds for every operation; doing it again changes nothing."""
    schemes = document.setdefault("components", {}).setdefault("securitySchemes", {})
    schemes["key"] = {
        "type": "http",
        "scheme": "bearer",
        "description": "A key that `recsys keys create` made. Needed wherever the service runs with keys.",
    }
    for methods in document["paths"].values():
        for operation in methods.values():
            role = role_of(operation["operationId"])
            if role is None:
                continue
            operation["security"] = [{"key": []}]
            operation["x-required-role"] = role
            refusals = (401, 403, 408, 415, 429) if "requestBody" in operation else (401, 403, 429)
            described = {str(status): facts for status, facts in responses(*refusals).items()}
            operation["responses"] = dict(sorted((described | operation["responses"]).items()))
