"""What the catalogue says about items in names that a text can carry: categories, brands, eras, titles. Knows no users.

`ItemAttributes` answers both ways: which attributes an item has, and which attributes a text names. Names are compared
word by word, without case and plural.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from recsys.config import StrictConfig
from recsys.data import Catalog
from recsys.generator.lm.texts import column_texts

_WORD = re.compile(r"\w+")
_YEAR_AT_END = re.compile(r"\s*\((\d{4})\)\s*$")
_YEAR = re.compile(r"\d{4}")
_ARTICLES = frozenset({"the", "a", "an"})

AttributeKind = Literal["category", "brand", "era", "title"]


class Attribute(StrictConfig):
    """A name that items of the catalogue bear."""

    kind: AttributeKind
    """An `era` is a decade ("1990s")."""
    name: str
    """As the catalogue spells it."""


class ItemAttributes:
    """Attributes by item, and by the words that name them.

    Args:
        catalog: `title` and `categories`; `brand` and `year` where it has them. Without `year` a year in brackets at
            the end of a title counts as one.
    """

    def __init__(self, catalog: Catalog) -> None:
        raw_titles, brands = column_texts(catalog, "title"), column_texts(catalog, "brand")
        years = _years(column_texts(catalog, "year"), raw_titles)
        self.item_ids = catalog.item_ids
        """The source's own ids, by dense index."""
        self.titles = [_YEAR_AT_END.sub("", title) for title in raw_titles]
        """Titles without a year at their end, by dense index; empty where there is none."""
        self._of = [
            _attributes(categories or [], brand, year)
            for categories, brand, year in zip(catalog.frame["categories"].to_list(), brands, years, strict=True)
        ]
        carriers = Counter(attribute for attributes in self._of for attribute in attributes)
        self.commonplace = frozenset(name for name, count in carriers.items() if 2 * count > catalog.num_items)
        """Attributes of more than half of the items: that a user has them says nothing."""
        self._by_words: dict[tuple[str, ...], Attribute] = {}
        for title in self.titles:
            words = words_of(title)
            # A title of one word, and an article, is too often a word of the language.
            if len(words) - (words[:1] != [] and words[0] in _ARTICLES) >= 2:
                self._by_words[tuple(words)] = Attribute(kind="title", name=title)
        # Categories, brands and eras come last: what is both a title and a category is a category.
        self._by_words |= {tuple(words_of(attribute.name)): attribute for attribute in carriers}
        self._by_words.pop((), None)
        self._longest = max(map(len, self._by_words), default=0)

    def of(self, item: int) -> tuple[Attribute, ...]:
        """Categories, brand and era of an item (dense index), each once; not its title."""
        return self._of[item]

    def title_of(self, item: int) -> Attribute:
        """The title of an item (dense index) as `named` gives it."""
        return Attribute(kind="title", name=self.titles[item])

    def named(self, text: str) -> list[Attribute]:
        """The attributes that `text` names, each once, in their order; of overlapping names the longest, then the
        first. A title counts only where it begins and ends with a capital or a digit."""
        matches = list(_WORD.finditer(text))
        words = [_stem(match.group()) for match in matches]
        found: dict[Attribute, None] = {}
        at = 0
        while at < len(words):
            for length in range(min(self._longest, len(words) - at), 0, -1):
                attribute = self._by_words.get(tuple(words[at : at + length]))
                if attribute is None:
                    continue
                ends = matches[at].group()[0] + matches[at + length - 1].group()[0]
                if attribute.kind != "title" or not any(letter.islower() for letter in ends):
                    found[attribute] = None
                    at += length - 1
                    break
            at += 1
        return list(found)


def _attributes(categories: Sequence[str | None], brand: str, year: str) -> tuple[Attribute, ...]:
    found = [Attribute(kind="category", name=name) for name in categories if name]
    found += [Attribute(kind="brand", name=brand)] if brand else []
    found += [Attribute(kind="era", name=f"{year[:3]}0s")] if year else []
    return tuple(dict.fromkeys(found))


def _years(column: Sequence[str], titles: Sequence[str]) -> list[str]:
    """Four digits by dense index; empty where no year is known."""
    years = []
    for value, title in zip(column, titles, strict=True):
        in_title = _YEAR_AT_END.search(title)
        years.append(value if _YEAR.fullmatch(value) else in_title[1] if in_title else "")
    return years


def words_of(text: str) -> list[str]:
    """Words as names are compared by: without case and plural."""
    return [_stem(word) for word in _WORD.findall(text)]


def _stem(word: str) -> str:
    word = word.casefold()
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    return word[:-1] if word.endswith("s") and len(word) > 3 else word
