"""What a language model is taught with: text and items in one sequence. Knows no tokens, no models, no templates."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class Items:
    """Items one after another, written as semantic IDs."""

    indices: tuple[int, ...]
    """Dense indices, oldest first; may be empty in a prompt."""


Piece: TypeAlias = str | Items
"""A stretch of a sequence. Text is written as it stands: spaces between pieces are part of it."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One training sequence: the prompt is read, the response is learned."""

    task: str
    """Name of the task that made it, for the mix and the log."""
    prompt: tuple[Piece, ...]
    """What is given; nothing in it is a target."""
    response: tuple[Piece, ...]
    """What is to be produced: every text token and every item of it is a target, given all that stands before it."""
    without_history: tuple[Piece, ...] | None = None
    """The prompt without the user's history, for tasks that have one: what can be known of the response without it."""

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """Prompt and response."""
        return self.prompt + self.response


def item_indices(pieces: Iterable[Piece]) -> list[int]:
    """All items of `pieces`, in order."""
    return [index for piece in pieces if isinstance(piece, Items) for index in piece.indices]
