"""`ObservedSlate`: what was shown together and what came of it. The input of builders that read feedback on slates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

Outcome: TypeAlias = Literal["buy", "cart", "click", "skip"]
"""What a user did with a slot, the strongest there was."""
GRADES: dict[Outcome, float] = {"buy": 3.0, "cart": 2.0, "click": 1.0, "skip": 0.0}
"""How good an item was for the user, by outcome."""


@dataclass(frozen=True, kw_only=True)
class ObservedSlate:
    """One slate as it was served.

    Raises:
        ValueError: lists of different length, an item shown twice, or probabilities outside (0, 1].
    """

    slate_id: str
    """Unique among the slates of a log."""
    user_id: str
    """The source's own id."""
    history: Sequence[int]
    """The user's items before the slate, oldest first."""
    items: Sequence[int]
    """The slots in display order."""
    outcomes: Sequence[Outcome]
    """One a slot."""
    second_page_view: bool = True
    """The session went on after this page: somebody was there who could have clicked."""
    examined: Sequence[float] | None = None
    """P(the slot was looked at), from a click model, one a slot; None: 1 for all."""
    propensities: Sequence[float] | None = None
    """Probability with which the logging policy showed each item in its slot."""
    created_by: str = "log"
    """The policy and checkpoint that made the slate."""

    def __post_init__(self) -> None:
        for name in ("outcomes", "examined", "propensities"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.items):
                raise ValueError(
                    f"slate {self.slate_id!r}: {name} must be one a slot, {len(self.items)}: {len(values)}"
                )
        for name in ("examined", "propensities"):
            values = getattr(self, name)
            if values is not None and not all(0 < value <= 1 for value in values):
                raise ValueError(f"slate {self.slate_id!r}: {name} must lie in (0, 1], got {list(values)}")
        unknown = set(self.outcomes) - set(get_args(Outcome))
        if unknown:
            raise ValueError(f"slate {self.slate_id!r}: outcomes must be of {list(GRADES)}, got {sorted(unknown)}")
        if len(set(self.items)) != len(self.items):
            raise ValueError(f"slate {self.slate_id!r}: an item is shown twice in {list(self.items)}")

    def skipped_near(self, slot: int) -> list[int]:
        """Slots that were surely looked at and skipped, given a click on `slot`: those above it, and the next one."""
        last = min(slot + 1, len(self.items) - 1)
        return [place for place in range(last + 1) if place != slot and self.outcomes[place] == "skip"]

    def examination(self, slot: int) -> float:
        """P(the slot was looked at)."""
        return 1.0 if self.examined is None else float(self.examined[slot])

    def propensity(self, slot: int) -> float | None:
        """Of the item in its slot; None where it was not logged."""
        return None if self.propensities is None else float(self.propensities[slot])
