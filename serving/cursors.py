"""Cursors: a frozen list that is handed out page by page. The cursor itself holds it, so that any process can go on.

What is left of the list, in the numbers of one model's catalogue; how it came about; when it expires. Pages are
therefore disjoint, and together they are the list, whatever the model, the store or the clients do meanwhile. Nothing
in it is secret: items, scores and the newest part of the history of whoever asked.
"""

from __future__ import annotations

import base64
import binascii
import json
import struct
import zlib
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
import numpy.typing as npt

from serving.answers import FallbackReason, Source
from serving.stages import Listed

_FORMAT = 2
_MOST_BYTES = 20_000


class CursorError(ValueError):
    """A cursor that this service has not made, or that has expired."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Frozen:
    """The rest of a list."""

    model_version: str
    catalog_version: int
    """What reads the cursor must know at least this one: the numbers of items are the same in all later ones."""
    recommendation_id: str
    source: Source
    fallback_reason: FallbackReason | None
    expires: float
    """Seconds since 1970 UTC."""
    history: np.ndarray
    """int64 [T]: the newest items of the history, for the reasons."""
    listed: Listed

    def without_removed(self, listed: npt.NDArray[np.bool_] | None) -> Frozen:
        """The same without items that are not in the catalogue any more: bool [num_items], None for all."""
        if listed is None:
            return self
        kept = listed[self.listed.items]
        return replace(self, listed=Listed(items=self.listed.items[kept], scores=self.listed.scores[kept]))

    def split(self, k: int) -> tuple[Listed, Frozen | None]:
        """The next `k` items, and what is left behind them; None for nothing."""
        head = Listed(items=self.listed.items[:k], scores=self.listed.scores[:k])
        tail = Listed(items=self.listed.items[k:], scores=self.listed.scores[k:])
        return head, replace(self, listed=tail) if len(tail.items) else None

    def text(self) -> str:
        """The cursor."""
        head = json.dumps(
            [
                _FORMAT,
                self.model_version,
                self.catalog_version,
                self.recommendation_id,
                self.source,
                self.fallback_reason,
                self.expires,
                len(self.history),
            ]
        ).encode()
        numbers = np.concatenate([self.history, self.listed.items]).astype("<i4").tobytes()
        scores = self.listed.scores.astype("<f4").tobytes()
        packed = zlib.compress(struct.pack("<H", len(head)) + head + numbers + scores)
        return base64.urlsafe_b64encode(packed).decode().rstrip("=")

    @classmethod
    def of(cls, text: str, now: float) -> Frozen:
        """What `text` made.

        Raises:
            CursorError: it is not of this service, or has expired.
        """
        try:
            packed = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
            unpacker = zlib.decompressobj()
            raw = unpacker.decompress(packed, _MOST_BYTES)
            (length,) = struct.unpack_from("<H", raw)
            form, version, catalog, name, source, reason, expires, seen = json.loads(raw[2 : 2 + length])
            numbers = raw[2 + length :]
            count, rest = divmod(len(numbers) - 4 * seen, 8)
            if form != _FORMAT or rest or count < 1 or seen < 0 or unpacker.unconsumed_tail:
                raise ValueError("another form")
            if source not in get_args(Source) or reason not in (None, *get_args(FallbackReason)):
                raise ValueError("another source")
            items = np.frombuffer(numbers, "<i4", seen + count).astype(np.int64)
            scores = np.frombuffer(numbers, "<f4", count, offset=4 * (seen + count)).astype(np.float32)
            frozen = cls(
                model_version=str(version),
                catalog_version=int(catalog),
                recommendation_id=str(name),
                source=source,
                fallback_reason=reason,
                expires=float(expires),
                history=items[:seen],
                listed=Listed(items=items[seen:], scores=scores),
            )
        except (
            ValueError,
            TypeError,
            OverflowError,
            RecursionError,  # json gives up on deep nesting
            struct.error,
            binascii.Error,
            zlib.error,
        ) as error:
            raise CursorError("no cursor of this service; give back `next_cursor` as it was") from error
        if frozen.expires < now:
            raise CursorError("the list has expired; ask for a new one")
        return frozen
