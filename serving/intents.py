"""Interests of the served users, and why an item is one of theirs: from the offline table, else written on demand.

What is shown has passed the rubric against the row that the catalogue has now, so that a table which is older than the
catalogue tells no lies. Texts are written for whoever has an interest in a tag and never for one user: what is kept of
them says nothing of anybody. Used from many threads. Knows no HTTP and no store.
"""

from __future__ import annotations

import copy
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from recsys.data import Catalog
from recsys.generator.lm.config import ChatTeacherConfig
from recsys.profile.attributes import ItemAttributes
from recsys.profile.intents.build import SubjectReader
from recsys.profile.intents.explain import Explainer, RuleExplainer
from recsys.profile.intents.language import LanguageExplainer
from recsys.profile.intents.mining import Interest, RuleMiner, best_tag
from recsys.profile.intents.rubric import Claim, ExplanationRubric, Principle, Subject
from recsys.profile.intents.table import IntentTable
from recsys.profile.intents.tags import PartReader, Tag, fits
from recsys.profile.writers import ChatWriter

Origin = Literal["table", "written", "none"]
"""Where the text of a reason comes from; `none`: there is a tag and no text for it that may be shown."""

_MOST_KEPT = 20_000
"""Texts in memory."""
_EVIDENCE = 3
_READ = ("title", "categories", "brand", "year", "description", "tags", "keywords")
"""Columns that interests and texts are about."""

_Key: TypeAlias = tuple[Tag, Subject]
_Text: TypeAlias = tuple[str | None, Origin]


@dataclass(frozen=True, kw_only=True)
class IntentReason:
    """Why an item is one of a user's."""

    tag: Tag
    text: str | None
    """None where nothing may be shown."""
    origin: Origin
    evidence: tuple[int, ...]
    """Items of the history (dense indices) that fit the tag too, or bear out the interest, newest first."""


@dataclass(kw_only=True)
class Explained:
    """The reasons of a list."""

    reasons: list[IntentReason | None]
    """None for an item that fits no tag of the user's."""
    missing: list[Claim] = field(default_factory=list)
    """What no text is known for."""

    @property
    def origins(self) -> Counter[str]:
        """How many reasons come from where."""
        return Counter(reason.origin for reason in self.reasons if reason is not None)


class OnDemand:
    """An explainer that takes its time: it writes for one request at a time, and others do without.

    Args:
        explainer: writes.
    """

    def __init__(self, explainer: Explainer) -> None:
        self._explainer = explainer
        self._is_writing = threading.Lock()

    @classmethod
    def by_chat(cls, config: ChatTeacherConfig) -> OnDemand:
        """A chat model behind a URL.

        Raises:
            ConfigError: the environment variable of the key is not set.
            ArtifactError: the file of answers cannot be read.
        """
        return cls(LanguageExplainer(ChatWriter(config, "explanations.chat", label=None), config.model))

    def write(self, claims: Sequence[Claim]) -> list[str]:
        """A text for each; empty where there is none, all of them while another request is written for."""
        if not self._is_writing.acquire(blocking=False):
            return [""] * len(claims)
        try:
            return self._explainer.explain(claims)
        finally:
            self._is_writing.release()


class UserIntents:
    """Interests and reasons over one catalogue.

    Args:
        catalog: all items, as they are now.
        attributes: of the same catalogue.
        table: made for this catalogue or an earlier version of it.
        on_demand: writes what the table lacks; rules do so at once when None.
        on_broken: is told each principle that a text broke.
    """

    def __init__(
        self,
        catalog: Catalog,
        attributes: ItemAttributes,
        table: IntentTable,
        on_demand: OnDemand | None = None,
        on_broken: Callable[[Principle], None] = lambda _: None,
    ) -> None:
        attributes.prepare(names=True)
        self._catalog = catalog
        self._table = table
        self._parts = PartReader(catalog, attributes, table.vocabulary.phrases)
        self._subjects = SubjectReader(attributes, self._parts)
        self._miner = RuleMiner(table.vocabulary, self._parts, attributes, table.config.interests)
        self._rubric = ExplanationRubric(attributes)
        self._rules = RuleExplainer(attributes.commonplace)
        self._on_demand = on_demand
        self._on_broken = on_broken
        self._kept: OrderedDict[_Key, _Text] = OrderedDict()
        self._lock = threading.Lock()
        self._outdated: frozenset[int] = frozenset()
        """Items (dense indices) about which something else was known when this was made; nothing is said of them."""

    @property
    def is_old(self) -> bool:
        """Whether something is known of items that is not used here; see `renewed`."""
        return bool(self._outdated)

    def over(self, catalog: Catalog) -> UserIntents:
        """The same over a newer version of the catalogue, in which items have the same numbers, at next to no cost:
        nothing is said of items that have changed or are new, nor found in what a user did with them."""
        twin = copy.copy(self)
        twin._outdated = frozenset(_changed(self._catalog, catalog))
        return twin

    def renewed(self, catalog: Catalog, attributes: ItemAttributes) -> UserIntents:
        """The same over a newer version of the catalogue, made anew; texts that were written stay."""
        twin = UserIntents(catalog, attributes, self._table, self._on_demand, self._on_broken)
        with self._lock:
            twin._kept = self._kept.copy()
        return twin

    def interests(self, history: Sequence[int]) -> list[Interest]:
        """What a user with this history (dense indices, oldest first; below 0 for unknown items) is into."""
        return self._miner.mine([self._read(history)])[0]

    def num_items(self, tag: Tag) -> int:
        """Items that fit a tag, of the catalogue that the table was made for."""
        return len(self._table.vocabulary.fitting(tag))

    def explain(self, items: Sequence[int], history: Sequence[int]) -> Explained:
        """The reasons for items (dense indices), as far as their texts are known; see `write`."""
        history = self._read(history)
        interests = self.interests(history)
        explained = Explained(reasons=[])
        for item in items:
            if item in self._outdated:
                explained.reasons.append(None)
                continue
            subject = self._subjects.of(item)
            tag = best_tag(interests, subject.parts)
            if tag is None:
                explained.reasons.append(None)
                continue
            claim = Claim(tag=tag, item=subject, history=None)
            found = self._known(claim, self._catalog.item_ids[item])
            if found is None and self._on_demand is None:
                found = self._judged(claim, self._rules.explain([claim])[0])
            if found is None:
                explained.missing.append(claim)
            text, origin = found or (None, "none")
            evidence = self._evidence(tag, interests, history)
            explained.reasons.append(IntentReason(tag=tag, text=text, origin=origin, evidence=evidence))
        return explained

    def write(self, claims: Sequence[Claim]) -> None:
        """Have texts written on demand, and keep those that pass. A text that was not written is asked for again; one
        that broke the rubric is not.

        Raises:
            ChatError: the chat model cannot be reached.
        """
        assert self._on_demand is not None, "nothing is missing where rules write"
        for claim, text in zip(claims, self._on_demand.write(claims), strict=True):
            if text:
                self._judged(claim, text)

    def _read(self, history: Sequence[int]) -> list[int]:
        return [-1 if item in self._outdated else item for item in history]

    def _known(self, claim: Claim, item_id: str) -> _Text | None:
        """What was judged before, or stands in the table and passes; None for nothing."""
        key = (claim.tag, claim.item)
        with self._lock:
            kept = self._kept.get(key)
            if kept is not None:
                self._kept.move_to_end(key)
                return kept
        written = self._table.texts.get((claim.tag.name, item_id))
        if written is None or not self._passes(claim, written):
            return None
        return self._keep(key, (written, "table"))

    def _judged(self, claim: Claim, text: str) -> _Text:
        """A new text, or that there is none which may be shown."""
        judged: _Text = (text, "written") if self._passes(claim, text) else (None, "none")
        return self._keep((claim.tag, claim.item), judged)

    def _passes(self, claim: Claim, text: str) -> bool:
        broken = self._rubric.broken(text, claim)
        for principle in broken:
            self._on_broken(principle)
        return not broken

    def _keep(self, key: _Key, text: _Text) -> _Text:
        with self._lock:
            self._kept[key] = text
            while len(self._kept) > _MOST_KEPT:
                self._kept.popitem(last=False)
        return text

    def _evidence(self, tag: Tag, interests: Sequence[Interest], history: Sequence[int]) -> tuple[int, ...]:
        fitting = [item for item in history if item >= 0 and fits(tag, self._parts.of(item))]
        if not fitting:
            interest = next(interest for interest in interests if tag in interest.tags)
            fitting = [history[evidence.event] for evidence in interest.evidence]
        return tuple(dict.fromkeys(reversed(fitting)))[:_EVIDENCE]


def _changed(old: Catalog, new: Catalog) -> list[int]:
    """The items (dense indices) of which a newer version of a catalogue says something else, and those added to it."""
    columns = [name for name in _READ if name in old.frame.columns]
    if new.shares(old, columns):
        return []
    before, now = old.frame.select(columns), new.frame.select(columns)
    differ = before.hash_rows() != now.head(before.height).hash_rows()
    return [*differ.arg_true().to_list(), *range(before.height, now.height)]
