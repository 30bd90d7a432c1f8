"""What a user did to an item, what the store answers, and what stands in the event log. Knows no storage."""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from feature_store.errors import InvalidEventError

if TYPE_CHECKING:
    from feature_store.slates import ServedSlate  # which reads the limits of this module

MAX_HISTORY = 500
"""Entries of a history, unless another number is asked for."""
MAX_ID_LENGTH = 256
"""Characters of a user, item or event id."""
EVENT_TYPE_PATTERN = r"^[A-Za-z0-9_.-]{1,64}$"
MAX_TIMESTAMP = 253_402_300_799.0
"""The last second of the year 9999."""

Position = tuple[int, int]
"""Where an entry is in the log of its shard: milliseconds since 1970 UTC when it arrived, and a running number."""

AppendOutcome = Literal["accepted", "duplicate", "conflict"]
"""`duplicate`: the event is stored already. `conflict`: the user has another event under this id."""

_EVENT_TYPE = re.compile(EVENT_TYPE_PATTERN)


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One interaction. Appending it again, with the same `event_id`, changes nothing.

    Raises:
        InvalidEventError: a field is empty, too long or of the wrong form.
    """

    event_id: str
    """Idempotency key, chosen by the sender; unique among the user's events."""
    user_id: str
    item_id: str
    event_type: str
    """What happened, such as `view` or `purchase`: letters, digits, `_`, `.` and `-`."""
    timestamp: float
    """Seconds since 1970 UTC: when it happened, which is not when it arrives."""
    recommendation_id: str | None = None
    """Of the list (`ServedSlate.request_id`) that led to it; None: none did, or nobody says."""

    def __post_init__(self) -> None:
        for field, value in (
            ("event_id", self.event_id),
            ("user_id", self.user_id),
            ("item_id", self.item_id),
            ("recommendation_id", self.recommendation_id),
        ):
            if value is None:
                continue
            if not 0 < len(value) <= MAX_ID_LENGTH:
                raise InvalidEventError(f"{field} must have 1 to {MAX_ID_LENGTH} characters, got {len(value)}")
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise InvalidEventError(f"{field} must be valid Unicode text: {error.reason}") from error
        if not _EVENT_TYPE.fullmatch(self.event_type):
            raise InvalidEventError(
                f"event_type must be 1 to 64 letters, digits, '_', '.' or '-', got {self.event_type[:80]!r}"
            )
        if not (math.isfinite(self.timestamp) and 0 <= self.timestamp <= MAX_TIMESTAMP):
            raise InvalidEventError(f"timestamp must be seconds since 1970 UTC, got {self.timestamp}")

    @property
    def fingerprint(self) -> str:
        """Tells a retry from another event under the same id; leaves out the time, often that of arrival, and the
        list that led to it."""
        content = "\0".join((self.item_id, self.event_type))
        return hashlib.sha256(content.encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True, slots=True)
class HistoryEntry:
    """One item of a user's history."""

    item_id: str
    event_type: str | None
    """None for an entry that came with the data set."""
    timestamp: float | None
    """Seconds since 1970 UTC; None for an entry that came with the data set, which precedes every event."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LogEntry:
    """An event that was accepted, a list that was shown, or the erasure of a user."""

    shard: int
    position: Position
    event: Event | None = None
    slate: ServedSlate | None = None
    erased: str | None = None
    """Digest of the user (`feature_store.keys.digest_of`) whose events and lists before this entry are void."""
