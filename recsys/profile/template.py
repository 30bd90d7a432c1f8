"""Profiles by rule: what a user met most often of late, attribute by attribute. Deterministic, and exact when streamed.

A profile is a fold over the events: each event fades what was met before by a constant factor and adds itself. The
state is in the profile (`tallies`), so going on from a stored profile gives the very profile that reading the whole
history gives, also where rare attributes were forgotten on the way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from pydantic import Field

from recsys.config import StrictConfig
from recsys.profile.attributes import Attribute, AttributeKind, ItemAttributes
from recsys.profile.profile import MAX_STATEMENT_LENGTH, Evidence, Profile, Statement, Tally
from recsys.profile.profiler import Written
from recsys.profile.wording import Wording

_NOTHING = 1e-6
"""A weight below which an attribute is forgotten."""
_KINDS: tuple[AttributeKind, ...] = ("category", "brand", "era")


class TemplateConfig(StrictConfig):
    """How much a template profile says."""

    half_life: float = Field(default=10.0, gt=0)
    """Events after which a meeting counts half."""
    categories: int = Field(default=4, ge=0)
    """Categories that are named at most."""
    brands: int = Field(default=2, ge=0)
    """Brands that are named at most."""
    eras: int = Field(default=1, ge=0)
    """Decades that are named at most."""
    min_share: float = Field(default=0.15, ge=0, le=1)
    """Share of the faded events that a named attribute has at least."""
    min_count: int = Field(default=2, ge=1)
    """Events that a named brand or era has at least."""
    kept: int = Field(default=60, ge=1)
    """Attributes that a profile goes on from; the one of least weight is forgotten."""
    evidence: int = Field(default=5, ge=1)
    """Events that a statement names at most, the newest."""


class TemplateProfiler:
    """Favourite categories, brands and eras with their counts.

    Args:
        attributes: of the catalogue.
        config: how much is said.
        wording: the sentences.
    """

    def __init__(self, attributes: ItemAttributes, config: TemplateConfig, wording: Wording) -> None:
        self._attributes = attributes
        self._config = config
        self._wording = wording
        self._fading = 0.5 ** (1 / config.half_life)

    def write(self, histories: Sequence[Sequence[int]]) -> list[Written]:
        """See `Profiler.write`."""
        return self.update([Profile()] * len(histories), histories)

    def update(self, profiles: Sequence[Profile], events: Sequence[Sequence[int]]) -> list[Written]:
        """See `Profiler.update`. Tokens are words. An item below 0 is one that the catalogue does not have: it takes
        its place in the history, and says nothing."""
        return [self._update(profile, new) for profile, new in zip(profiles, events, strict=True)]

    def _update(self, profile: Profile, events: Sequence[int]) -> Written:
        if len(events) == 0:
            return Written(profile=profile, tokens_read=0)
        met = {tally.attribute: _Met(tally) for tally in profile.tallies}
        for position, item in enumerate(events, start=profile.upto):
            self._read(met, position, item)
        upto = profile.upto + len(events)
        tallies = sorted((state.tally(attribute) for attribute, state in met.items()), key=_rank)
        rewritten = profile.rewritten(upto, self._statements(tallies, upto, set(profile.dismissed)), tallies)
        words = len(profile.text.split()) + sum(len(self._described(item).split()) for item in events if item >= 0)
        return Written(profile=rewritten, tokens_read=words)

    def _read(self, met: dict[Attribute, _Met], position: int, item: int) -> None:
        """Go on by one event."""
        for state in met.values():
            state.weight *= self._fading
        for attribute in self._attributes.of(item) if item >= 0 else ():
            if attribute not in self._attributes.commonplace:
                seen = Evidence(event=position, item_id=self._attributes.item_ids[item])
                state = met.setdefault(attribute, _Met())
                state.count += 1
                state.weight += 1.0
                state.evidence = [*state.evidence, seen][-self._config.evidence :]
        lightest = sorted(met, key=lambda attribute: _rank_of(met[attribute].weight, attribute))
        for attribute in lightest[self._config.kept :]:
            del met[attribute]
        for attribute in [each for each, state in met.items() if state.weight < _NOTHING]:
            del met[attribute]

    def _statements(self, tallies: Sequence[Tally], total: int, dismissed: Collection[Attribute]) -> list[Statement]:
        config = self._config
        limits = {"category": config.categories, "brand": config.brands, "era": config.eras}
        all_events = (1 - self._fading**total) / (1 - self._fading)
        chosen: list[Tally] = []
        taken: Counter[str] = Counter()
        for tally in tallies:
            # What is dismissed takes no place of what may be said.
            if tally.attribute in dismissed:
                continue
            kind = tally.attribute.kind
            enough = kind == "category" or tally.count >= config.min_count
            if enough and tally.weight >= config.min_share * all_events and taken[kind] < limits[kind]:
                taken[kind] += 1
                chosen.append(tally)
        # Kind by kind, as one reads it; within a kind the order stays.
        chosen.sort(key=lambda tally: _KINDS.index(tally.attribute.kind))
        return [
            Statement(
                text=self._wording.statement(tally.attribute, count=tally.count, total=total)[:MAX_STATEMENT_LENGTH],
                source="template",
                about=(tally.attribute,),
                evidence=tally.evidence,
            )
            for tally in chosen
        ]

    def _described(self, item: int) -> str:
        names = (attribute.name for attribute in self._attributes.of(item))
        return " ".join((self._attributes.titles[item], *names))


class _Met:
    """A tally in the making."""

    def __init__(self, tally: Tally | None = None) -> None:
        self.count = 0 if tally is None else tally.count
        self.weight = 0.0 if tally is None else tally.weight
        self.evidence: list[Evidence] = [] if tally is None else list(tally.evidence)

    def tally(self, attribute: Attribute) -> Tally:
        return Tally(attribute=attribute, count=self.count, weight=self.weight, evidence=tuple(self.evidence))


def _rank(tally: Tally) -> tuple[float, str, str]:
    return _rank_of(tally.weight, tally.attribute)


def _rank_of(weight: float, attribute: Attribute) -> tuple[float, str, str]:
    """Heaviest first; equals in the order of their names."""
    return -weight, attribute.kind, attribute.name
