"""Principles that can be checked: the share of them that a text written for a proposal keeps.

After RLBFF (arXiv 2509.21319), whose reward is the verdict on binary principles, and OpenRubrics (arXiv 2510.07743),
whose rubrics are hard rules and principles; here every principle is a rule that the catalogue can decide:

    true_attributes     every category that the text names is one of the item's, or of a history item that it names
    refers_to_history   it names an item of the history by its title
    brief               it has at most `most_sentences` sentences
    no_price            it says nothing of prices, which the catalogue does not vouch for

An empty text keeps none of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
from pydantic import Field, field_validator
from torch import Tensor

from recsys.alignment.rewards.context import RewardContext, required
from recsys.alignment.rewards.reward import TermConfig
from recsys.alignment.rewards.texts import as_rewards, num_sentences, rollout_texts, words
from recsys.alignment.rollouts import Rollouts

Principle: TypeAlias = Literal["true_attributes", "refers_to_history", "brief", "no_price"]

PRICE = re.compile(
    r"[$€£¥]|\b\d+(?:[.,]\d+)?\s?(?:usd|eur|gbp|dollars?|euros?|pounds?|cents?)\b|\d\s?%\s?off\b"
    r"|\b(?:price[sd]?|pricing|cheap(?:er|est|ly)?|expensive|inexpensive|discount(?:s|ed)?|bargains?|on sale"
    r"|costs?|affordabl[ey]|free of charge)\b",
    re.IGNORECASE,
)
"""What says something of prices."""


class RubricConfig(TermConfig):
    """The weighted share of principles that a text keeps."""

    kind: Literal["rubric"] = "rubric"
    principles: dict[Principle, float] = Field(default_factory=lambda: dict.fromkeys(get_args(Principle), 1.0))
    """Weight of each principle; those left out are not checked."""
    most_sentences: int = Field(default=2, ge=1)
    """Of a brief text."""

    @field_validator("principles")
    @classmethod
    def _weights_are_positive(cls, principles: dict[Principle, float]) -> dict[Principle, float]:
        if not principles or min(principles.values()) <= 0:
            raise ValueError(f"principles={principles}: name at least one, each with a weight above 0")
        return principles

    def build(self, context: RewardContext) -> RubricReward:
        """Reads titles and the categories with their names."""
        return RubricReward(self, context)


@dataclass(frozen=True)
class Explanation:
    """A text, and what it must be true to."""

    text: str
    own: frozenset[str]
    """Lower-case names of the item's categories."""
    title: str | None
    """The item's."""
    history: Sequence[tuple[str, frozenset[str]]]
    """Title and lower-case category names of each history item with a title."""

    @property
    def named(self) -> list[tuple[str, frozenset[str]]]:
        """The history items that the text names."""
        return [(title, names) for title, names in self.history if _mentions(self.text, title)]

    def without_titles(self) -> str:
        """The text with the titles that it names cut out: a word of a title is no claim, and its full stop no end."""
        titles = [title for title, _ in self.named] + ([self.title] if self.title else [])
        text = self.text
        for title in sorted(titles, key=len, reverse=True):
            text = _phrase(title).sub("_", text)
        return text


class RubricReward:
    """See the module."""

    def __init__(self, config: RubricConfig, context: RewardContext) -> None:
        self.name = config.term_name
        self._principles = config.principles
        self._titles = required(context.titles, "titles", self.name)
        names = [name.lower() for name in required(context.category_names, "category names", self.name)]
        groups = required(context.categories, "categories", self.name)
        self._categories = [
            frozenset(names[group] for group in groups.ids[begin:end])
            for begin, end in zip(groups.offsets[:-1], groups.offsets[1:], strict=True)
        ]
        # Longer names first, so that "science fiction" is not read as "fiction".
        ordered = sorted({name for name in names if name}, key=len, reverse=True)
        vocabulary = re.compile("|".join(_bounded(name) for name in ordered) or r"(?!)", re.IGNORECASE)
        self._checks: dict[Principle, Callable[[Explanation], bool]] = {
            "true_attributes": lambda text: _says_only_what_is_true(text, vocabulary),
            "refers_to_history": lambda text: bool(text.named),
            "brief": lambda text: num_sentences(text.without_titles()) <= config.most_sentences,
            "no_price": lambda text: PRICE.search(text.without_titles()) is None,
        }

    def explanation(self, text: str, item: int, history: Sequence[int]) -> Explanation:
        """A text for `item`, written for a reader of `history`."""
        titled = [(self._titles[past], self._categories[past]) for past in history]
        return Explanation(
            text=text,
            own=self._categories[item],
            title=self._titles[item],
            history=[(title, names) for title, names in titled if title],
        )

    def verdicts(self, explanation: Explanation) -> dict[Principle, bool]:
        """Whether each principle of the rubric is kept."""
        empty = not words(explanation.text)
        return {name: not empty and self._checks[name](explanation) for name in self._principles}

    def __call__(self, rollouts: Rollouts) -> Tensor:
        """float32 [B, G] in 0..1.

        Raises:
            RewardError: the policy wrote no texts.
        """
        total = sum(self._principles.values())
        values = []
        rows = zip(rollout_texts(rollouts, self.name), rollouts.items.tolist(), rollouts.histories, strict=True)
        for texts, items, history in rows:
            past = np.unique(history).tolist()
            verdicts = [
                self.verdicts(self.explanation(text, item, past)) if item >= 0 else {}
                for text, item in zip(texts, items, strict=True)
            ]
            values.append(
                [sum(self._principles[name] for name, kept in row.items() if kept) / total for row in verdicts]
            )
        return as_rewards(values, rollouts)


def _says_only_what_is_true(explanation: Explanation, vocabulary: re.Pattern[str]) -> bool:
    said = {match.group().lower() for match in vocabulary.finditer(explanation.without_titles())}
    return said <= explanation.own.union(*(names for _, names in explanation.named))


def _mentions(text: str, title: str) -> bool:
    return _phrase(title).search(text) is not None


def _phrase(phrase: str) -> re.Pattern[str]:
    return re.compile(_bounded(phrase), re.IGNORECASE)


def _bounded(phrase: str) -> str:
    """A pattern for a phrase that begins and ends where words do, whatever it begins and ends with."""
    return rf"(?<!\w){re.escape(phrase)}(?!\w)"
