"""What an explanation must keep to before anybody sees it; all of it rules that the catalogue and the history decide.

After the quality gates of RecGPT (arXiv 2507.22879) for explanations:

    relevant   it names its tag, the item fits that, and an item of the history has a part of it
    factual    categories, brands, decades and titles that it names are the item's, or those of history items that it
               names by title; what stands in quotation marks is the title of one of these, or the tag
    clear      it has words, at most two sentences and 240 characters, and does not repeat itself
    safe       no contact data, no long numbers, no prices, no superlatives and no promises

Names of the catalogue count for themselves: "The Best of Youth" is a title and no superlative. What a text says without
naming anything cannot be checked, and passes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeAlias, get_args

from recsys.alignment.rewards.rubric import PRICE
from recsys.alignment.rewards.texts import num_sentences, repeated_share, words
from recsys.profile.attributes import Attribute, ItemAttributes, words_of
from recsys.profile.intents.tags import Part, Tag, fits

Principle: TypeAlias = Literal["relevant", "factual", "clear", "safe"]
PRINCIPLES: tuple[Principle, ...] = get_args(Principle)

MAX_LENGTH = 240
_MAX_SENTENCES = 2
_QUOTED = re.compile(r"[\"“”«»]([^\"“”«»]*)[\"“”«»]")
_CONTACT = re.compile(r"\w@\w|https?:|www\.|(?<!\w)@\w+|\d[\d\s().-]{6,}\d", re.IGNORECASE)
_CLAIM = re.compile(
    r"\b(?:best|greatest|finest|perfect(?:ly)?|amazing|incredible|unbeatable|ultimate|must[- ]have|number one|"
    r"guarantee[sd]?|proven|cures?|miracle|everyone|nobody|never|always|risk[- ]free)\b|100 ?%|#1\b|\bno\. ?1\b|!",
    re.IGNORECASE,
)
_ERA = re.compile(r"\b\d{3}0s\b")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is known of an item: what a text about it may name."""

    title: str
    """Empty where it has none."""
    attributes: tuple[Attribute, ...]
    """Categories, brand and era."""
    parts: frozenset[Part]
    """What tags are made of."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What an explanation is about."""

    tag: Tag
    item: Subject
    history: tuple[Subject, ...] | None
    """Items that the reader has chosen; None for a text that is written for whoever has an interest in the tag."""


class ExplanationRubric:
    """Checks explanations.

    Args:
        attributes: of the catalogue: the names that a text may hold.
    """

    def __init__(self, attributes: ItemAttributes) -> None:
        self._attributes = attributes
        self._checks: Mapping[Principle, Callable[[str, Claim], bool]] = {
            "relevant": _is_relevant,
            "factual": self._is_factual,
            "clear": _is_clear,
            "safe": _is_safe,
        }

    def broken(self, text: str, claim: Claim) -> list[Principle]:
        """The principles that a text breaks; none for a good one. A text without words breaks all."""
        if not words(text):
            return list(PRINCIPLES)
        return [name for name in PRINCIPLES if not self._checks[name](text, claim)]

    def _is_factual(self, text: str, claim: Claim) -> bool:
        cited = [claim.item, *_cited(text, claim)]
        # A tag that is true of the item is, whatever else its words may name.
        own = [claim.tag.name] if fits(claim.tag, claim.item.parts) else []
        rest = _without(text, [subject.title for subject in cited] + own)
        true = {attribute for subject in cited for attribute in subject.attributes}
        if any(attribute not in true for attribute in self._attributes.named(rest)):
            return False
        eras = {attribute.name for attribute in true if attribute.kind == "era"}
        quoted = {" ".join(words_of(span)) for span in _QUOTED.findall(text)}
        known = {" ".join(words_of(name)) for name in (*(subject.title for subject in cited), claim.tag.name)}
        return quoted <= known and set(_ERA.findall(rest)) <= eras


def _is_relevant(text: str, claim: Claim) -> bool:
    said = set(words_of(text))
    history = claim.history
    is_of_reader = history is None or any(part in past.parts for past in history for part in claim.tag.parts)
    return claim.tag.words <= said and fits(claim.tag, claim.item.parts) and is_of_reader


def _is_clear(text: str, claim: Claim) -> bool:
    rest = _without(text, _names(text, claim))
    return (
        len(text) <= MAX_LENGTH
        and num_sentences(rest) <= _MAX_SENTENCES
        and repeated_share(rest.replace("_", " "), 3) == 0
        and _CONTROL.search(text) is None
    )


def _is_safe(text: str, claim: Claim) -> bool:
    rest = _without(text, _names(text, claim))
    return not any(pattern.search(rest) for pattern in (_CONTACT, PRICE, _CLAIM))


def _cited(text: str, claim: Claim) -> list[Subject]:
    """The history items that a text names, letter by letter: "it" is no mention of "It"."""
    return [past for past in claim.history or () if past.title and _phrase(past.title, 0).search(text)]


def _names(text: str, claim: Claim) -> list[str]:
    """Names that a text may hold, whatever words they are made of."""
    subjects = [claim.item, *_cited(text, claim)]
    return [
        *(subject.title for subject in subjects),
        *(attribute.name for subject in subjects for attribute in subject.attributes),
        claim.tag.name,
    ]


def _without(text: str, names: Sequence[str]) -> str:
    """A text with names cut out, the longest first."""
    for name in sorted(filter(None, names), key=len, reverse=True):
        text = _phrase(name).sub("_", text)
    return text


@lru_cache(maxsize=10_000)
def _phrase(phrase: str, flags: int = re.IGNORECASE) -> re.Pattern[str]:
    """Where a phrase begins and ends as words do, whatever it begins and ends with."""
    return re.compile(rf"(?<!\w){re.escape(phrase)}(?!\w)", flags)
