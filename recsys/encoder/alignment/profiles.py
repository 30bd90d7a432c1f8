"""Items and users in words, in several phrasings. Knows catalogue and histories, no model and no training.

EasyRec (arXiv 2408.08821) has an LLM write these profiles and rephrase them three times. Here templates do: what they
say is in the catalogue, and their diversity is that of wording, order and left-out fields. Expect less of them than of
an LLM's. A phrasing is named by its number: equal numbers and seeds give equal texts, on any catalogue.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recsys.data import Catalog, IntArray, Sequences
from recsys.encoder.alignment.config import ProfileConfig

_ITEMS, _USERS = 0, 1  # streams of random numbers


@dataclass(frozen=True, kw_only=True)
class _Phrasing:
    """One `{}` in each segment."""

    title: str
    categories: str
    brand: str
    description: str
    bought: str
    interests: str
    joint: str


_PHRASINGS = (
    _Phrasing(
        title="{}",
        categories="Categories: {}",
        brand="Brand: {}",
        description="{}",
        bought="Bought: {}",
        interests="Interests: {}",
        joint=". ",
    ),
    _Phrasing(
        title="A product called {}",
        categories="found among {}",
        brand="made by {}",
        description="described as: {}",
        bought="A customer who has purchased {}",
        interests="who cares about {}",
        joint=", ",
    ),
    _Phrasing(
        title="Title: {}",
        categories="Department: {}",
        brand="Manufacturer: {}",
        description="Details: {}",
        bought="Purchases: {}",
        interests="Departments: {}",
        joint=" | ",
    ),
    _Phrasing(
        title="For people looking for {}",
        categories="who shop in {}",
        brand="and like {}",
        description="It offers: {}",
        bought="This person recently chose {}",
        interests="and often looks at {}",
        joint="; ",
    ),
    _Phrasing(
        title="This item is {}",
        categories="It belongs to {}",
        brand="It is sold by {}",
        description="About it: {}",
        bought="The basket holds {}",
        interests="The taste is {}",
        joint=". ",
    ),
    _Phrasing(
        title="name = {}",
        categories="kind = {}",
        brand="by = {}",
        description="text = {}",
        bought="history = {}",
        interests="likes = {}",
        joint=", ",
    ),
    _Phrasing(
        title="You can buy {}",
        categories="in the section {}",
        brand="from {}",
        description="The seller says: {}",
        bought="I have got {}",
        interests="I am into {}",
        joint=" - ",
    ),
    _Phrasing(
        title="Offer: {}",
        categories="Shelf: {}",
        brand="Label: {}",
        description="Note: {}",
        bought="Orders: {}",
        interests="Topics: {}",
        joint=" / ",
    ),
)
NUM_PHRASINGS = len(_PHRASINGS)
"""Different wordings; a higher number takes one of them with another draw of order and left-out fields."""


def item_profiles(catalog: Catalog, config: ProfileConfig, variant: int, seed: int = 0) -> list[str]:
    """One text per item in phrasing `variant`: title, categories, brand, first words of the description.

    Fields come in an order drawn per item, some are left out; the title stays. Items without any value get an empty
    text. Columns `brand` and `description` are used where the catalogue has them.
    """
    phrasing = _PHRASINGS[variant % NUM_PHRASINGS]
    rng = np.random.default_rng([seed, _ITEMS, variant])
    fields = {name: _column(catalog, name) for name in ("title", "categories", "brand", "description")}
    # Drawn for all items at once: an item's draw does not depend on which fields the others have.
    orders = rng.random((catalog.num_items, len(fields))).argsort(axis=1)
    kept = rng.random((catalog.num_items, len(fields))) >= config.field_dropout
    kept[:, 0] = True
    names = list(fields)
    texts = []
    for item in range(catalog.num_items):
        segments = []
        for position in orders[item]:
            name = names[position]
            value = fields[name][item]
            if name == "description":
                value = _first_words(value, config.description_words)
            if value and kept[item, position]:
                segments.append(getattr(phrasing, name).format(value))
        texts.append(phrasing.joint.join(segments))
    return texts


def user_texts(
    catalog: Catalog, histories: Sequences, config: ProfileConfig, variant: int = 0, seed: int = 0
) -> list[str]:
    """One text per history (of any user, over any catalogue): the latest titles and the most frequent categories.

    Phrasing 0 is plain: categories, then every title. The others are worded and ordered differently and leave titles
    out. A history without titles and categories gets an empty text.

    Args:
        catalog: what the items of the histories are called.
        histories: oldest first. For training they must end before the item to be predicted.
        config: how much is said.
        variant: number of the phrasing.
        seed: of what a phrasing leaves out. A user's draw depends on the user's row and the phrasing only.
    """
    return UserWriter(catalog, config, seed).write_all(histories, np.arange(len(histories)), variant)


class UserWriter:
    """Writes texts of users over one catalogue: `user_texts` one at a time, for training."""

    def __init__(self, catalog: Catalog, config: ProfileConfig, seed: int) -> None:
        self._config = config
        self._seed = seed
        self._titles = [_first_words(title, config.title_words) for title in catalog.titles]
        self._categories: list[list[str]] = [
            [name for name in names or [] if name] for names in catalog.frame["categories"].to_list()
        ]
        carriers = Counter(name for names in self._categories for name in set(names))
        self._common = {name for name, count in carriers.items() if 2 * count > catalog.num_items}

    def write_all(self, histories: Sequences, rows: IntArray, variant: int) -> list[str]:
        """Texts of histories, oldest items first; `rows` (int64, one each) name their draws."""
        return [
            self.write(history.tolist(), row, variant) for history, row in zip(histories, rows.tolist(), strict=True)
        ]

    def write(self, history: Sequence[int], row: int, variant: int) -> str:
        """The text of a history of item indices, oldest first; `row` names the draw."""
        config = self._config
        phrasing = _PHRASINGS[variant % NUM_PHRASINGS]
        titles = [self._titles[item] for item in reversed(history) if self._titles[item]]
        titles = list(dict.fromkeys(titles))[: config.history_titles]
        interests_first = True
        if variant > 0:
            rng = np.random.default_rng([self._seed, _USERS, variant, row])
            interests_first = bool(rng.random() < 0.5)
            kept = rng.random(len(titles)) >= config.field_dropout
            titles = [title for place, title in enumerate(titles) if place == 0 or kept[place]]
        counts = Counter(name for item in history for name in self._categories[item] if name not in self._common)
        frequent = [name for name, _ in counts.most_common(config.top_categories)]
        segments = [phrasing.interests.format(", ".join(frequent))] if frequent else []
        bought = [phrasing.bought.format("; ".join(titles))] if titles else []
        return phrasing.joint.join(segments + bought if interests_first else bought + segments)


def _column(catalog: Catalog, name: str) -> list[str]:
    """The column as text by item, empty where there is none."""
    if name not in catalog.frame.columns:
        return [""] * catalog.num_items
    values = catalog.frame[name].to_list()
    joined = [", ".join(filter(None, value)) if isinstance(value, list) else value or "" for value in values]
    return [value.strip() for value in joined]


def _first_words(text: str | None, limit: int) -> str:
    return " ".join((text or "").split()[:limit])
