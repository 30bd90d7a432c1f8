"""Interests of a user: what a history holds more of than chance would, with the events that bear it out, and as tags.

RecGPT (arXiv 2507.22879) has language models do both: interests with reasons, then tags for each. `RuleMiner` is the
offline substitute, by counting; `language.LanguageMiner` asks a model. Knows no store.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

from recsys.profile.attributes import ItemAttributes
from recsys.profile.intents.config import InterestConfig
from recsys.profile.intents.tags import Part, PartReader, Tag, TagVocabulary, fits
from recsys.profile.profile import Evidence


@dataclass(frozen=True, kw_only=True)
class Interest:
    """One thing that a user is into."""

    text: str
    """In words."""
    weight: float
    """How much it counts against the user's others."""
    tags: tuple[Tag, ...]
    """Kinds of items that follow from it, best first."""
    evidence: tuple[Evidence, ...]
    """Events that bear it out, oldest first; a bounded number of the newest. At least one."""


class InterestMiner(Protocol):
    """Reads interests off histories. Items are dense indices, oldest first; one below 0 is of no catalogue."""

    def mine(self, histories: Sequence[Sequence[int]]) -> list[list[Interest]]:
        """The interests of each history, strongest first; none of an empty one."""
        ...


@dataclass(kw_only=True)
class _Met:
    """Events that bear a part."""

    weight: float = 0.0
    positions: list[int] = field(default_factory=list)


class RuleMiner:
    """Interests by counting, deterministic.

    Each part of the history's items is weighed by its events, the older the less, times how much it tells
    (`TagVocabulary.weight`). Tags of an interest are the part and what its events have beside it.

    Args:
        vocabulary: the tags that there are.
        reader: of the same catalogue.
        attributes: likewise.
        config: how much is said.
    """

    def __init__(
        self, vocabulary: TagVocabulary, reader: PartReader, attributes: ItemAttributes, config: InterestConfig
    ) -> None:
        self._vocabulary = vocabulary
        self._reader = reader
        self._attributes = attributes
        self._config = config
        self._fading = 0.5 ** (1 / config.half_life)

    def mine(self, histories: Sequence[Sequence[int]]) -> list[list[Interest]]:
        """See `InterestMiner.mine`."""
        return [list(islice(self._interests(history), self._config.interests)) for history in histories]

    def _interests(self, history: Sequence[int]) -> Iterator[Interest]:
        """All of them, strongest first."""
        known = self._vocabulary.bearers.keys()
        parts = [set(self._reader.of(item) & known) if item >= 0 else set() for item in history]
        weights = [self._fading ** (len(history) - 1 - position) for position in range(len(history))]
        met: dict[Part, _Met] = defaultdict(_Met)
        for position, borne in enumerate(parts):
            for part in borne:
                met[part].weight += weights[position]
                met[part].positions.append(position)
        telling = [
            (state.weight * self._vocabulary.weight(part), part)
            for part, state in met.items()
            if part.kind == "category" or len(state.positions) >= self._config.min_count
        ]
        said: set[tuple[int, ...]] = set()
        for weight, part in sorted(telling, key=lambda each: (-each[0], each[1])):
            positions = met[part].positions
            # Makeup, Nails and Nail Polish of the same events are one interest: the one that tells most.
            if tuple(positions) in said:
                continue
            tags = self._tags(part, positions, parts, weights)
            if not tags:
                continue
            said.add(tuple(positions))
            yield Interest(
                text=f"Into {part.name}: {len(positions)} of {len(history)} choices.",
                weight=weight,
                tags=tuple(tags),
                evidence=tuple(self._evidence(history, positions)),
            )

    def _tags(
        self, part: Part, positions: Sequence[int], parts: Sequence[set[Part]], weights: Sequence[float]
    ) -> list[Tag]:
        """The best tags of a part and what stands beside it."""
        vocabulary = self._vocabulary
        together: dict[Tag, float] = defaultdict(float)
        for position in positions:
            for beside in parts[position]:
                together[vocabulary.tag(part, beside)] += weights[position]
        good = [
            (weight * vocabulary.rarity(tag), tag) for tag, weight in together.items() if vocabulary.fault(tag) is None
        ]
        ranked = [tag for _, tag in sorted(good, key=lambda each: (-each[0], each[1].parts))]
        return list(islice(vocabulary.without_repeats(ranked), self._config.tags_per_interest))

    def _evidence(self, history: Sequence[int], positions: Sequence[int]) -> Iterator[Evidence]:
        for position in positions[-self._config.evidence :]:
            yield Evidence(event=position, item_id=self._attributes.item_ids[history[position]])


def best_tag(interests: Sequence[Interest], parts: frozenset[Part]) -> Tag | None:
    """The tag that an item with these parts fits: the first of the strongest interest that has one; None without."""
    return next((tag for interest in interests for tag in interest.tags if fits(tag, parts)), None)
