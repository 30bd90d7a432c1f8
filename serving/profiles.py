"""Profiles of the served users: written by rule from the history, kept once the user has edited them. Knows no HTTP.

What is stored is what the user left at the last edit and the entry of the history that it had read last. Reading it
goes on from there with the entries that came since, so that edits survive and nothing is written by a read. An event
that arrives late, with a time before that entry, is not read any more.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from feature_store import HistoryEntry, OnlineStore, UserState
from recsys.config import StrictConfig
from recsys.data import Catalog
from recsys.errors import DataError
from recsys.profile.attributes import ItemAttributes
from recsys.profile.profile import Profile
from recsys.profile.template import TemplateConfig, TemplateProfiler
from recsys.profile.wording import Wording


class UnreadableProfileError(DataError):
    """A stored profile is damaged, or of another version of the program."""


class StaleProfileError(DataError):
    """The profile has changed since the user read what is now edited."""


class _Anchor(StrictConfig):
    """An entry of a history."""

    item_id: str
    event_type: str | None
    timestamp: float | None

    def is_of(self, entry: HistoryEntry) -> bool:
        return (self.item_id, self.event_type, self.timestamp) == (entry.item_id, entry.event_type, entry.timestamp)


class _Stored(StrictConfig):
    """What the store keeps of a user's profile."""

    profile: Profile
    last: _Anchor | None
    """The newest entry that the profile has read; None when there was none."""


@dataclass(frozen=True, kw_only=True)
class UserProfile:
    """A user's profile as of now."""

    profile: Profile
    is_stored: bool
    """Whether the user has ever edited it."""

    @property
    def revision(self) -> str:
        """Names what the user reads: 16 hexadecimal digits, another number for other statements."""
        read = [(statement.text, statement.source) for statement in self.profile.statements]
        return hashlib.sha256(json.dumps(read).encode()).hexdigest()[:16]


class UserProfiles:
    """Profiles over one catalogue.

    Args:
        catalog: all items.
    """

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.attributes = ItemAttributes(catalog)
        """Of its items."""
        self.attributes.prepare(names=False)
        self._profiler = TemplateProfiler(self.attributes, TemplateConfig(), Wording.load())

    def over(self, catalog: Catalog) -> UserProfiles:
        """The same over a newer version of the catalogue, if what profiles say of items is the same there; else these,
        which do not know what has changed. The numbers of items are the same in both."""
        if not catalog.shares(self.catalog, _read(catalog)):
            return self
        twin = copy.copy(self)
        twin.catalog = catalog
        return twin

    def read(self, store: OnlineStore, user_id: str) -> UserProfile | None:
        """The profile after all entries of the history; None for a user without history or profile.

        Raises:
            StoreUnavailableError: the store does not answer.
            UnreadableProfileError: the stored profile is.
        """
        stored, entries = _stored(store.profile(user_id)), store.user_entries(user_id)
        if stored is None and not entries:
            return None
        return self._now(stored, entries)

    def edited(self, state: UserState) -> Profile | None:
        """The profile after all entries of the history; None for a user who has edited nothing.

        Args:
            state: of the user, with the whole history.

        Raises:
            UnreadableProfileError: the stored profile is.
        """
        stored = _stored(state.profile)
        return None if stored is None else self._current(stored, state.history)

    def edit(self, store: OnlineStore, user_id: str, texts: Sequence[str], revision: str) -> UserProfile | None:
        """Keep `texts` of the user's profile, see `Profile.edited`; None for an unknown user.

        Args:
            store: where the user is.
            user_id: the user.
            texts: what is left of the profile and added to it.
            revision: of the profile that the user has read. Statements are known by their text, and an event changes
                the counts in many of them: those of another revision would all pass for the user's own.

        Raises:
            StoreUnavailableError: the store does not answer.
            UnreadableProfileError: the stored profile is.
            StaleProfileError: the profile is of another revision by now.
            DataError: a text is empty, too long or stands there twice, or there are too many.
        """
        stored, entries = _stored(store.profile(user_id)), store.user_entries(user_id)
        if stored is None and not entries:
            return None
        before = self._now(stored, entries)
        if revision != before.revision:
            raise StaleProfileError("the profile has changed since you read it; read it again, and edit that")
        profile = before.profile.edited(texts)
        last = entries[-1] if entries else None
        anchor = (
            None
            if last is None
            else _Anchor(item_id=last.item_id, event_type=last.event_type, timestamp=last.timestamp)
        )
        store.put_profile(user_id, _Stored(profile=profile, last=anchor).model_dump_json())
        return UserProfile(profile=profile, is_stored=True)

    def _now(self, stored: _Stored | None, entries: Sequence[HistoryEntry]) -> UserProfile:
        if stored is None:
            return UserProfile(profile=self._updated(Profile(), entries), is_stored=False)
        return UserProfile(profile=self._current(stored, entries), is_stored=True)

    def _current(self, stored: _Stored, entries: Sequence[HistoryEntry]) -> Profile:
        if stored.last is None:
            return self._updated(stored.profile, entries)
        for place in range(len(entries) - 1, -1, -1):
            if stored.last.is_of(entries[place]):
                return self._updated(stored.profile, entries[place + 1 :])
        # So much came since that the history has no room for that entry: it is read anew, and the edits stay.
        kept = stored.profile
        edits = Profile(version=kept.version, statements=kept.edits, dismissed=kept.dismissed)
        return self._updated(edits, entries)

    def _updated(self, profile: Profile, entries: Sequence[HistoryEntry]) -> Profile:
        items = self.catalog.index_of([entry.item_id for entry in entries]).tolist()
        return self._profiler.update([profile], [items])[0].profile


def _read(catalog: Catalog) -> list[str]:
    """The columns that profiles are made from."""
    return [name for name in ("item_id", "title", "categories", "brand", "year") if name in catalog.frame.columns]


def _stored(text: str | None) -> _Stored | None:
    if text is None:
        return None
    try:
        return _Stored.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        raise UnreadableProfileError(
            f"the stored profile cannot be read ({'.'.join(map(str, first['loc']))}: {first['msg']}); delete it"
        ) from error
