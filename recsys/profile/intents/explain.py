"""Why an item fits a tag, in a sentence: by rule here, by a language model in `language`. Keeps nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from recsys.generator.lm.texts import listed
from recsys.profile.attributes import Attribute, words_of
from recsys.profile.intents.rubric import Claim

_CATEGORIES = 3


class Explainer(Protocol):
    """Writes explanations. Nothing that it writes is shown before the rubric has passed it."""

    @property
    def name(self) -> str:
        """Who it is: what a table says that it was written by."""
        ...

    def explain(self, claims: Sequence[Claim]) -> list[str]:
        """A text for each; empty where there is none."""
        ...


class RuleExplainer:
    """Names the tag, and what the catalogue says of the item beside it.

    Args:
        commonplace: attributes that say nothing; not named.
    """

    name = "rules"

    def __init__(self, commonplace: frozenset[Attribute]) -> None:
        self._commonplace = commonplace

    def explain(self, claims: Sequence[Claim]) -> list[str]:
        """See `Explainer.explain`."""
        return [self._explained(claim) for claim in claims]

    def _explained(self, claim: Claim) -> str:
        beside = [
            attribute
            for attribute in claim.item.attributes
            if attribute not in self._commonplace and not set(words_of(attribute.name)) <= claim.tag.words
        ]
        categories = _named(beside, "category")[:_CATEGORIES]
        facts = [f"by {brand}" for brand in _named(beside, "brand")]
        facts += [f"from the {era}" for era in _named(beside, "era")]
        kind = f": {listed(categories)}" if categories else ""
        return f"Fits your interest in {', '.join([claim.tag.name + kind, *facts])}."


def _named(attributes: Sequence[Attribute], kind: str) -> list[str]:
    return [attribute.name for attribute in attributes if attribute.kind == kind]
