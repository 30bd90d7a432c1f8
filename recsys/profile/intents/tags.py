"""Tags: short names for kinds of items, made of what the catalogue says of its items. Knows no users.

RecGPT (arXiv 2507.22879) has a language model write tags, "modifier + noun phrase", and asks of each that it is valid
(the catalogue has such items), specific and no repetition. Here a tag is one or two *parts*, each a category, brand,
decade, topic or phrase that items bear, so that all of this can be decided; an item fits a tag that it bears all parts
of.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.data import Catalog
from recsys.data.sequences import IntArray
from recsys.generator.lm.config import TextConfig
from recsys.generator.lm.texts import CatalogTexts, column_texts, content_phrases
from recsys.profile.attributes import ItemAttributes, words_of
from recsys.profile.intents.config import TagConfig

PartKind = Literal["era", "brand", "phrase", "topic", "category"]
"""In the order in which a name has them: the noun comes last. A topic is what somebody has tagged the items with."""
Fault = Literal["invalid", "unspecific", "redundant"]
"""What is wrong with a tag: hardly any item fits it; too many do, or it has no noun; one of its parts says it all."""

_ORDER = {kind: place for place, kind in enumerate(get_args(PartKind))}
# How much there is of a thing says nothing about its kind.
_AMOUNTS = {
    "bottle", "box", "count", "each", "fluid", "gram", "inch", "jar", "large", "lot", "mini", "ounce", "pack", "pair",
    "pcs", "piece", "pound", "set", "size", "small", "tube", "value",
}  # fmt: skip
_LEAST_SHARE, _LEAST_LIFT = 0.5, 3.0
_FILLING = frozenset(["a", "an", "and", "by", "for", "from", "in", "of", "on", "or", "that", "the", "to", "with"])


class Part(NamedTuple):
    """Something that items bear."""

    kind: PartKind
    name: str
    """As the catalogue spells it; phrases in lower case."""


@dataclass(frozen=True)
class Tag:
    """A kind of item: what bears all of the parts."""

    parts: tuple[Part, ...]
    """One or two, in the order of the name."""

    @cached_property
    def name(self) -> str:
        """What to call it: "1990s Sci-Fi", "waterproof Mascara"."""
        return " ".join(part.name for part in self.parts)

    @cached_property
    def words(self) -> frozenset[str]:
        """Stems of its words: tags with equal ones are the same to a reader."""
        return frozenset(word for part in self.parts for word in words_of(part.name))


class TagVocabulary:
    """All parts, the items that bear them, and the tags that can be made of them.

    Args:
        num_items: of the catalogue.
        bearers: int64 ascending, the items of each part; no two parts read the same, and all have words.
        config: which tags are good ones.
    """

    def __init__(self, num_items: int, bearers: Mapping[Part, IntArray], config: TagConfig) -> None:
        self.num_items = num_items
        self.bearers = bearers
        self._config = config
        squares = np.zeros(num_items)
        for part, items in bearers.items():
            squares[items] += self.weight(part) ** 2
        self._item_norms = np.sqrt(squares)
        self._of_words = {_key(part.name): part for part in bearers}
        self._longest = max(map(len, self._of_words), default=0)
        self._fitting = lru_cache(maxsize=50_000)(self._intersection)

    @classmethod
    def of(cls, catalog: Catalog, attributes: ItemAttributes, config: TagConfig) -> TagVocabulary:
        """The vocabulary of a catalogue: what `min_items` items bear, and at most half of all.

        Phrases stand out in their texts, say no amount and are no attribute's name. Topics and phrases of one word must
        belong to a kind of item, as "lash" does and "new" does not: half of their items are of a category that has them
        three times as often as chance would.
        """
        texts = CatalogTexts(catalog, TextConfig(keyphrases=config.keyphrases))
        standing_out: dict[str, set[int]] = defaultdict(set)
        for item, found in enumerate(texts.keyphrases):
            for phrase in found:
                standing_out[phrase].add(item)
        named = {tuple(words_of(each.name)) for item in range(catalog.num_items) for each in attributes.of(item)}
        named_words = {word for words in named for word in words}
        phrases = frozenset(
            phrase
            for phrase, items in standing_out.items()
            if len(items) >= config.min_items
            and "'" not in phrase
            and not _AMOUNTS & set(words_of(phrase))
            and not set(words_of(phrase)) <= named_words
        )
        reader = PartReader(catalog, attributes, phrases)
        bearers: dict[Part, list[int]] = defaultdict(list)
        for item in range(catalog.num_items):
            for part in sorted(reader.of(item)):
                bearers[part].append(item)
        kept = {
            part: np.array(items, dtype=np.int64)
            for part, items in bearers.items()
            if config.min_items <= len(items) <= len(catalog) / 2
            and not (_is_vague(part) and _belongs_nowhere(part, bearers, len(catalog)))
        }
        # What reads the same is the same: a topic "comedies" is no second Comedy.
        first: dict[tuple[str, ...], Part] = {}
        for part in sorted(kept, key=lambda part: (-_ORDER[part.kind], part.name)):
            first.setdefault(_key(part.name), part)
        first.pop((), None)
        return cls(catalog.num_items, {part: kept[part] for part in first.values()}, config)

    @property
    def phrases(self) -> frozenset[str]:
        """The phrases that are parts."""
        return frozenset(part.name for part in self.bearers if part.kind == "phrase")

    def weight(self, part: Part) -> float:
        """How much a part tells: the logarithm of one over the share of items that bear it."""
        return float(np.log(self.num_items / len(self.bearers[part])))

    def tag(self, *parts: Part) -> Tag:
        """The tag of these parts, in the order of a name; of two categories the rarer is the modifier."""
        ordered = sorted(set(parts), key=lambda part: (_ORDER[part.kind], len(self.bearers[part]), part.name))
        return Tag(tuple(ordered))

    def fitting(self, tag: Tag) -> IntArray:
        """int64, ascending: the items that bear all parts of a tag."""
        items: IntArray = self._fitting(tag)
        return items

    def fault(self, tag: Tag) -> Fault | None:
        """What is wrong with a tag; None for a good one. Besides the number of its items it needs a noun: a category,
        or a phrase or topic of two words."""
        count = len(self.fitting(tag))
        if count < self._config.min_items:
            return "invalid"
        says_as_much = any(_is_noun(part) and len(self.bearers[part]) == count for part in tag.parts)
        if len(tag.parts) > 1 and (says_as_much or not _differ(tag.parts)):
            return "redundant"
        has_noun = any(_is_noun(part) for part in tag.parts)
        most = max(self._config.few_items, self._config.max_share * self.num_items)
        return None if has_noun and count <= most else "unspecific"

    def rarity(self, tag: Tag) -> float:
        """As `weight`, of the items that fit a tag."""
        return float(np.log(self.num_items / max(1, len(self.fitting(tag)))))

    def cosines(self, tag: Tag) -> npt.NDArray[np.float64]:
        """float64 [num_items]: cosine of the tag and each item, as vectors over the parts with their weights."""
        scores = np.zeros(self.num_items)
        for part in tag.parts:
            scores[self.bearers[part]] += self.weight(part) ** 2
        length = np.sqrt(sum(self.weight(part) ** 2 for part in tag.parts))
        scale = length * self._item_norms
        cosines: npt.NDArray[np.float64] = np.divide(scores, scale, out=np.zeros(self.num_items), where=scale > 0)
        return cosines

    def items(self, tag: Tag, limit: int) -> IntArray:
        """int64: at most `limit` items that fit a tag, by cosine; equals by dense index."""
        fitting = self.fitting(tag)
        return fitting[np.argsort(-self.cosines(tag)[fitting], kind="stable")][:limit]

    def without_repeats(self, tags: Iterable[Tag]) -> Iterator[Tag]:
        """The tags, of those that read the same or that the same items fit only the first."""
        met: set[frozenset[str] | bytes] = set()
        for tag in tags:
            keys: set[frozenset[str] | bytes] = {tag.words, self.fitting(tag).tobytes()}
            if not keys & met:
                yield tag
            met |= keys

    def parse(self, text: str) -> Tag | None:
        """The tag that a text names; None if it has words that no part has, or more than two parts.

        Of overlapping names the longest counts, then the first.
        """
        words = _key(text)
        found: list[Part] = []
        at = 0
        while at < len(words):
            for length in range(min(self._longest, len(words) - at), 0, -1):
                part = self._of_words.get(words[at : at + length])
                if part is not None:
                    found.append(part)
                    at += length
                    break
            else:
                return None
        return self.tag(*found) if 1 <= len(set(found)) <= 2 else None

    def _intersection(self, tag: Tag) -> IntArray:
        items = self.bearers[tag.parts[0]]
        for part in tag.parts[1:]:
            items = np.intersect1d(items, self.bearers[part], assume_unique=True)
        return items


class PartReader:
    """What an item bears, read off its row of the catalogue when it is asked for, so that it is true of that row.

    Args:
        catalog: all items; `description`, and `tags` and `keywords` if they are lists, are read where it has them.
        attributes: of the same catalogue.
        phrases: that count as parts.
    """

    def __init__(self, catalog: Catalog, attributes: ItemAttributes, phrases: frozenset[str]) -> None:
        self._attributes = attributes
        self._titles = column_texts(catalog, "title")
        self._descriptions = column_texts(catalog, "description")
        self._topics: list[list[str]] = [[] for _ in self._titles]
        for column in ("tags", "keywords"):
            if catalog.frame.schema.get(column) == pl.List(pl.String()):
                for topics, names in zip(self._topics, catalog.frame[column].to_list(), strict=True):
                    topics += filter(None, names or [])
        self._phrases = phrases
        self._known: dict[int, frozenset[Part]] = {}

    def of(self, item: int) -> frozenset[Part]:
        """The parts of an item (dense index), commonplace attributes left out."""
        parts = self._known.get(item)
        if parts is None:
            parts = self._known[item] = frozenset(self._read(item))
        return parts

    def _read(self, item: int) -> Iterable[Part]:
        for attribute in self._attributes.of(item):
            if attribute.kind != "title" and attribute not in self._attributes.commonplace:
                yield Part(attribute.kind, attribute.name)
        for topic in self._topics[item]:
            yield Part("topic", topic)
        for phrase in content_phrases(f"{self._titles[item]} . {self._descriptions[item]}"):
            if phrase in self._phrases:
                yield Part("phrase", phrase)


def fits(tag: Tag, parts: frozenset[Part]) -> bool:
    """Whether an item with these parts fits a tag."""
    return all(part in parts for part in tag.parts)


def _key(text: str) -> tuple[str, ...]:
    """What counts when names are compared: "Bath & Body" reads like "bath and body"."""
    return tuple(word for word in words_of(text) if word not in _FILLING)


def _is_noun(part: Part) -> bool:
    return part.kind == "category" or (part.kind in ("phrase", "topic") and " " in part.name)


def _is_vague(part: Part) -> bool:
    return part.kind == "topic" or (part.kind == "phrase" and " " not in part.name)


def _belongs_nowhere(word: Part, bearers: Mapping[Part, Sequence[int]], num_items: int) -> bool:
    own = set(bearers[word])
    for part, items in bearers.items():
        if part.kind == "category":
            share = len(own.intersection(items)) / len(own)
            if share >= _LEAST_SHARE and share >= _LEAST_LIFT * len(items) / num_items:
                return False
    return True


def _differ(parts: Sequence[Part]) -> bool:
    """Whether no two of the parts have a word in common."""
    stems = [word for part in parts for word in set(words_of(part.name))]
    return len(set(stems)) == len(stems)
