"""What is known about items beside their ids, one vector space a modality. Knows no model and no graph.

A modality may be missing for any item (no picture, no interaction); for all items it may not.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from safetensors import SafetensorError
from safetensors.numpy import load_file

from recsys.encoder.collaborative import BoolArray, FloatArray
from recsys.errors import DataError

_EXAMPLES = 3


@dataclass(frozen=True, kw_only=True, eq=False)
class Modality:
    """One vector per item, or none.

    Raises:
        DataError: the name is blank, shapes disagree, a vector holds NaN or infinity, or a present one is zero (it
            has no direction, so no cosine: mark that item as absent).
    """

    name: str
    """`text`, `image`, ...: settings and messages speak of the modality by it."""
    vectors: FloatArray
    """float32 [N, D], zero rows for items without this modality."""
    present: BoolArray
    """bool [N]: which items have it."""

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise DataError("a modality needs a name, found a blank one; call it text, image, ...")
        shape = list(self.vectors.shape)
        if self.vectors.ndim != 2 or self.vectors.shape[1] == 0:
            raise DataError(f"modality {self.name!r}: vectors must be [num_items, dim], found shape {shape}")
        if self.vectors.dtype != np.float32:
            raise DataError(
                f"modality {self.name!r}: vectors must be float32, found {self.vectors.dtype}; convert them"
            )
        if self.present.shape != self.vectors.shape[:1] or self.present.dtype != np.bool_:
            raise DataError(
                f"modality {self.name!r}: present must be bool [{shape[0]}], found {self.present.dtype} "
                f"{list(self.present.shape)}"
            )
        self._raise_rows(
            np.asarray(~np.isfinite(self.vectors).all(axis=1)), "hold NaN or infinity; compute these vectors again"
        )
        some: BoolArray = np.asarray(self.vectors.any(axis=1))
        self._raise_rows(self.present & ~some, "are zero although marked present; mark them as absent")
        self._raise_rows(~self.present & some, "hold a vector although marked absent; make them zero")

    @classmethod
    def from_vectors(cls, name: str, vectors: FloatArray, present: BoolArray | None = None) -> Modality:
        """Of float [N, D] in the order of the catalogue.

        Args:
            name: see `name`.
            vectors: any floating type; rows of absent items are made zero.
            present: bool [N]; None = the rows that are not zero throughout.
        """
        copied = np.array(vectors, dtype=np.float32)
        if copied.ndim == 2 and present is None:
            present = np.asarray(copied.any(axis=1))
        elif copied.ndim == 2 and present is not None and present.shape == copied.shape[:1]:
            copied[~present] = 0.0
        return cls(name=name, vectors=copied, present=np.zeros(0, dtype=bool) if present is None else present)

    @property
    def num_items(self) -> int:
        """N."""
        return len(self.vectors)

    @property
    def dim(self) -> int:
        """D."""
        return int(self.vectors.shape[1])

    def _raise_rows(self, bad: BoolArray, problem: str) -> None:
        if bad.any():
            rows = np.flatnonzero(bad)
            raise DataError(
                f"modality {self.name!r}: {len(rows)} of {len(bad)} rows {problem}, e.g. rows "
                f"{rows[:_EXAMPLES].tolist()}"
            )


def modality_from_column(name: str, column: pl.Series) -> Modality:
    """The modality that a catalogue's column holds.

    Args:
        name: of the modality.
        column: one row an item: lists (or fixed-size arrays) of numbers, or of text that reads as numbers, since
            the catalogue keeps lists as text. Null or empty where the item lacks it.

    Raises:
        DataError: the column holds no lists of numbers, widths differ, a value is NaN, or no item has a vector.
    """
    return _scattered(name, column, np.arange(len(column)), len(column))


def modality_from_file(name: str, path: Path, item_ids: Sequence[str]) -> Modality:
    """The modality that a file holds.

    Args:
        name: of the modality.
        path: `.parquet` with `item_id` and one column of lists of numbers; `.safetensors` with one tensor [D] an
            item, named by its id; or `.npy` with float [N, D] in the order of `item_ids`, absent items zero.
        item_ids: the catalogue's ids by dense index. Those that the file lacks are absent.

    Raises:
        DataError: the file cannot be read or is of another kind, ids are unknown or repeated, widths differ, a
            value is NaN, or no item has a vector.
    """
    try:
        if path.suffix == ".npy":
            return _from_npy(name, np.load(path, allow_pickle=False), len(item_ids))
        if path.suffix == ".safetensors":
            tensors = load_file(path)
            ids = list(tensors)
            column = pl.Series(name, [np.asarray(tensors[key], dtype=np.float64).ravel().tolist() for key in ids])
        elif path.suffix == ".parquet":
            ids, column = _from_frame(name, pl.read_parquet(path))
        else:
            raise DataError(f"modality {name!r}: {path.name} must be a .parquet, .safetensors or .npy file")
    except (OSError, EOFError, TypeError, ValueError, SafetensorError, pl.exceptions.PolarsError) as error:
        raise DataError(f"modality {name!r}: cannot read {path}: {' '.join(str(error).split())[:200]}") from error
    return _scattered(name, column, _rows_of(name, ids, item_ids), len(item_ids))


def check_modalities(modalities: Sequence[Modality], num_items: int) -> None:
    """Raise DataError unless names differ and each modality covers `num_items` rows and at least one item."""
    names = [modality.name for modality in modalities]
    if len(set(names)) != len(names):
        raise DataError(f"modalities must have different names, found {', '.join(names)}")
    for modality in modalities:
        if modality.num_items != num_items:
            raise DataError(
                f"modality {modality.name!r} has {modality.num_items} rows, but the catalogue has {num_items} items"
            )
        if not modality.present.any():
            raise DataError(f"modality {modality.name!r} is empty: none of {num_items} items has it; leave it out")


def _from_npy(name: str, array: np.ndarray[Any, Any], num_items: int) -> Modality:
    if array.ndim != 2 or len(array) != num_items or array.dtype.kind not in "fiu":
        raise DataError(
            f"modality {name!r}: the .npy file must hold numbers [{num_items}, dim] in the order of the catalogue, "
            f"found {array.dtype} {list(array.shape)}"
        )
    modality = Modality.from_vectors(name, array)
    check_modalities([modality], num_items)
    return modality


def _from_frame(name: str, frame: pl.DataFrame) -> tuple[list[str], pl.Series]:
    others = [column for column in frame.columns if column != "item_id"]
    if "item_id" not in frame.columns or len(others) != 1:
        raise DataError(
            f"modality {name!r}: the Parquet file must have item_id and one column of vectors, found "
            f"{', '.join(frame.columns)}"
        )
    return frame["item_id"].cast(pl.String).to_list(), frame[others[0]]


def _rows_of(name: str, ids: Sequence[str], item_ids: Sequence[str]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """int64: the dense index of each of `ids`."""
    index = {item_id: row for row, item_id in enumerate(item_ids)}
    if unknown := [item_id for item_id in ids if item_id not in index]:
        raise DataError(
            f"modality {name!r}: {len(unknown)} of {len(ids)} item_ids are not in the catalogue, e.g. "
            f"{', '.join(map(repr, unknown[:_EXAMPLES]))}; leave them out"
        )
    if len(set(ids)) != len(ids):
        repeated = [item_id for item_id, count in Counter(ids).items() if count > 1][:_EXAMPLES]
        raise DataError(
            f"modality {name!r}: {len(ids)} rows hold {len(set(ids))} distinct item_ids, e.g. "
            f"{', '.join(map(repr, repeated))} more than once; keep one row an item"
        )
    return np.asarray([index[item_id] for item_id in ids], dtype=np.int64)


def _scattered(name: str, column: pl.Series, rows: np.ndarray[Any, np.dtype[np.int64]], num_items: int) -> Modality:
    """Row j of the column is the vector of item `rows[j]`."""
    if isinstance(column.dtype, pl.Array):
        column = column.arr.to_list()
    inner = column.dtype.inner if isinstance(column.dtype, pl.List) else None
    if inner is None or not (inner == pl.String or inner == pl.Null or pl.Series(dtype=inner).dtype.is_numeric()):
        raise DataError(f"modality {name!r}: column {column.name!r} must hold lists of numbers, found {column.dtype}")
    widths = column.list.len().fill_null(0).to_numpy()
    filled = np.flatnonzero(widths > 0)
    if len(filled) == 0:
        raise DataError(f"modality {name!r} is empty: none of {num_items} items has it; leave it out")
    width = int(np.bincount(widths[filled]).argmax())
    if len(other := filled[widths[filled] != width]):
        raise DataError(
            f"modality {name!r}: most vectors have {width} numbers, but {len(other)} of {len(filled)} have another "
            f"width, e.g. {int(widths[other[0]])} in row {int(other[0])}"
        )
    values = column.gather(filled).explode()
    numbers = values.cast(pl.Float32, strict=False)
    if (broken := numbers.is_null() | ~numbers.is_finite().fill_null(False)).any():
        first = int(broken.arg_true()[0])
        raise DataError(
            f"modality {name!r}: {int(broken.sum())} values are not finite numbers, e.g. "
            f"{json.dumps(str(values[first]))} in row {int(filled[first // width])}"
        )
    vectors = np.zeros((num_items, width), dtype=np.float32)
    vectors[rows[filled]] = numbers.to_numpy().reshape(-1, width)
    return Modality.from_vectors(name, vectors)
