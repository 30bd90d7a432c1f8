"""From a text of a language model to statements with evidence: which events bear out what each sentence names.

A sentence that names a category, brand, decade or title that no event has is flagged: such a profile must not be
preferred in tuning (LettinGo product rule). What a sentence says without naming anything cannot be checked, and
passes. Negations are not understood: "no horror" names horror.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from recsys.profile.attributes import Attribute, ItemAttributes
from recsys.profile.profile import MAX_STATEMENT_LENGTH, Evidence, Profile, Statement

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
_LIST_MARK = re.compile(r"^(?:[-*•]|\d+[.)])\s*")
_HAS_WORD = re.compile(r"\w")


class EvidenceFinder:
    """Supports sentences by events.

    Args:
        attributes: of the catalogue.
        max_statements: sentences of a text that are kept.
        max_evidence: events that a statement names, the newest.
    """

    def __init__(self, attributes: ItemAttributes, *, max_statements: int = 4, max_evidence: int = 5) -> None:
        self._attributes = attributes
        self._max_statements = max_statements
        self._max_evidence = max_evidence

    def statements(self, text: str, first: int, events: Sequence[int], earlier: Profile) -> list[Statement]:
        """The sentences of `text` as statements.

        Args:
            text: what a language model wrote.
            first: position of the first event.
            events: items (dense indices) that it read.
            earlier: the profile that it read too; what that one supports is supported still.
        """
        known = self._support(first, events, earlier)
        marked = (_LIST_MARK.sub("", " ".join(part.split())) for part in _SENTENCE_END.split(text))
        sentences = [part[:MAX_STATEMENT_LENGTH] for part in marked if _HAS_WORD.search(part)]
        return [self._statement(part, known) for part in list(dict.fromkeys(sentences))[: self._max_statements]]

    def _support(self, first: int, events: Sequence[int], earlier: Profile) -> Mapping[Attribute, list[Evidence]]:
        known: dict[Attribute, list[Evidence]] = {}
        for statement in earlier.statements:
            for attribute in statement.about:
                known.setdefault(attribute, []).extend(statement.evidence)
        for position, item in enumerate(events, start=first):
            seen = Evidence(event=position, item_id=self._attributes.item_ids[item])
            for attribute in (*self._attributes.of(item), self._attributes.title_of(item)):
                known.setdefault(attribute, []).append(seen)
        return known

    def _statement(self, sentence: str, known: Mapping[Attribute, list[Evidence]]) -> Statement:
        named = self._attributes.named(sentence)
        about = tuple(attribute for attribute in named if attribute in known)
        events = {evidence.event: evidence for attribute in about for evidence in known[attribute]}
        return Statement(
            text=sentence,
            source="generated",
            about=about,
            evidence=tuple(events[position] for position in sorted(events)[-self._max_evidence :]),
            unsupported=tuple(attribute for attribute in named if attribute not in known),
        )
