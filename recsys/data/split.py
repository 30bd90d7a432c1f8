"""Training, validation and test out of one interaction log, and the facts a report must print about it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from recsys.config import StrictConfig
from recsys.data.config import DataConfig, SplitConfig
from recsys.data.interactions import Interactions
from recsys.data.sequences import Examples, IntArray, Sequences, blocks_of_runs
from recsys.errors import ArtifactError, DataError
from recsys.files import atomic_directory

_Scalar = TypeVar("_Scalar", bound=np.generic)


class SplitProtocol(StrictConfig):
    """How the split was made; every report repeats it, because numbers of different protocols do not
    compare."""

    kind: Literal["leave_last_out", "global_time"]
    """See `SplitConfig.kind`."""
    tie_order: str
    """How interactions of one timestamp were ordered: `source`, `item_id`, `shuffle (seed N)`, or `given
    positions` when the source has an order but no timestamps."""
    has_repeats: bool
    """Whether any user has an item twice; if none has, masking seen items is free gain."""
    tie_share: float
    """Share of interactions whose timestamp equals that of another interaction of the same user; 0 without
    timestamps."""
    num_train_interactions: int
    """Length of all training sequences together."""
    num_held_out_items: int = 0
    """Items whose training interactions were dropped on purpose."""
    num_left_out_users: int = 0
    """Users without a case, neither in validation nor in test (for leave-last-out, those with under 3 interactions).
    They are left out of the evaluation only: what they have may be in training."""
    valid_from: int | None = None
    """`global_time`: first second (UTC) of the validation window."""
    test_from: int | None = None
    """`global_time`: first second (UTC) of the test window."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """Training sequences and evaluation cases over one catalogue."""

    train: Sequences
    """Oldest first; everything a model may be fitted on."""
    valid: Examples
    """At most one case a user."""
    test: Examples
    """At most one case a user; histories hold everything before the target, validation items included."""
    num_items: int
    """Size of the catalogue: ranking is over all of it."""
    protocol: SplitProtocol
    held_out: IntArray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """int64 [m], ascending: items that nothing may be fitted on; they join the catalogue afterwards."""

    @property
    def fitted_items(self) -> IntArray:
        """int64 [num_items - m], ascending: the items that models are fitted on."""
        return np.setdiff1d(np.arange(self.num_items), self.held_out)

    @property
    def fitted_index(self) -> IntArray:
        """int64 [num_items]: the place of each item among `fitted_items`; -1 for those held out."""
        index = np.full(self.num_items, -1, dtype=np.int64)
        index[self.fitted_items] = np.arange(self.num_items - len(self.held_out))
        return index

    def of_fitted(self, rows: npt.NDArray[_Scalar]) -> npt.NDArray[_Scalar]:
        """Those of an array [num_items, ...] that belong to `fitted_items`; the very array where none is held out."""
        return rows[self.fitted_items] if len(self.held_out) else rows

    @property
    def fitted_train(self) -> Sequences:
        """`train`, each item as its place among `fitted_items`."""
        return self.train.renumber(self.fitted_index) if len(self.held_out) else self.train

    @property
    def fitted_valid(self) -> Examples:
        """`valid`, each item as its place among `fitted_items`; without cases whose target is held out."""
        return self.valid.renumber(self.fitted_index) if len(self.held_out) else self.valid

    def save(self, directory: Path) -> None:
        """Write `train.parquet`, `valid.parquet`, `test.parquet` and `split.json`, whole or not at all."""
        with atomic_directory(directory) as temporary:
            _to_frame(self.train).write_parquet(temporary / "train.parquet")
            for name, examples in (("valid", self.valid), ("test", self.test)):
                frame = _to_frame(examples.histories).with_columns(pl.Series("target", examples.targets))
                frame.write_parquet(temporary / f"{name}.parquet")
            facts = {
                "num_items": self.num_items,
                "held_out": self.held_out.tolist(),
                "protocol": self.protocol.model_dump(mode="json"),
            }
            (temporary / "split.json").write_text(json.dumps(facts, indent=2) + "\n")

    @classmethod
    def load(cls, directory: Path) -> Split:
        """Read what `save` wrote. Raises ArtifactError when a file is missing or damaged."""
        try:
            facts = json.loads((directory / "split.json").read_text())
            return cls(
                train=_from_frame(pl.read_parquet(directory / "train.parquet")),
                valid=_examples(pl.read_parquet(directory / "valid.parquet")),
                test=_examples(pl.read_parquet(directory / "test.parquet")),
                num_items=int(facts["num_items"]),
                protocol=SplitProtocol.model_validate(facts["protocol"]),
                held_out=np.asarray(facts["held_out"], dtype=np.int64),
            )
        except (OSError, ValueError, KeyError, pl.exceptions.PolarsError) as error:
            raise ArtifactError(f"cannot read the split in {directory}: {error}") from error


def make_split(interactions: Interactions, config: DataConfig) -> Split:
    """Divide the log as `config.split` says.

    Raises:
        DataError: a part would be empty, or a global-time split has no timestamps to go by.
    """
    leave_last_out = config.split.kind == "leave_last_out"
    split = _leave_last_out(interactions, config) if leave_last_out else _global_time(interactions, config)
    return _hold_out_items(split, config.split) if config.split.held_out_items > 0 else split


def _hold_out_items(split: Split, config: SplitConfig) -> Split:
    """Drop a random share of the items from training; histories and targets of cases keep them."""
    count = round(config.held_out_items * split.num_items)
    random = np.random.default_rng(config.held_out_seed)
    held_out = np.sort(random.choice(split.num_items, count, replace=False)).astype(np.int64)
    index = np.arange(split.num_items)
    index[held_out] = -1
    train = split.train.renumber(index)
    train = train.select(np.flatnonzero(train.lengths > 0))
    if len(train) == 0:
        raise DataError(
            f"empty split: data.split.held_out_items={config.held_out_items} leaves no training interaction; lower it"
        )
    facts = {"num_train_interactions": len(train.items), "num_held_out_items": count}
    return replace(split, train=train, held_out=held_out, protocol=split.protocol.model_copy(update=facts))


def _leave_last_out(interactions: Interactions, config: DataConfig) -> Split:
    """Fit on all but the last two items of each user; users too short for a case are training as a whole."""
    sequences = interactions.sequences()
    eligible = np.flatnonzero(sequences.lengths >= 3)
    if len(eligible) == 0:
        longest = int(sequences.lengths.max(initial=0))
        raise DataError(
            "empty split: leave_last_out needs users with at least 3 interactions; none of "
            f"{len(sequences)} users has them (the longest history has {longest})"
        )
    last = sequences.offsets[eligible + 1] - 1
    lengths = sequences.lengths_of(eligible)
    # Who has no case has nothing that could leak.
    trained = np.where(sequences.lengths >= 3, sequences.lengths - 2, sequences.lengths)
    train = _prefixes(sequences, np.arange(len(sequences)), trained)
    return Split(
        train=train,
        valid=Examples(histories=_prefixes(sequences, eligible, lengths - 2), targets=sequences.items[last - 1]),
        test=Examples(histories=_prefixes(sequences, eligible, lengths - 1), targets=sequences.items[last]),
        num_items=interactions.num_items,
        protocol=_protocol(interactions, config, train, num_left_out_users=len(sequences) - len(eligible)),
    )


def _global_time(interactions: Interactions, config: DataConfig) -> Split:
    """Fit before `valid_from`; one case a user and window: its last interaction there, after all that precede
    it."""
    if not interactions.has_timestamps:
        raise DataError(
            f"split.kind: global_time needs timestamps, and none of the {len(interactions)} interactions "
            "has one; use leave_last_out"
        )
    times = interactions.frame["timestamp"].to_numpy()
    valid_from, test_from = _boundaries(times, config.split)
    sequences = interactions.sequences()
    # Times never decrease within a user, so "before a moment" is a prefix of each sequence.
    num_train = _counts_before(sequences, times, valid_from)
    num_known = _counts_before(sequences, times, test_from)
    train_rows = np.flatnonzero(num_train > 0)
    train = _prefixes(sequences, train_rows, num_train[train_rows])
    # A case needs an interaction inside the window and at least one before it.
    valid = _last_cases(sequences, np.flatnonzero((num_known > num_train) & (num_known > 1)), num_known)
    test = _last_cases(
        sequences,
        np.flatnonzero((sequences.lengths > num_known) & (sequences.lengths > 1)),
        sequences.lengths,
    )
    for part, size in (("training", len(train)), ("validation", len(valid)), ("test", len(test))):
        if size == 0:
            raise DataError(
                f"empty split: no {part} cases with valid_from={valid_from} and test_from={test_from} "
                "(seconds, UTC); "
                f"the log runs from {times.min()} to {times.max()} with {len(times)} interactions of "
                f"{interactions.num_users} users"
            )
    with_case = np.union1d(valid.histories.users, test.histories.users)
    return Split(
        train=train,
        valid=valid,
        test=test,
        num_items=interactions.num_items,
        protocol=_protocol(
            interactions,
            config,
            train,
            num_left_out_users=len(sequences) - len(with_case),
            valid_from=valid_from,
            test_from=test_from,
        ),
    )


def _boundaries(times: IntArray, split: SplitConfig) -> tuple[int, int]:
    if split.valid_from is not None and split.test_from is not None:
        return int(split.valid_from.timestamp()), int(split.test_from.timestamp())
    ordered = np.sort(times)
    first_test = int(len(ordered) * (1 - split.test_fraction))
    first_valid = int(len(ordered) * (1 - split.test_fraction - split.valid_fraction))
    return int(ordered[first_valid]), int(ordered[first_test])


def _counts_before(sequences: Sequences, times: IntArray, moment: int) -> IntArray:
    """int64 [n]: how many interactions of each sequence happened before `moment`."""
    total = np.concatenate([[0], np.cumsum(times < moment)])
    return np.asarray(total[sequences.offsets[1:]] - total[sequences.offsets[:-1]], dtype=np.int64)


def _last_cases(sequences: Sequences, rows: IntArray, ends: IntArray) -> Examples:
    """Cases whose target is item `ends - 1` of each sequence in `rows`."""
    targets = sequences.items[sequences.offsets[rows] + ends[rows] - 1]
    return Examples(histories=_prefixes(sequences, rows, ends[rows] - 1), targets=targets)


def _prefixes(sequences: Sequences, rows: IntArray, lengths: IntArray) -> Sequences:
    """The first `lengths[i]` items of the sequence at `rows[i]`; rows ascend."""
    taken = np.zeros(len(sequences), dtype=np.int64)
    taken[rows] = lengths
    # Of each sequence a stretch that is in it and one that is not.
    stretches = np.stack([taken, sequences.lengths - taken], axis=1).ravel()
    kept = np.repeat(np.tile([True, False], len(sequences)), stretches)
    offsets = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return Sequences(users=sequences.users[rows], offsets=offsets, items=sequences.items[kept])


def _protocol(
    interactions: Interactions,
    config: DataConfig,
    train: Sequences,
    *,
    num_left_out_users: int,
    valid_from: int | None = None,
    test_from: int | None = None,
) -> SplitProtocol:
    tie_order: str = config.tie_order
    if not interactions.has_timestamps:
        tie_order = "given positions"
    elif tie_order == "shuffle":
        tie_order = f"shuffle (seed {config.tie_seed})"
    return SplitProtocol(
        kind=config.split.kind,
        tie_order=tie_order,
        has_repeats=repeat_share(interactions) > 0,
        tie_share=tie_share(interactions),
        num_train_interactions=len(train.items),
        num_left_out_users=num_left_out_users,
        valid_from=valid_from,
        test_from=test_from,
    )


def repeat_share(interactions: Interactions) -> float:
    """Share of interactions with an item that the same user had before."""
    if len(interactions) == 0:
        return 0.0
    user, item = interactions.frame["user"].to_numpy(), interactions.frame["item"].to_numpy()
    distinct = 0
    for block in blocks_of_runs(user):
        pairs = np.sort((user[block] - user[block][0]) * interactions.num_items + item[block])
        distinct += 1 + int(np.count_nonzero(pairs[1:] != pairs[:-1]))
    return 1 - distinct / len(interactions)


def tie_share(interactions: Interactions) -> float:
    """Share of interactions whose timestamp another interaction of the same user has too; 0 without
    timestamps."""
    if not interactions.has_timestamps:
        return 0.0
    user = interactions.frame["user"].to_numpy()
    time = interactions.frame["timestamp"].to_numpy()
    as_previous = np.zeros(len(user), dtype=bool)
    as_previous[1:] = (user[1:] == user[:-1]) & (time[1:] == time[:-1])
    as_next = np.append(as_previous[1:], False)
    return float((as_previous | as_next).mean())


def _to_frame(sequences: Sequences) -> pl.DataFrame:
    lists = pa.LargeListArray.from_arrays(pa.array(sequences.offsets), pa.array(sequences.items))
    return pl.DataFrame({"user": sequences.users, "items": pl.Series(pl.from_arrow(lists))})


def _from_frame(frame: pl.DataFrame) -> Sequences:
    offsets = np.zeros(frame.height + 1, dtype=np.int64)
    np.cumsum(frame["items"].list.len().to_numpy(), out=offsets[1:])
    items = np.empty(offsets[-1], dtype=np.int64)
    end = 0
    for chunk in frame["items"].get_chunks():
        values = chunk.to_arrow().flatten().to_numpy()
        items[end : end + len(values)] = values
        end += len(values)
    return Sequences(users=frame["user"].to_numpy(), offsets=offsets, items=items)


def _examples(frame: pl.DataFrame) -> Examples:
    return Examples(histories=_from_frame(frame), targets=frame["target"].to_numpy())
