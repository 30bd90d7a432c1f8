"""What the catalogue says about items in names that a text can carry: categories, brands, eras, titles. Knows no users.

`ItemAttributes` answers both ways: which attributes an item has, and which attributes a text names. Names are compared
word by word, without case and plural.
"""

from __future__ import annotations

import operator
import re
from collections import Counter
from collections.abc import Sequence
from functools import cached_property, lru_cache, partial
from typing import Literal

import numpy as np
import polars as pl

from recsys.config import StrictConfig
from recsys.data import Catalog
from recsys.data.columns import Column
from recsys.generator.lm.texts import clean_text

_WORD = re.compile(r"\w+")
_YEAR_AT_END = re.compile(r"\s*\((\d{4})\)\s*$")
_YEAR = re.compile(r"\d{4}")
_BLANK = r"\s\x1c-\x1f"
"""What is a blank to Python, in the patterns of Polars."""
_ENDING = rf"[{_BLANK}.,;:-]*$"
"""What `clean_text` takes off."""
_KEPT = 1 << 14
"""Items whose attributes stay in memory; titles that are read at a time."""
_ARTICLES = frozenset({"the", "a", "an"})

AttributeKind = Literal["category", "brand", "era", "title"]
_PRECEDENCE: Sequence[AttributeKind] = ("brand", "category", "era")
"""A name that is of two kinds is of the later one."""


class Attribute(StrictConfig):
    """A name that items of the catalogue bear."""

    kind: AttributeKind
    """An `era` is a decade ("1990s")."""
    name: str
    """As the catalogue spells it."""


class ItemAttributes:
    """Attributes by item, and by the words that name them. What an item has is read from the catalogue when it is asked
    for: of ten million items the attributes would take more memory than all else about them. `commonplace` and `named`
    need a pass over the catalogue, of a million items in 2 and in 15 seconds: the first use, or `prepare`.

    Args:
        catalog: `title` and `categories`; `brand` and `year` where it has them. Without `year` a year in brackets at
            the end of a title counts as one.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._frame = catalog.frame
        self.item_ids = catalog.item_ids
        """The source's own ids, by dense index."""
        self.titles: Sequence[str] = Column(catalog.frame["title"], _without_year)
        """Titles without a year at their end, by dense index; empty where there is none."""
        # Of the frame alone: a cache that knew this object would keep it in memory.
        self._of = lru_cache(maxsize=_KEPT)(partial(_read, catalog.frame))

    def prepare(self, *, names: bool) -> None:
        """Make now what a first use would wait for: `commonplace`, and with `names` what `named` needs."""
        _ = self.commonplace
        if names:
            _ = self._longest

    def of(self, item: int) -> tuple[Attribute, ...]:
        """Categories, brand and era of an item (dense index), each once; not its title."""
        return self._of(operator.index(item))

    def title_of(self, item: int) -> Attribute:
        """The title of an item (dense index) as `named` gives it."""
        return Attribute(kind="title", name=self.titles[item])

    @cached_property
    def commonplace(self) -> frozenset[Attribute]:
        """Attributes of more than half of the items: that a user has them says nothing."""
        return frozenset(name for name, count in self._carriers.items() if 2 * count > self._frame.height)

    @cached_property
    def _carriers(self) -> Counter[Attribute]:
        """Of each category, brand and era the number of items that have it."""
        found: Counter[Attribute] = Counter()
        categories = pl.col("categories").list.unique().list.explode(keep_nulls=False, empty_as_null=False)
        for name, count in self._counted(categories):
            found[Attribute(kind="category", name=name)] += count
        if "brand" in self._frame.columns:
            for brand, count in self._counted(_joined(self._frame, "brand")):
                if name := clean_text(brand):
                    found[Attribute(kind="brand", name=name)] += count
        year = _joined(self._frame, "title").str.extract(r"\((\d{4})\)" + _ENDING)
        if "year" in self._frame.columns:
            year = pl.coalesce(_joined(self._frame, "year").str.extract(rf"^[{_BLANK}]*(\d{{4}})" + _ENDING), year)
        for name, count in self._counted(year):
            found[Attribute(kind="era", name=_decade(name))] += count
        return found

    def _counted(self, values: pl.Expr) -> list[tuple[str, int]]:
        counts = self._frame.lazy().select(values.alias("name")).group_by("name").len().collect()
        return [(name, count) for name, count in counts.iter_rows() if name]

    @cached_property
    def _by_words(self) -> dict[tuple[str, ...], Attribute]:
        """Categories, brands and eras by the words of their names: see `_PRECEDENCE`."""
        in_order = sorted(self._carriers, key=lambda attribute: (_PRECEDENCE.index(attribute.kind), attribute.name))
        found = {tuple(words_of(attribute.name)): attribute for attribute in in_order}
        found.pop((), None)
        return found

    @cached_property
    def _titles_by_words(self) -> _TitlesByWords:
        return _TitlesByWords(self.titles)

    @cached_property
    def _longest(self) -> int:
        return max(self._titles_by_words.longest, max(map(len, self._by_words), default=0))

    def _named_by(self, words: tuple[str, ...]) -> Attribute | None:
        """What is both a title and a category is a category."""
        attribute = self._by_words.get(words)
        if attribute is None and (item := self._titles_by_words.find(words)) is not None:
            attribute = self.title_of(item)
        return attribute

    def named(self, text: str) -> list[Attribute]:
        """The attributes that `text` names, each once, in their order; of overlapping names the longest, then the
        first. A title counts only where it begins and ends with a capital or a digit."""
        matches = list(_WORD.finditer(text))
        words = [_stem(match.group()) for match in matches]
        found: dict[Attribute, None] = {}
        at = 0
        while at < len(words):
            for length in range(min(self._longest, len(words) - at), 0, -1):
                attribute = self._named_by(tuple(words[at : at + length]))
                if attribute is None:
                    continue
                ends = matches[at].group()[0] + matches[at + length - 1].group()[0]
                if attribute.kind != "title" or not any(letter.islower() for letter in ends):
                    found[attribute] = None
                    at += length - 1
                    break
            at += 1
        return list(found)


def _read(frame: pl.DataFrame, item: int) -> tuple[Attribute, ...]:
    """What a row says."""
    categories = frame["categories"][item]
    found = [Attribute(kind="category", name=name) for name in (() if categories is None else categories) if name]
    brand, year, title = (
        clean_text(frame[column][item]) if column in frame.columns else "" for column in ("brand", "year", "title")
    )
    if not _YEAR.fullmatch(year):
        in_title = _YEAR_AT_END.search(title)
        year = in_title[1] if in_title else ""
    found += [Attribute(kind="brand", name=brand)] if brand else []
    found += [Attribute(kind="era", name=_decade(year))] if year else []
    return tuple(dict.fromkeys(found))


def _without_year(title: str | None) -> str:
    return _YEAR_AT_END.sub("", clean_text(title))


class _TitlesByWords:
    """Items by the words of their titles, in twelve bytes each: by hashes, and what they point at is compared."""

    def __init__(self, titles: Sequence[str]) -> None:
        self._titles = titles
        self.longest = 0
        """Words of the longest title."""
        hashes = np.zeros(len(titles), dtype=np.int64)
        counts = np.zeros(len(titles), dtype=bool)
        for item, title in enumerate(titles):
            words = tuple(words_of(title))
            # A title of one word, and an article, is too often a word of the language.
            if len(words) - (words[:1] != () and words[0] in _ARTICLES) >= 2:
                hashes[item], counts[item] = hash(words), True
                self.longest = max(self.longest, len(words))
        items = np.flatnonzero(counts).astype(np.int32)
        # Of titles with the same words the last one stands first.
        order = np.lexsort((-items, hashes[items]))
        self._items, self._hashes = items[order], hashes[items][order]

    def find(self, words: tuple[str, ...]) -> int | None:
        """The last item whose title has these words and no others."""
        key = hash(words)
        begin, end = np.searchsorted(self._hashes, key), np.searchsorted(self._hashes, key, side="right")
        found = (int(item) for item in self._items[begin:end])
        return next((item for item in found if tuple(words_of(self._titles[item])) == words), None)


def _joined(frame: pl.DataFrame, column: str) -> pl.Expr:
    """A column as text, however many there are in each row."""
    values = pl.col(column)
    if frame.schema[column] == pl.String:
        return values
    return values.list.eval(pl.element().filter(pl.element() != "")).list.join(", ")


def _decade(year: str) -> str:
    return f"{year[:3]}0s"


def words_of(text: str) -> list[str]:
    """Words as names are compared by: without case and plural."""
    return [_stem(word) for word in _WORD.findall(text)]


def _stem(word: str) -> str:
    word = word.casefold()
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    return word[:-1] if word.endswith("s") and len(word) > 3 else word
