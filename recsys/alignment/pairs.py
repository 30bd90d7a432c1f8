"""`PreferencePairs`: the one table of preferences, whatever made them and whatever loss reads them.

A row is one pair: a prompt, a chosen answer and one or more rejected ones. Answers are items (the dense indices of a
catalogue) or texts, never both in one row. The prompt of a pair of items is a history, that of a pair of texts is a
text; a pair may bring both, where a text is written about a history. The table knows no models and no losses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import polars as pl

from recsys.data.sequences import IntArray
from recsys.data.tables import raise_bad_rows
from recsys.errors import ArtifactError, DataError
from recsys.files import atomic_path

Source: TypeAlias = Literal[
    "click_skip",
    "feedback",
    "rating",
    "session_outcome",
    "profile_utility",
    "rubric",
    "judge",
    "simulator",
    "perturbed_history",
    "beam",
    "novelty",
]
"""What a pair was made from."""
SOURCES: tuple[Source, ...] = get_args(Source)

Objective: TypeAlias = Literal["accuracy", "novelty"]
"""What the order of a pair is about: what the user took next, or what others have seen less of."""
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)
"""The objectives that runs know, by `objective_id`; a table of one's own may have others."""

SCHEMA: dict[str, pl.DataType] = {
    "pair_id": pl.String(),
    "user_id": pl.String(),
    "fold": pl.String(),
    "source": pl.String(),
    "prompt_items": pl.List(pl.Int64()),
    "prompt_text": pl.String(),
    "chosen_item": pl.Int64(),
    "chosen_text": pl.String(),
    "rejected_items": pl.List(pl.Int64()),
    "rejected_texts": pl.List(pl.String()),
    "rejected_prompts": pl.List(pl.List(pl.Int64())),
    "chosen_score": pl.Float64(),
    "rejected_scores": pl.List(pl.Float64()),
    "weight": pl.Float64(),
    "confidence": pl.Float64(),
    "label_noise_prob": pl.Float64(),
    "objective_id": pl.Int64(),
    "propensity": pl.Float64(),
    "created_by": pl.String(),
    "text_len": pl.Int64(),
}
"""The columns in their order; `PreferencePair` says what each holds."""

_NEVER_NULL = (
    "pair_id",
    "user_id",
    "source",
    "prompt_items",
    "rejected_items",
    "rejected_texts",
    "rejected_prompts",
    "rejected_scores",
    "weight",
    "confidence",
    "label_noise_prob",
    "objective_id",
    "created_by",
)
_TABLE = "pairs"


@dataclass(frozen=True, kw_only=True)
class PreferencePair:
    """One row of `PreferencePairs`."""

    pair_id: str
    """Unique in its table."""
    user_id: str
    """The source's own id of the user whose preference this is."""
    source: Source
    """What it was made from."""
    created_by: str
    """The builder, and the model and checkpoint where one took part."""
    prompt_items: Sequence[int] = ()
    """The history before the answer: dense item indices, oldest first; may be empty."""
    prompt_text: str | None = None
    """The prompt of a pair of texts."""
    chosen_item: int | None = None
    """The better answer, of a pair of items."""
    chosen_text: str | None = None
    """The better answer, of a pair of texts."""
    rejected_items: Sequence[int] = ()
    """The worse answers, of a pair of items; at least one."""
    rejected_texts: Sequence[str] = ()
    """The worse answers, of a pair of texts; at least one."""
    rejected_prompts: Sequence[Sequence[int]] = ()
    """A history for each of `rejected_items` that was not answered to `prompt_items` (the same item after a perturbed
    history is a worse pair of both); empty: all answers share the prompt."""
    chosen_score: float | None = None
    """How good the chosen answer is: a rating, a reward, a grade."""
    rejected_scores: Sequence[float] = ()
    """The same for each rejected answer; empty where unknown."""
    weight: float = 1.0
    """How much the pair counts; not negative."""
    confidence: float = 1.0
    """How sure its maker is of the order, 0 to 1."""
    label_noise_prob: float = 0.0
    """How likely the order is wrong, 0 to 1; what robust and soft-label losses read."""
    objective_id: int = 0
    """What the order is about, of `OBJECTIVES` or of one's own; 0 where there is one objective."""
    propensity: float | None = None
    """Probability with which the logging policy showed the chosen answer, for pairs from logs."""
    fold: str | None = None
    """The part of the users that the pair belongs to."""
    text_len: int | None = None
    """Tokens of the chosen text."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PreferencePairs:
    """A checked table of pairs.

    Raises:
        DataError: the frame breaks the schema; the message names the column and the first bad rows, counted from 1.
    """

    frame: pl.DataFrame
    """The columns of `SCHEMA`. A pair of items has `chosen_item` and `rejected_items`, a pair of texts `chosen_text`
    and `rejected_texts`; the other two are null and empty."""

    def __post_init__(self) -> None:
        if dict(self.frame.schema) != SCHEMA:
            wrong = {*SCHEMA.items()} ^ {*self.frame.schema.items()}
            names = ", ".join(sorted({repr(name) for name, _ in wrong})) or "in another order"
            raise DataError(f"{_TABLE}: the columns do not match the schema of preference pairs: {names}")
        for name in _NEVER_NULL:
            self._refuse(name, pl.col(name).is_null(), "has no value")
        self._check_answers()
        self._check_numbers()

    def _check_answers(self) -> None:
        self._refuse("pair_id", pl.col("pair_id").is_duplicated(), "is not unique")
        self._refuse("source", ~pl.col("source").is_in(SOURCES), f"is none of {', '.join(SOURCES)}")
        is_item, is_text = pl.col("chosen_item").is_not_null(), pl.col("chosen_text").is_not_null()
        self._refuse("chosen_item", ~is_item & ~is_text, "is null where chosen_text is null too")
        self._refuse("chosen_text", is_item & is_text, "is given where chosen_item is given too")
        items, texts = pl.col("rejected_items"), pl.col("rejected_texts")
        self._refuse("rejected_items", is_item & (items.list.len() == 0), "is empty")
        self._refuse("rejected_texts", is_text & (texts.list.len() == 0), "is empty")
        self._refuse("rejected_items", is_text & (items.list.len() > 0), "is given beside a chosen text")
        self._refuse("rejected_texts", is_item & (texts.list.len() > 0), "is given beside a chosen item")
        self._refuse("prompt_text", is_text & pl.col("prompt_text").is_null(), "has no value beside a chosen text")
        self._refuse("chosen_item", pl.col("chosen_item") < 0, "is negative")
        for name in ("prompt_items", "rejected_items"):
            self._refuse(name, pl.col(name).list.eval(pl.element().fill_null(-1) < 0).list.any(), "holds a bad index")
        self._refuse("rejected_texts", texts.list.eval(pl.element().is_null()).list.any(), "holds a null")
        prompts = pl.col("rejected_prompts").list.len()
        self._refuse("rejected_prompts", (prompts > 0) & (prompts != items.list.len()), "is not one a rejected item")
        same_prompt = prompts == 0
        self._refuse(
            "rejected_items", same_prompt & items.list.contains(pl.col("chosen_item")), "holds the chosen item"
        )
        self._refuse("rejected_texts", texts.list.contains(pl.col("chosen_text")), "holds the chosen text")
        self._refuse("rejected_items", same_prompt & (items.list.n_unique() < items.list.len()), "holds an item twice")
        self._refuse("rejected_texts", texts.list.n_unique() < texts.list.len(), "holds a text twice")
        # Rare: pairs of histories are looked at one by one.
        own = pl.Series(
            [
                any(
                    item == row["chosen_item"] and prompt == row["prompt_items"]
                    for item, prompt in zip(row["rejected_items"], row["rejected_prompts"], strict=False)
                )
                for row in self.frame.select(
                    "chosen_item", "prompt_items", "rejected_items", "rejected_prompts"
                ).iter_rows(named=True)
            ]
            if self.frame.select((prompts > 0).any()).item()
            else [False] * len(self),
            dtype=pl.Boolean,
        )
        raise_bad_rows(_TABLE, self.frame["rejected_prompts"], own, "holds the prompt of the chosen item itself")

    def _check_numbers(self) -> None:
        for name in ("weight", "confidence", "label_noise_prob", "chosen_score", "propensity"):
            self._refuse(name, ~pl.col(name).is_finite(), "is NaN or infinite")
        self._refuse("weight", pl.col("weight") < 0, "is negative")
        for name in ("confidence", "label_noise_prob"):
            self._refuse(name, ~pl.col(name).is_between(0, 1), "lies outside 0..1")
        self._refuse("propensity", (pl.col("propensity") <= 0) | (pl.col("propensity") > 1), "lies outside 0..1")
        self._refuse("objective_id", pl.col("objective_id") < 0, "is negative")
        self._refuse("text_len", pl.col("text_len") < 0, "is negative")
        scores = pl.col("rejected_scores")
        answers = pl.col("rejected_items").list.len() + pl.col("rejected_texts").list.len()
        bad = scores.list.eval(~pl.element().fill_null(float("nan")).is_finite()).list.any()
        self._refuse("rejected_scores", bad, "holds NaN or infinity")
        self._refuse(
            "rejected_scores", (scores.list.len() > 0) & (scores.list.len() != answers), "is not one a rejected answer"
        )
        self._refuse(
            "chosen_score", pl.col("chosen_score").is_null() != (scores.list.len() == 0), "needs rejected_scores too"
        )

    def _refuse(self, column: str, bad: pl.Expr, problem: str) -> None:
        found = self.frame.select(bad.fill_null(False).alias("bad"))["bad"]
        raise_bad_rows(_TABLE, self.frame[column], found, problem)

    def __len__(self) -> int:
        return self.frame.height

    def __iter__(self) -> Iterator[PreferencePair]:
        return (PreferencePair(**row) for row in self.frame.iter_rows(named=True))

    @classmethod
    def from_rows(cls, rows: Iterable[PreferencePair]) -> PreferencePairs:
        """The table of `rows`, in their order."""
        columns: dict[str, list[Any]] = {name: [] for name in SCHEMA}
        for row in rows:
            for name, value in vars(row).items():
                columns[name].append(_plain(value))
        return cls(frame=pl.DataFrame(columns, schema=SCHEMA))

    @classmethod
    def concat(cls, tables: Sequence[PreferencePairs]) -> PreferencePairs:
        """All rows of `tables`, in their order. Pair ids must not repeat."""
        return cls(frame=pl.concat([pl.DataFrame(schema=SCHEMA), *(table.frame for table in tables)]))

    def select(self, rows: IntArray) -> PreferencePairs:
        """The rows at `rows` (int64), in that order."""
        return PreferencePairs(frame=self.frame[np.asarray(rows, dtype=np.int64)])

    def of_items(self) -> PreferencePairs:
        """The pairs whose answers are items."""
        return PreferencePairs(frame=self.frame.filter(pl.col("chosen_item").is_not_null()))

    def of_texts(self) -> PreferencePairs:
        """The pairs whose answers are texts."""
        return PreferencePairs(frame=self.frame.filter(pl.col("chosen_text").is_not_null()))

    def objectives(self) -> tuple[Objective, ...]:
        """What the pairs are about, in the order of `OBJECTIVES`. Raises DataError where an id has no name there."""
        known = ", ".join(f"{number} ({name})" for number, name in enumerate(OBJECTIVES))
        self._refuse("objective_id", pl.col("objective_id") >= len(OBJECTIVES), f"is none of {known}")
        present = set(self.frame["objective_id"].unique().to_list())
        return tuple(name for number, name in enumerate(OBJECTIVES) if number in present)

    def renumber(self, index: IntArray) -> PreferencePairs:
        """Each item i of the pairs of items as `index[i]`; without pairs that have an item of a negative index."""
        renumbered = pl.element().replace_strict(range(len(index)), index, return_dtype=pl.Int64)
        frame = self.frame.with_columns(
            pl.col("prompt_items", "rejected_items").list.eval(renumbered),
            pl.col("rejected_prompts").list.eval(pl.element().list.eval(renumbered)),
            pl.col("chosen_item").replace_strict(range(len(index)), index, return_dtype=pl.Int64),
        )
        gone = (
            (pl.col("prompt_items").list.min() < 0).fill_null(False)
            | (pl.col("rejected_items").list.min() < 0).fill_null(False)
            | (pl.col("rejected_prompts").list.eval(pl.element().list.min()).list.min() < 0).fill_null(False)
            | (pl.col("chosen_item") < 0).fill_null(False)
        )
        return PreferencePairs(frame=frame.filter(~gone))

    def check_items(self, num_items: int) -> None:
        """Raise DataError, with column and rows, where an item index is not below `num_items`."""
        for name in ("prompt_items", "rejected_items"):
            self._refuse(name, pl.col(name).list.max() >= num_items, f"holds an item beyond {num_items - 1}")
        self._refuse("chosen_item", pl.col("chosen_item") >= num_items, f"is beyond {num_items - 1}")
        beyond = pl.col("rejected_prompts").list.eval(pl.element().list.max() >= num_items).list.any()
        self._refuse("rejected_prompts", beyond, f"holds an item beyond {num_items - 1}")

    def save(self, path: Path) -> None:
        """Write one Parquet file, whole or not at all."""
        with atomic_path(path) as temporary:
            self.frame.write_parquet(temporary)

    @classmethod
    def load(cls, path: Path) -> PreferencePairs:
        """Read what `save` wrote. Raises ArtifactError when the file is missing or damaged."""
        try:
            frame = pl.read_parquet(path)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise ArtifactError(f"cannot read the preference pairs {path}: {error}") from error
        return cls(frame=frame)


def _plain(value: Any) -> Any:
    """Tuples and arrays as lists, which is what Polars takes for nested columns."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    return [_plain(part) for part in value] if isinstance(value, (tuple, list)) else value
