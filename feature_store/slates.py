"""What was shown to whom, and how likely that was: the record that off-policy estimates need. Knows no storage.

Without the probabilities under the policy that served, no later estimate of another policy is possible: they are logged
with every list, or lost. Items of a list that were clicked come later, as outcomes under the same request id.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self, TypeVar

from feature_store.errors import InvalidEventError
from feature_store.events import MAX_ID_LENGTH, MAX_TIMESTAMP

SCHEMA_VERSION = 1
MAX_SLOTS = 1000

_RecordT = TypeVar("_RecordT")


def history_hash(item_ids: Sequence[str]) -> str:
    """Names the history that a list was made from: 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(list(item_ids)).encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True, slots=True)
class Slot:
    """One place of a list.

    Raises:
        InvalidEventError: a field is out of range.
    """

    item_id: str
    marginal: float
    """Probability that the policy shows this item at this place, whatever stands elsewhere: 0 < p <= 1."""
    conditional: float
    """Probability that it shows this item here, given the items at the places before: 0 < p <= 1."""

    def __post_init__(self) -> None:
        _check_id("item_id", self.item_id)
        for name in ("marginal", "conditional"):
            value = getattr(self, name)
            if not 0 < value <= 1:
                raise InvalidEventError(
                    f"{name} must be above 0 and at most 1, got {value}; a policy that could not "
                    "show the item did not show it"
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class Exposure:
    """The arm of an experiment that a list was made in."""

    experiment: str
    variant: str
    bucket: int
    """Of the unit in the experiment's layer, 0 .. 9999."""
    forced: bool = False
    """Whether a tester asked for it: such lists say nothing about users."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedSlate:
    """A list as it was shown.

    Raises:
        InvalidEventError: a field is empty, too long or out of range, an item stands twice, or the probabilities
            contradict each other.
    """

    request_id: str
    """Outcomes name it."""
    user_id: str | None
    """None for a visitor who is not known."""
    timestamp: float
    """Seconds since 1970 UTC."""
    history_hash: str
    """The history that the list was made from, see `history_hash`."""
    profile_version: int | None
    """The version of the user's profile that was read; None: none was."""
    policy: str
    """What chose the list, such as `generator` or `popularity`."""
    model_version: str
    """The checkpoint."""
    candidates_version: str
    """What proposed the candidates, with its version; the model's own where it proposes them itself."""
    slots: tuple[Slot, ...]
    """In the order of display."""
    joint_log_propensity: float
    """Natural logarithm of the probability of the whole list."""
    epsilon: float
    """Share of lists that are drawn at random, 0 .. 1; 0: the policy always shows its best list."""
    seed: int | None
    """Of the draw; None where nothing is drawn."""
    exposures: tuple[Exposure, ...] = field(default=())
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        for name in ("request_id", "history_hash", "policy", "model_version", "candidates_version"):
            _check_id(name, getattr(self, name))
        if self.user_id is not None:
            _check_id("user_id", self.user_id)
        if not (math.isfinite(self.timestamp) and 0 <= self.timestamp <= MAX_TIMESTAMP):
            raise InvalidEventError(f"timestamp must be seconds since 1970 UTC, got {self.timestamp}")
        if self.schema_version != SCHEMA_VERSION:
            raise InvalidEventError(f"schema_version must be {SCHEMA_VERSION}, got {self.schema_version}")
        if not 0 <= self.epsilon <= 1:
            raise InvalidEventError(f"epsilon must be 0 to 1, got {self.epsilon}")
        if len(self.slots) > MAX_SLOTS or len({slot.item_id for slot in self.slots}) < len(self.slots):
            raise InvalidEventError(f"slots must be at most {MAX_SLOTS} different items, got {len(self.slots)}")
        chained = sum(math.log(slot.conditional) for slot in self.slots)
        if not math.isclose(chained, self.joint_log_propensity, rel_tol=1e-6, abs_tol=1e-6):
            raise InvalidEventError(
                f"joint_log_propensity must be the sum of the logarithms of the slots' conditional, {chained:.6f}, got "
                f"{self.joint_log_propensity}"
            )

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self), separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """The record of `to_json`.

        Raises:
            InvalidEventError: it is damaged, or of another version.
        """
        values = _object(text)
        slots, exposures = values.get("slots"), values.get("exposures", [])
        if not isinstance(slots, list) or not isinstance(exposures, list):
            raise InvalidEventError("slots and exposures must be lists")
        values["slots"] = tuple(_made(Slot, slot) for slot in slots)
        values["exposures"] = tuple(_made(Exposure, exposure) for exposure in exposures)
        return _made(cls, values)


@dataclass(frozen=True, kw_only=True, slots=True)
class SlotOutcome:
    """What a user did with one place of a list.

    Raises:
        InvalidEventError: a field is empty or out of range.
    """

    request_id: str
    """Of the `ServedSlate`."""
    position: int
    """Of the slot, from 0."""
    timestamp: float
    """Seconds since 1970 UTC."""
    clicked: bool = False
    rating: float | None = None
    """In the product's own unit."""
    dwell_s: float | None = None
    """Seconds that the user stayed with the item."""
    hidden: bool = False
    """The user asked not to see it again."""

    def __post_init__(self) -> None:
        _check_id("request_id", self.request_id)
        if not 0 <= self.position < MAX_SLOTS:
            raise InvalidEventError(f"position must be 0 to {MAX_SLOTS - 1}, got {self.position}")
        for name in ("timestamp", "rating", "dwell_s"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and (name == "rating" or value >= 0)):
                raise InvalidEventError(f"{name} must be a finite number, and a time not negative, got {value}")

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self), separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """The record of `to_json`.

        Raises:
            InvalidEventError: it is damaged.
        """
        return _made(cls, _object(text))


def _object(text: str | bytes) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidEventError(f"not a line of JSON: {error}") from error
    if not isinstance(values, dict):
        raise InvalidEventError(f"a record must be an object, got {type(values).__name__}")
    return values


def _made(kind: type[_RecordT], values: Any) -> _RecordT:
    """A dataclass of the values of its fields."""
    known = {each.name for each in fields(kind)}  # type: ignore[arg-type]
    if not isinstance(values, Mapping) or not values.keys() <= known:
        raise InvalidEventError(f"{kind.__name__} has the fields {', '.join(sorted(known))}")
    try:
        return kind(**values)
    except TypeError as error:  # a field is missing, or of another type
        raise InvalidEventError(f"{kind.__name__}: {error}") from error


def _check_id(name: str, value: str) -> None:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_ID_LENGTH:
        raise InvalidEventError(f"{name} must be text of 1 to {MAX_ID_LENGTH} characters")
