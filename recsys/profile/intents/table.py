"""The offline table: which items bear what, and explanations that were written in advance. Files only; knows no users.

    intents.json           format, settings, who wrote the texts, and what the checks found
    parts.parquet          kind, name, items (dense indices, ascending): the inverted table from tags to items
    explanations.parquet   tag, item_id, text: unique by tag and item

It lies in a bundle as `intents/`. An item is named by its own id, and a text is checked again against the item's row
before it is shown: the table may be older than the catalogue.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import polars as pl
from pydantic import ValidationError

from recsys.config import StrictConfig
from recsys.data.sequences import IntArray
from recsys.errors import ArtifactError
from recsys.files import write_json
from recsys.profile.intents.config import IntentConfig
from recsys.profile.intents.tags import Part, PartKind, TagVocabulary

FORMAT: Literal[1] = 1
"""Version of the layout."""
_FACTS, _PARTS, _TEXTS = "intents.json", "parts.parquet", "explanations.parquet"
_PARTS_SCHEMA = {"kind": pl.String(), "name": pl.String(), "items": pl.List(pl.Int64())}
_TEXTS_SCHEMA = {"tag": pl.String(), "item_id": pl.String(), "text": pl.String()}


class _Facts(StrictConfig):
    format: Literal[1] = FORMAT
    num_items: int
    config: IntentConfig
    explainer: str
    metrics: dict[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class IntentTable:
    """See the module."""

    config: IntentConfig
    vocabulary: TagVocabulary
    texts: Mapping[tuple[str, str], str]
    """Explanations by name of the tag and id of the item."""
    explainer: str
    """Who wrote them."""
    metrics: Mapping[str, Any]
    """What the checks found when it was made; JSON-able."""

    def save(self, directory: Path) -> None:
        """Write the files into `directory`, which exists."""
        facts = _Facts(
            num_items=self.vocabulary.num_items,
            config=self.config,
            explainer=self.explainer,
            metrics=dict(self.metrics),
        )
        parts = sorted(self.vocabulary.bearers)
        pl.DataFrame(
            {
                "kind": [part.kind for part in parts],
                "name": [part.name for part in parts],
                "items": [self.vocabulary.bearers[part].tolist() for part in parts],
            },
            schema=_PARTS_SCHEMA,
        ).write_parquet(directory / _PARTS)
        rows = [(tag, item_id, text) for (tag, item_id), text in sorted(self.texts.items())]
        pl.DataFrame(rows, schema=_TEXTS_SCHEMA, orient="row").write_parquet(directory / _TEXTS)
        write_json(directory / _FACTS, facts.model_dump(mode="json"))

    @classmethod
    def load(cls, directory: Path, num_items: int) -> IntentTable:
        """Read what `save` wrote.

        Args:
            directory: that it was written to.
            num_items: of the catalogue that it belongs to.

        Raises:
            ArtifactError: a file is missing, damaged, or of another version or catalogue.
        """
        try:
            facts = _Facts.model_validate_json((directory / _FACTS).read_text(encoding="utf-8"))
            parts, texts = pl.read_parquet(directory / _PARTS), pl.read_parquet(directory / _TEXTS)
        except (OSError, ValidationError, UnicodeDecodeError, pl.exceptions.PolarsError) as error:
            raise _unreadable(directory, str(error).splitlines()[0]) from error
        for name, frame, schema in ((_PARTS, parts, _PARTS_SCHEMA), (_TEXTS, texts, _TEXTS_SCHEMA)):
            if dict(frame.schema) != schema or sum(frame.null_count().row(0)):
                raise _unreadable(directory, f"{name} has other columns, or nulls in them")
        if facts.num_items != num_items:
            raise _unreadable(directory, f"it is of {facts.num_items} items, the catalogue has {num_items}")
        kinds = parts.filter(~pl.col("kind").is_in(get_args(PartKind)))["kind"]
        if len(kinds):
            raise _unreadable(directory, f"{_PARTS} has parts of an unknown kind, {kinds[0]!r}")
        everything = parts["items"].explode().drop_nulls()
        if len(everything) and not 0 <= everything.min() <= everything.max() < num_items:  # type: ignore[operator]
            raise _unreadable(directory, f"{_PARTS} names items that the catalogue does not have")
        bearers: dict[Part, IntArray] = {
            Part(kind, name): items.to_numpy().copy()
            for kind, name, items in zip(parts["kind"], parts["name"], parts["items"], strict=True)
            if len(items)
        }
        return cls(
            config=facts.config,
            vocabulary=TagVocabulary(num_items, bearers, facts.config.tags),
            texts={(tag, item_id): text for tag, item_id, text in texts.iter_rows()},
            explainer=facts.explainer,
            metrics=facts.metrics,
        )


def _unreadable(directory: Path, reason: str) -> ArtifactError:
    return ArtifactError(f"{directory}: cannot be read: {reason}; make it again with `recsys intents build`")
