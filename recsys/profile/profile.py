"""A user's profile in words: statements, each with the events that support it. Knows neither models nor wording.

Positions count a user's events from 0, oldest first. Items are named by the catalogue's own ids, so that a stored
profile outlives the model it was made with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, ValidationError, model_validator

from recsys.config import StrictConfig
from recsys.errors import DataError
from recsys.profile.attributes import Attribute

FORMAT: Literal[1] = 1
"""Version of the stored form."""
MAX_STATEMENTS = 50
MAX_STATEMENT_LENGTH = 500
"""Characters of a statement."""

Source = Literal["template", "generated", "edited"]
"""Who wrote a statement: a rule, a language model, or the user."""


class Evidence(StrictConfig):
    """An event that supports a statement."""

    event: int = Field(ge=0)
    """Its position in the user's history."""
    item_id: str
    """The catalogue's own id of its item."""


class Statement(StrictConfig):
    """One thing that is said about a user."""

    text: str = Field(min_length=1, max_length=MAX_STATEMENT_LENGTH)
    """A sentence."""
    source: Source
    """Who wrote it."""
    about: tuple[Attribute, ...] = ()
    """Attributes of items that the text names and the history has."""
    evidence: tuple[Evidence, ...] = ()
    """Events that have one of them, oldest first; a bounded number of the newest."""
    unsupported: tuple[Attribute, ...] = ()
    """Attributes that the text names and no event that was read has: what a language model made up."""


class Tally(StrictConfig):
    """How often a user met an attribute: what a template profile goes on from."""

    attribute: Attribute
    """What was met."""
    count: int = Field(ge=1)
    """Events since it was first met, or was last forgotten."""
    weight: float = Field(gt=0)
    """The same events, each counted less the older it is."""
    evidence: tuple[Evidence, ...]
    """The newest of them, oldest first."""


class Profile(StrictConfig):
    """What is said about a user after a part of the history."""

    format: Literal[1] = FORMAT
    """Version of this form."""
    version: int = Field(default=0, ge=0)
    """Raised by every change; 0: nothing was said yet."""
    upto: int = Field(default=0, ge=0)
    """Events 0 .. upto - 1 of the history were read."""
    statements: tuple[Statement, ...] = Field(default=(), max_length=MAX_STATEMENTS)
    """What is said, most important first."""
    tallies: tuple[Tally, ...] = ()
    """State of the template; empty in other profiles."""
    dismissed: tuple[Attribute, ...] = ()
    """What the user has removed: no update says it again."""

    @model_validator(mode="after")
    def _evidence_was_read(self) -> Profile:
        for number, statement in enumerate(self.statements):
            for evidence in statement.evidence:
                if evidence.event >= self.upto:
                    raise ValueError(
                        f"statements[{number}].evidence: event {evidence.event} lies beyond upto={self.upto}"
                    )
        return self

    @property
    def text(self) -> str:
        """All statements as one text; empty when there is none."""
        return " ".join(statement.text for statement in self.statements)

    @property
    def is_faithful(self) -> bool:
        """Whether no statement of a machine names what the history does not have. Of themselves users say what they
        like."""
        return not any(statement.unsupported for statement in self.statements if statement.source != "edited")

    @property
    def edits(self) -> tuple[Statement, ...]:
        """What the user wrote."""
        return tuple(statement for statement in self.statements if statement.source == "edited")

    def edited(self, texts: Sequence[str]) -> Profile:
        """The profile after the user has left `texts` of it, in that order.

        A text that stands there already keeps its source and evidence; any other is the user's. What statements of a
        machine that are gone were about is dismissed.

        Raises:
            DataError: a text is empty or too long, stands there twice, or there are too many.
        """
        cleaned = [_normalised(text) for text in texts]
        _check_texts(cleaned)
        # On both sides: names from a catalogue may have any spaces.
        known = {_normalised(statement.text): statement for statement in self.statements}
        gone = [known[text] for text in known if text not in cleaned and known[text].source != "edited"]
        dismissed = (*self.dismissed, *(attribute for statement in gone for attribute in statement.about))
        return Profile(
            version=self.version + 1,
            upto=self.upto,
            statements=tuple(known.get(text, Statement(text=text, source="edited")) for text in cleaned),
            tallies=self.tallies,
            dismissed=tuple(dict.fromkeys(dismissed)),
        )

    def rewritten(self, upto: int, statements: Sequence[Statement], tallies: Sequence[Tally] = ()) -> Profile:
        """The next version: what the user wrote, then `statements` without what the user dismissed."""
        dismissed = set(self.dismissed)
        fresh = [each for each in statements if not dismissed & {*each.about, *each.unsupported}]
        texts = {statement.text for statement in self.edits}
        kept = [*self.edits, *(statement for statement in fresh if statement.text not in texts)]
        return Profile(
            version=self.version + 1,
            upto=upto,
            statements=tuple(kept[:MAX_STATEMENTS]),
            tallies=tuple(tallies),
            dismissed=self.dismissed,
        )

    def to_json(self) -> str:
        """What `from_json` reads."""
        return self.model_dump_json()

    @classmethod
    def from_json(cls, text: str) -> Profile:
        """Read what `to_json` wrote.

        Raises:
            DataError: it is no profile, or one of another format; the message names the field.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) or "profile"
            raise DataError(
                f"profile: {field}: {first['msg']} (this version reads format {FORMAT}); write the profile anew"
            ) from error


def _normalised(text: str) -> str:
    return " ".join(text.split())


def _check_texts(texts: Sequence[str]) -> None:
    if len(texts) > MAX_STATEMENTS:
        raise DataError(f"statements: there are {len(texts)}, at most {MAX_STATEMENTS} are kept; join or drop some")
    for number, text in enumerate(texts):
        if not 1 <= len(text) <= MAX_STATEMENT_LENGTH:
            raise DataError(
                f"statements[{number}]: has {len(text)} characters; write 1 to {MAX_STATEMENT_LENGTH} or leave it out"
            )
        if texts.index(text) != number:
            raise DataError(f"statements[{number}]: {text!r} stands there twice; keep one")
