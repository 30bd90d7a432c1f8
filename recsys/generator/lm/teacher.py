"""Who explains a case: the interface, the check that no explanation names the answer, and a teacher made of rules.

In GREAM (arXiv 2510.20815) a teacher sees a history and the item that followed, and reasons as though it did not know
the item. What it says must lead to the item and must not give it away. Knows no prompts of the student and no vectors.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from recsys.generator.lm.reasoning import Case, Chain
from recsys.generator.lm.texts import CatalogTexts, first_words, listed

_RUN = 4


class Teacher(Protocol):
    """Explains cases."""

    def explain(self, cases: Sequence[Case]) -> list[Chain | None]:
        """The reasons for each case; None where there is nothing to say, or what was said is of no use."""
        ...


def names_target(chain: Chain, title: str, history_titles: Iterable[str]) -> bool:
    """Whether the reasons give the target away: by its whole title, or by four words of it in a row that no title of
    the history has. Case and punctuation do not count."""
    said = _words(" ".join((chain.evidence, chain.preference, chain.intent)))
    words = _words(title)
    if not words:
        return False
    if _has(said, words):
        return True
    seen = [_words(other) for other in history_titles]
    runs = (words[begin : begin + _RUN] for begin in range(len(words) - _RUN + 1))
    return any(_has(said, run) and not any(_has(other, run) for other in seen) for run in runs)


class RuleTeacher:
    """Reasons from categories, brands and phrases: the offline substitute for a language model's. Deterministic.

    All that it says of the past is true of the history. Knowing the target, it names first what the target shares with
    it. The intent names the target's category, its brand if the user had the brand, and the phrases in common.
    """

    def __init__(self, texts: CatalogTexts, titles: Sequence[str], *, top: int, max_words: int) -> None:
        """Keep what is known of the items.

        Args:
            texts: categories, brands and phrases by row of the catalogue.
            titles: by row of the catalogue; empty where there is none.
            top: categories, brands and phrases, of each at most so many, that a step names.
            max_words: words of a step.
        """
        self._texts = texts
        self._titles = titles
        self._top = top
        self._max_words = max_words

    def explain(self, cases: Sequence[Case]) -> list[Chain | None]:
        """The reasons for each case; None where no category is known, or a name would give the target away."""
        return [self._explain(case) for case in cases]

    def _explain(self, case: Case) -> Chain | None:
        texts, title = self._texts, self._titles[case.target]
        kinds = self._facts((texts.kinds[item] for item in case.history), [texts.kinds[case.target]], title)
        brands = self._facts((texts.brands[item] for item in case.history), [texts.brands[case.target]], title)
        said = (phrase for item in case.history for phrase in texts.keyphrases[item])
        phrases = self._facts(said, texts.keyphrases[case.target], title)
        goal = _sayable([texts.kinds[case.target]], title) or list(kinds.counts)[:1]
        if not goal:
            return None
        latest = _sayable([texts.kinds[case.history[-1]]], title)
        evidence = [
            f"Chose {len(case.history)} items" if len(case.history) > 1 else "Chose one item",
            f": {_counted(kinds.counts)}." if kinds.counts else ".",
            f" Brands: {_counted(brands.counts)}." if brands.counts else "",
            f" Latest: {latest[0]}." if latest else "",
        ]
        preference = [
            f"Mostly into {listed(list(kinds.counts))}." if kinds.counts else "",
            f"Likes {listed(brands.telling)}." if brands.telling else "",
            f"Pays attention to {listed(phrases.telling)}." if phrases.telling else "",
        ]
        intent = [
            f"Wants more of {goal[0]}" if goal[0] in kinds.counts else f"Is ready for something else: {goal[0]}",
            f" by {listed(brands.shared)}" if brands.shared else "",
            f" with {listed(phrases.shared)}" if phrases.shared else "",
        ]
        chain = Chain(
            evidence=self._cut("".join(evidence)),
            preference=self._cut(" ".join(filter(None, preference)) or "Nothing stands out."),
            intent=self._cut("".join(intent) + "."),
        )
        known = (self._titles[item] for item in case.history)
        return None if names_target(chain, title, known) else chain

    def _facts(self, history: Iterable[str], target: Sequence[str], title: str) -> _Facts:
        counts = Counter(_sayable(history, title))
        # Of equals the one that came first in the history.
        first = sorted(counts, key=lambda name: (name not in target, -counts[name]))[: self._top]
        return _Facts(counts={name: counts[name] for name in first}, shared=[name for name in first if name in target])

    def _cut(self, text: str) -> str:
        return first_words(text, self._max_words)


@dataclass(frozen=True, kw_only=True)
class _Facts:
    """Names that a history has, those of the target first."""

    counts: dict[str, int]
    shared: list[str]

    @property
    def telling(self) -> list[str]:
        """What comes back, or is still to come."""
        return [name for name, count in self.counts.items() if count > 1 or name in self.shared]


def _sayable(names: Iterable[str], title: str) -> list[str]:
    """Without what is empty or holds the title. Where two names make up the title together, the check finds it."""
    forbidden = _words(title)
    return [name for name in names if name and not (forbidden and _has(_words(name), forbidden))]


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in counts.items())


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _has(words: list[str], run: list[str]) -> bool:
    return f" {' '.join(run)} " in f" {' '.join(words)} "
