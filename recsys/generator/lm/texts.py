"""What users look for and what they like, in words: made here from the catalogue, or read from a table.

LC-Rec (arXiv 2311.09049, section 3.3.3) has a large language model read reviews and histories and write these texts.
`CatalogTexts` is the weaker offline substitute: it knows neither reviews nor reasons, only which words stand out in an
item's texts and which categories, brands and words come back in a history. `TextTable` holds texts that somebody, or
some model, has written. Knows no prompts and no semantic IDs.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import polars as pl
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, TfidfVectorizer

from recsys.data import Catalog, IntArray
from recsys.errors import DataError
from recsys.generator.lm.config import TextConfig

_RUN = re.compile(
    r"[^\W\d_](?:[\w'’-]*\w)?(?: [^\W\d_](?:[\w'’-]*\w)?)*"
)  # words with nothing but a blank between them
_HORIZONS = ("overall", "long_term", "short_term")


@dataclass(frozen=True, kw_only=True)
class Preferences:
    """A user's taste in words; empty where nothing is known."""

    overall: str = ""
    long_term: str = ""
    short_term: str = ""

    @property
    def known(self) -> list[tuple[str, str]]:
        """Name of the horizon as a prompt has it, and text, of what is known."""
        named = (("overall", self.overall), ("long-term", self.long_term), ("short-term", self.short_term))
        return [(horizon, text) for horizon, text in named if text]


class TextSource(Protocol):
    """Writes intentions and preferences. Equal arguments give equal texts."""

    def intentions(self, item: int) -> Sequence[str]:
        """What somebody may say who looks for `item` (dense index), in several ways; may be empty."""
        ...

    def preferences(self, user: int, history: Sequence[int]) -> Preferences:
        """What `history` (dense indices, oldest first) says about its user (index)."""
        ...


def make_texts(
    config: TextConfig, catalog: Catalog, user_ids: Sequence[str], items: IntArray | None = None
) -> TextSource:
    """The source that `config` asks for. Raises DataError when the table does not fit; see `TextTable.load`."""
    if config.table is not None:
        return TextTable.load(config.table, catalog.item_ids, user_ids, config.max_words)
    return CatalogTexts(catalog, config, items)


class CatalogTexts:
    """Texts from the catalogue alone: the offline substitute for a language model's. Deterministic."""

    def __init__(self, catalog: Catalog, config: TextConfig, items: IntArray | None = None) -> None:
        """Find the keyphrases of all items.

        Args:
            catalog: `title` and `categories`, and `brand` and `description` where it has them.
            config: how much is said.
            items: int64, those whose words are counted; all when not given. Held-out items must not be among them.
        """
        self._config = config
        counted = np.arange(catalog.num_items) if items is None else items
        titles = column_texts(catalog, "title")
        descriptions = column_texts(catalog, "description")
        self.brands = column_texts(catalog, "brand")
        """Brand by dense index, empty where there is none."""
        self.categories: list[list[str]] = [
            list(dict.fromkeys(filter(None, names or []))) for names in catalog.frame["categories"].to_list()
        ]
        """Categories by dense index, without those of more than half of the items: they say nothing."""
        carriers = Counter(name for item in counted.tolist() for name in self.categories[item])
        self.categories = [[name for name in names if 2 * carriers[name] <= len(counted)] for names in self.categories]
        self.kinds = [_rarest(names, carriers) for names in self.categories]
        """The most specific category by dense index, in lower case; empty where there is none."""
        phrases = [
            content_phrases(f"{title} . {title} . {title} . {' . '.join(names)} . {text}")
            for title, names, text in zip(titles, self.categories, descriptions, strict=True)
        ]
        self.keyphrases = _keyphrases(phrases, list(map(_stems, self.kinds, self.brands)), counted, config.keyphrases)
        """Phrases that stand out in an item's texts beside its kind and brand, by dense index, in the order of the
        text."""

    def intentions(self, item: int) -> list[str]:
        """Up to five wordings: phrases as one types them into a search box, a kind of item, a sentence, a brand."""
        phrases, kind, brand = self.keyphrases[item], self.kinds[item], self.brands[item]
        texts = []
        if phrases:
            texts += [" ".join(phrases), f"something with {listed(phrases)}"]
        if phrases and kind:
            texts += [f"{kind}, {', '.join(phrases)}", f"I am looking for {kind}. Important to me: {listed(phrases)}."]
        if kind and brand:
            texts.append(f"{kind} by {brand}")
        return [first_words(text, self._config.max_words) for text in texts]

    def preferences(self, user: int, history: Sequence[int]) -> Preferences:
        """Frequent kinds, brands and phrases of the whole history, and of its earlier and latest part if it has two."""
        recent = self._config.recent_items
        earlier, latest = (history[:-recent], history[-recent:]) if len(history) > recent else ([], [])
        return Preferences(
            overall=self._preference(history, ("Mostly into", "Likes", "Pays attention to")),
            long_term=self._preference(earlier, ("For a long time into", "Stays with", "Keeps coming back to")),
            short_term=self._preference(latest, ("Lately into", "Now picks", "At the moment interested in")),
        )

    def _preference(self, history: Sequence[int], words: tuple[str, str, str]) -> str:
        top = self._config.top
        kinds = _frequent((self.kinds[item] for item in history), top)
        brands = _frequent((self.brands[item] for item in history), top, at_least=2)
        said = (phrase for item in history for phrase in self.keyphrases[item])
        phrases = _frequent(said, top, at_least=2 if kinds else 1)
        sentences = [
            f"{beginning} {listed(names)}."
            for beginning, names in zip(words, (kinds, brands, phrases), strict=True)
            if names
        ]
        return first_words(" ".join(sentences), self._config.max_words)


class TextTable:
    """Texts that were written elsewhere, for example by a language model. What is not in the table has no text."""

    def __init__(self, intentions: dict[int, list[str]], preferences: dict[int, Preferences]) -> None:
        self._intentions = intentions
        self._preferences = preferences

    def intentions(self, item: int) -> list[str]:
        """The intentions of the item, in the order of the table."""
        return self._intentions.get(item, [])

    def preferences(self, user: int, history: Sequence[int]) -> Preferences:
        """The preferences of the user; the table decides of which history."""
        return self._preferences.get(user, Preferences())

    @classmethod
    def load(cls, path: Path, item_ids: Sequence[str], user_ids: Sequence[str], max_words: int) -> TextTable:
        """Read a `.parquet` or `.jsonl` file with the text columns `kind`, `id` and `text`, one text a row.

        `kind` is `intention` (then `id` is an item's, several rows an item are several wordings), or one of `overall`,
        `long_term` and `short_term` (then `id` is a user's, one row each). A preference must be written of the user's
        training history *without its last item*, which is a target where preferences are used: two interactions before
        the validation one in a leave-last-out split.

        Raises:
            DataError: the file cannot be read, or a column, kind, id or text is not as described.
        """
        frame = _read_table(path)
        kinds = ("intention", *_HORIZONS)
        _require(path, frame, ~pl.col("kind").is_in(list(kinds)), f"kind: must be one of {', '.join(kinds)}")
        _require(path, frame, pl.col("text").str.strip_chars() == "", "text: is empty; leave the row out")
        about_items = frame.filter(pl.col("kind") == "intention")
        about_users = frame.filter(pl.col("kind") != "intention")
        _require(path, about_items, ~pl.col("id").is_in(list(item_ids)), "id: is no item of the catalogue")
        _require(path, about_users, ~pl.col("id").is_in(list(user_ids)), "id: is no user of the log")
        repeated = pl.struct("kind", "id").is_duplicated()
        _require(path, about_users, repeated, "id: has several texts of one kind; keep one")
        items = {item_id: index for index, item_id in enumerate(item_ids)}
        users = {user_id: index for index, user_id in enumerate(user_ids)}
        intentions: dict[int, list[str]] = {}
        for row in about_items.iter_rows(named=True):
            intentions.setdefault(items[row["id"]], []).append(first_words(row["text"], max_words))
        preferences: dict[int, dict[str, str]] = {}
        for row in about_users.iter_rows(named=True):
            preferences.setdefault(users[row["id"]], {})[row["kind"]] = first_words(row["text"], max_words)
        return cls(intentions, {user: Preferences(**texts) for user, texts in preferences.items()})


def column_texts(catalog: Catalog, name: str) -> list[str]:
    """A text column by dense index, with single blanks, without what punctuation ends it; empty where there is none."""
    if name not in catalog.frame.columns:
        return [""] * catalog.num_items
    return [clean_text(value) for value in catalog.frame[name].to_list()]


def clean_text(value: str | Sequence[str | None] | pl.Series | None) -> str:
    """A value of a text column as `column_texts` has it."""
    joined = (value or "") if value is None or isinstance(value, str) else ", ".join(filter(None, value))
    return " ".join(joined.split()).rstrip(" .,;:-")


def first_words(text: str, limit: int) -> str:
    """At most `limit` words; ends with a sentence where one ends in the later half of what is kept."""
    words = text.split()
    if len(words) <= limit:
        return " ".join(words)
    ends = [place for place in range(limit // 2, limit) if words[place].endswith((".", "!", "?"))]
    return " ".join(words[: ends[-1] + 1 if ends else limit]).rstrip(" ,;:-")


def content_phrases(text: str) -> list[str]:
    """Words and pairs of neighbours, lower case, without stop words, numbers and what punctuation separates."""
    found = []
    for run in _RUN.findall(text.lower()):
        words = run.split()
        content = [len(word) > 2 and word not in ENGLISH_STOP_WORDS for word in words]
        for place, word in enumerate(words):
            if content[place]:
                found.append(word)
                if place + 1 < len(words) and content[place + 1] and words[place + 1] != word:
                    found.append(f"{word} {words[place + 1]}")
    return found


def _keyphrases(phrases: list[list[str]], named: list[set[str]], counted: IntArray, limit: int) -> list[list[str]]:
    """By TF-IDF, no two with a word in common and none with a word of `named`, in the order of the text."""
    carriers = Counter(phrase for item in counted.tolist() for phrase in set(phrases[item]))
    # What one item alone has is a number or a name of its own: nobody asks for it. What half have tells nothing apart.
    vocabulary = sorted(phrase for phrase, count in carriers.items() if count >= 2 and 2 * count <= len(counted))
    if not vocabulary:
        return [[] for _ in phrases]
    vectorizer = TfidfVectorizer(analyzer=list, vocabulary=vocabulary, sublinear_tf=True)
    vectorizer.fit([phrases[item] for item in counted.tolist()])
    scores = vectorizer.transform(phrases).tocsr()
    chosen = []
    for item, used in enumerate(named):
        row = slice(scores.indptr[item], scores.indptr[item + 1])
        found = ((score, vocabulary[index]) for score, index in zip(scores.data[row], scores.indices[row], strict=True))
        kept: list[str] = []
        # Of equals the longer: two words that only come together are one phrase.
        for _, phrase in sorted(found, key=lambda each: (-each[0], -each[1].count(" "), each[1])):
            if len(kept) < limit and not used & _stems(phrase):
                kept.append(phrase)
                used = used | _stems(phrase)
        chosen.append(sorted(kept, key=phrases[item].index))
    return chosen


def _stems(*phrases: str) -> set[str]:
    words = (word.rstrip("s") for phrase in phrases for word in re.findall(r"\w+", phrase.lower()))
    return {word for word in words if word}


def _rarest(names: list[str], carriers: Counter[str]) -> str:
    # The last of equals: sources list the general before the specific.
    return min(reversed(names), key=lambda name: carriers[name], default="").lower()


def _frequent(values: Iterable[str], limit: int, at_least: int = 1) -> list[str]:
    counts = Counter(value for value in values if value)
    return [value for value, count in counts.most_common(limit) if count >= at_least]


def listed(names: Sequence[str]) -> str:
    """At least one name as one says them: "a", "a and b", "a, b and c"."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _read_table(path: Path) -> pl.DataFrame:
    if path.suffix not in (".parquet", ".jsonl"):
        raise DataError(f"{path}: a table of texts is a .parquet or .jsonl file; found {path.suffix or 'no suffix'}")
    try:
        frame = pl.read_parquet(path) if path.suffix == ".parquet" else pl.read_ndjson(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{path}: cannot be read: {' '.join(str(error).split())}") from error
    for column in ("kind", "id", "text"):
        if frame.schema.get(column) != pl.String():
            raise DataError(f"{path}: column {column!r} must be text, found {frame.schema.get(column)}")
        _require(path, frame, pl.col(column).is_null(), f"{column}: is null; leave the row out")
    return frame


def _require(path: Path, frame: pl.DataFrame, broken: pl.Expr, what: str) -> None:
    rows = frame.filter(broken)
    if rows.height:
        example = {name: rows[name][0] for name in ("kind", "id")}
        raise DataError(f"{path}: {what} ({rows.height} of {frame.height} rows, e.g. {example})")
