"""What a language model is taught with: text, items and users in one sequence. Knows no tokens, no models, no wording.

`UserTokens` is a kind of piece that only appears where a task mix is asked for it (`user_tokens`); it then stands first
in a prompt.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class Items:
    """Items one after another, written as semantic IDs."""

    indices: tuple[int, ...]
    """Dense indices, oldest first; may be empty in a prompt."""


@dataclass(frozen=True)
class UserTokens:
    """A user, written as the user's own semantic ID (ULMRec, arXiv 2412.05543)."""

    codes: tuple[int, ...]
    """A code a level, made of items that stand before every target of the sequence (`HistoryIndexer`)."""


Piece: TypeAlias = str | Items | UserTokens
"""A stretch of a sequence. Text is written as it stands: spaces between pieces are part of it. Where texts
follow each other, all but the first always say the same (the end of reasoning, the beginning of an answer): tokenize
them apart, so that they always have the same tokens."""


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
    """The prompt without the user and the user's history, for tasks that have one in the prompt: what can be known of
    the response without it (NextQuill, arXiv 2506.02368). It is a function of the phrasing and what else is asked, so
    that what a model makes of it and an item can be kept. None where the history is the response itself."""

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """Prompt and response."""
        return self.prompt + self.response


def item_indices(pieces: Iterable[Piece]) -> list[int]:
    """All items of `pieces`, in order."""
    return [index for piece in pieces if isinstance(piece, Items) for index in piece.indices]


def for_user(prompt: tuple[Piece, ...], user: UserTokens) -> tuple[Piece, ...]:
    """The prompt with the user's semantic ID on a line of its own at the head."""
    if prompt and isinstance(prompt[0], str):
        return (user, "\n" + prompt[0], *prompt[1:])
    return (user, "\n", *prompt)
