"""Changes of the catalogue: what items became after a model was made, for all processes of a store. Knows no model.

Each change raises the version of the catalogue. Who has seen one version reads what has changed since then, each item
as it is now. The keys are described in `feature_store.keys`; all of them have one hash tag.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from operator import methodcaller
from typing import Any, Literal

from feature_store.connection import Command, Script
from feature_store.keys import Keys

PlaceOutcome = Literal["kept", "known", "taken"]
"""`known`: the item had a placement, which stays. `taken`: another item has the place."""

_CHANGE = Script("change_items")
_PLACE = Script("place_items")
_READ = Script("read_items")
_OUTCOMES: dict[int, PlaceOutcome] = {1: "kept", 0: "known", -1: "taken"}
_AT_ONCE = 500
"""Items of a script: other clients wait meanwhile."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredItem:
    """What has become of an item."""

    item_id: str
    text: str | None
    """What was put last; None for an item of a bundle that was removed and never put."""
    number: int | None
    """Place in the order in which items were first put; never given to another. None with `text`."""
    is_removed: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class ItemChanges:
    """What a write did."""

    version: int
    """Of the catalogue, with these changes in it."""
    changed: tuple[bool, ...]
    """In the order of the items; False for one that was like that already."""


class ItemLog:
    """The changed items of a store. Methods raise `StoreUnavailableError` as those of `OnlineStore`.

    Args:
        run: sends commands; its second argument says whether to wait until their effects are on disk.
        keys: of the namespace.
    """

    def __init__(self, run: Callable[[Sequence[Command], bool], list[Any]], keys: Keys) -> None:
        self._run = run
        self._version, self._texts, self._numbers, self._changes, self._removed = self._all = [
            keys.of_items(name) for name in ("version", "rows:1", "numbers", "changes", "removed")
        ]
        self._keys = keys

    def version(self) -> int:
        """The version of the catalogue: 0 before the first change."""
        (version,) = self._run([Command(self._version, methodcaller("get", self._version))], False)
        return int(version or 0)

    def put(self, texts: Mapping[str, str]) -> ItemChanges:
        """Replace items, each by a text that is not empty; one that was removed is there again. Durable on return."""
        if not all(texts.values()):
            raise ValueError("an item's text must not be empty")
        return self._change(texts.items())

    def remove(self, item_ids: Sequence[str]) -> ItemChanges:
        """Remove items, of whatever origin. Their texts and numbers stay. Durable on return."""
        return self._change((item_id, "") for item_id in item_ids)

    def since(self, version: int) -> tuple[int, list[StoredItem]]:
        """The version of the catalogue, and the items that have changed since another one, each as it is now.

        A version below the given one means that the store has lost changes: then what it has is not told.
        """
        items: dict[str, StoredItem] = {}
        while True:
            reply = self._run([_READ(self._all, version, 2 * _AT_ONCE)], False)[0]
            upto, newest = reply[:2]
            for item_id, text, number, is_removed in zip(*(reply[2 + part :: 4] for part in range(4)), strict=True):
                items[item_id] = StoredItem(
                    item_id=item_id,
                    text=text,
                    number=None if number is None else int(float(number)),
                    is_removed=bool(is_removed),
                )
            if upto >= newest or upto <= version:
                return newest, list(items.values())
            version = upto

    def place(self, model_version: str, placements: Mapping[str, tuple[str, str]]) -> list[PlaceOutcome]:
        """Keep where a model places items. Every process takes the first placement of an item. Durable on return.

        Args:
            model_version: of the model.
            placements: by item id, the place, which no two items of a model share, and the text to keep.
        """
        keys = [
            self._version,
            self._changes,
            self._placed(model_version),
            self._keys.of_items(f"places:{model_version}"),
        ]
        outcomes: list[PlaceOutcome] = []
        remaining = iter(placements.items())
        while chunk := list(islice(remaining, _AT_ONCE)):
            arguments = [part for item_id, (place, text) in chunk for part in (item_id, place, text)]
            outcomes += [_OUTCOMES[value] for value in self._run([_PLACE(keys, *arguments)], True)[0]]
        return outcomes

    def placements(self, model_version: str, item_ids: Sequence[str]) -> list[str | None]:
        """The texts that `place` kept, None where there is none."""
        key = self._placed(model_version)
        found: list[str | None] = []
        remaining = iter(item_ids)
        while chunk := list(islice(remaining, _AT_ONCE)):
            found += self._run([Command(key, methodcaller("hmget", key, chunk))], False)[0]
        return found

    def lease(self, model_version: str, seconds: int) -> bool:
        """Whether the caller is to place a model's items for the next seconds; nobody else is told so until then."""
        key = self._keys.of_items(f"lease:{model_version}")
        return bool(self._run([Command(key, methodcaller("set", key, 1, nx=True, ex=seconds))], False)[0])

    def end_lease(self, model_version: str) -> None:
        """Let somebody else place items."""
        key = self._keys.of_items(f"lease:{model_version}")
        self._run([Command(key, methodcaller("delete", key))], False)

    def _change(self, texts: Iterable[tuple[str, str]]) -> ItemChanges:
        version, changed = 0, []
        remaining = iter(texts)
        while chunk := list(islice(remaining, _AT_ONCE)):
            reply = self._run([_CHANGE(self._all, *(part for pair in chunk for part in pair))], True)[0]
            version = reply[0]
            changed += [bool(value) for value in reply[1:]]
        return ItemChanges(version=version or self.version(), changed=tuple(changed))

    def _placed(self, model_version: str) -> str:
        return self._keys.of_items(f"placed:1:{model_version}")
