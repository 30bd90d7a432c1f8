"""The role that each operation of the API needs. One table, so that it can be read, reviewed and tested as one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

Role = Literal["read", "write", "admin"]
"""Each role may do what the roles before it may."""

ROLES: tuple[Role, ...] = get_args(Role)

ROLE_OF_OPERATION: Mapping[str, Role | None] = {
    "health": None,
    "ready": None,
    "startup": None,
    "metrics": "read",
    "get_model": "read",
    "get_report": "read",
    "get_traffic": "read",
    "get_experiments": "read",
    "recommend": "read",
    "recommend_next": "read",
    "recommend_batch": "read",
    "similar_items": "read",
    "rank_items": "read",
    "search": "read",
    "search_items": "read",
    "get_item": "read",
    "get_neighbours": "read",
    "list_categories": "read",
    "search_users": "read",
    "get_user": "read",
    "get_interests": "read",
    "get_profile": "read",
    "put_item": "write",
    "delete_item": "write",
    "import_items": "write",
    "append_events": "write",
    "put_profile": "write",
    "delete_profile": "write",
    "delete_user": "admin",
    "list_models": "admin",
    "load_model": "admin",
    "activate_model": "admin",
    "roll_back_model": "admin",
    "unload_model": "admin",
    "shadow_model": "admin",
}
"""By operation id; None: for everybody. An operation that is not named here is the administrator's alone."""

PUBLIC_PATHS = frozenset({"/", "/docs", "/openapi.json", "/healthz", "/readyz", "/startupz"})
"""Answered without a key: the pages, which hold no data, and the probes."""
PUBLIC_PREFIX = "/dashboard/"
UNLIMITED_PATHS = frozenset({"/metrics"})
"""Not counted against a key's rate: an overload must not hide itself from those who watch."""


def role_of(operation_id: str | None) -> Role | None:
    """The role that an operation needs; None: it is for everybody."""
    return ROLE_OF_OPERATION.get(operation_id or "", "admin")


def allows(held: Role, needed: Role) -> bool:
    """Whether a key of role `held` may do what needs `needed`."""
    return ROLES.index(held) >= ROLES.index(needed)


def is_public(path: str) -> bool:
    """Whether a path is answered without a key."""
    return path in PUBLIC_PATHS or path.startswith(PUBLIC_PREFIX)
