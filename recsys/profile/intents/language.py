"""Interests, tags and explanations by a language model: prompts out, texts in, and what of them can be believed.

As in RecGPT (arXiv 2507.22879): interests with reasons from the history, tags for each interest, a text for each tag
and item. What a model says counts as far as the catalogue bears it out: a tag has to be made of parts that items bear,
an interest needs an event behind it, and texts go to the rubric like any others. Knows no transport: see
`recsys.profile.writers`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from recsys.profile.attributes import ItemAttributes
from recsys.profile.intents.config import InterestConfig
from recsys.profile.intents.mining import Interest
from recsys.profile.intents.rubric import MAX_LENGTH, Claim
from recsys.profile.intents.tags import PartReader, Tag, TagVocabulary
from recsys.profile.profile import Evidence
from recsys.profile.writers import TextWriter

_MAX_EVENTS = 40
_MAX_INTEREST = 200

_INTERESTS = (
    "Here is what one person chose, oldest first, a number before each:\n{history}\n\n"
    "What is this person into? Answer with one JSON list and nothing else, strongest interest first, at most {count} "
    'objects with these keys: "interest": one short sentence; "events": the numbers that show it; "tags": up to '
    "{tags} kinds of items to recommend for it, each one or two names that stand above: a category, or a brand, "
    'decade, topic or word and a category, such as "{example}".'
)
_EXPLANATION = (
    "Somebody is interested in: {tag}\nThis is recommended: {item}\n{history}\n"
    "Write one sentence, of at most 30 words, that tells this person why it fits. Use the words {tag!r} as they stand. "
    "Say nothing that does not stand above, no prices, no superlatives, no promises. Put titles, if you name any, in "
    "quotation marks. Write only the sentence."
)


class LanguageMiner:
    """Interests by a language model.

    Args:
        writer: answers prompts.
        vocabulary: the tags that there are.
        reader: of the same catalogue.
        attributes: likewise.
        config: how much is said.
    """

    def __init__(
        self,
        writer: TextWriter,
        vocabulary: TagVocabulary,
        reader: PartReader,
        attributes: ItemAttributes,
        config: InterestConfig,
    ) -> None:
        self._writer = writer
        self._vocabulary = vocabulary
        self._reader = reader
        self._attributes = attributes
        self._config = config
        self.counts: Counter[str] = Counter()
        """Tags by what became of them: `kept`, `repeated`, `unknown` (not made of the catalogue's parts), or a fault of
        `TagVocabulary.fault`; and interests and answers that were dropped: `unsupported`, `malformed`."""

    def mine(self, histories: Sequence[Sequence[int]]) -> list[list[Interest]]:
        """See `InterestMiner.mine`. Of long histories the newest events are read."""
        asked = [number for number, history in enumerate(histories) if any(item >= 0 for item in history)]
        answers = self._writer.write([self._prompt(histories[number]) for number in asked], temperature=0.0, seed=0)
        mined: list[list[Interest]] = [[] for _ in histories]
        for number, answer in zip(asked, answers, strict=True):
            mined[number] = list(islice(self._interests(answer, histories[number]), self._config.interests))
        return mined

    def _prompt(self, history: Sequence[int]) -> str:
        first = max(0, len(history) - _MAX_EVENTS)
        lines = [f"{at}. {self._described(item)}" for at, item in enumerate(history[first:], first) if item >= 0]
        example = next(iter(sorted(part.name for part in self._vocabulary.bearers if part.kind == "category")), "Drama")
        return _INTERESTS.format(
            history="\n".join(lines),
            count=self._config.interests,
            tags=self._config.tags_per_interest,
            example=example,
        )

    def _described(self, item: int) -> str:
        names = ", ".join(part.name for part in sorted(self._reader.of(item) & self._vocabulary.bearers.keys()))
        return f"{self._attributes.titles[item] or self._attributes.item_ids[item]} ({names})"

    def _interests(self, answer: str, history: Sequence[int]) -> Iterator[Interest]:
        for place, said in enumerate(self._parsed(answer)):
            text = " ".join(str(said.get("interest", "")).split())[:_MAX_INTEREST]
            tags = list(islice(self._tags(said.get("tags")), self._config.tags_per_interest))
            evidence = self._evidence(said.get("events"), history, tags)
            if text and tags and evidence:
                # The model ranks them; weights only have to fall.
                yield Interest(text=text, weight=1 / (1 + place), tags=tuple(tags), evidence=tuple(evidence))
            else:
                self.counts["unsupported"] += 1

    def _parsed(self, answer: str) -> list[Mapping[str, Any]]:
        begin, end = answer.find("["), answer.rfind("]")
        try:
            values = json.loads(answer[begin : end + 1])
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, list):
            self.counts["malformed"] += 1
            return []
        return [value for value in values if isinstance(value, dict)]

    def _tags(self, said: object) -> Iterator[Tag]:
        tags = []
        for name in said if isinstance(said, list) else []:
            tag = self._vocabulary.parse(name) if isinstance(name, str) else None
            fault = "unknown" if tag is None else self._vocabulary.fault(tag)
            if tag is None or fault is not None:
                self.counts[fault or "unknown"] += 1
            else:
                tags.append(tag)
        kept = list(self._vocabulary.without_repeats(tags))
        self.counts.update({"kept": len(kept), "repeated": len(tags) - len(kept)})
        yield from kept

    def _evidence(self, said: object, history: Sequence[int], tags: Sequence[Tag]) -> list[Evidence]:
        """The events that were named and have a part of one of the tags."""
        positions = sorted({at for at in said if type(at) is int} if isinstance(said, list) else ())
        wanted = {part for tag in tags for part in tag.parts}
        borne = [
            at
            for at in positions
            if 0 <= at < len(history) and history[at] >= 0 and wanted & self._reader.of(history[at])
        ]
        return [
            Evidence(event=at, item_id=self._attributes.item_ids[history[at]]) for at in borne[-self._config.evidence :]
        ]


class LanguageExplainer:
    """Explanations by a language model.

    Args:
        writer: answers prompts.
        name: of the model.
    """

    def __init__(self, writer: TextWriter, name: str) -> None:
        self._writer = writer
        self._name = name

    @property
    def name(self) -> str:
        """See `Explainer.name`."""
        return self._name

    def explain(self, claims: Sequence[Claim]) -> list[str]:
        """See `Explainer.explain`."""
        written = self._writer.write([_asked(claim) for claim in claims], temperature=0.0, seed=0)
        return [" ".join(text.split())[: MAX_LENGTH + 1] for text in written]


def _asked(claim: Claim) -> str:
    names = ", ".join(dict.fromkeys(attribute.name for attribute in claim.item.attributes))
    titles = [f'"{past.title}"' for past in claim.history or () if past.title]
    return _EXPLANATION.format(
        tag=claim.tag.name,
        item=f"{claim.item.title} ({names})" if names else claim.item.title,
        history=f"The person has chosen: {', '.join(titles[-3:])}" if titles else "",
    )
