"""The artifact: one unique tuple of codes per item. Does not know how the codes came about."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from recsys.data import IntArray
from recsys.errors import ArtifactError, DataError
from recsys.files import atomic_directory

_FILE = "semantic_ids.safetensors"


@dataclass(frozen=True, kw_only=True, eq=False)
class SemanticIds:
    """Codes of all items; row i belongs to the item with dense index i.

    Raises:
        DataError: the arrays differ in shape, a code lies outside of its codebook, or two items share all codes.
    """

    codes: IntArray
    """int64 [num_items, levels]: the item's name for the generator; no two rows are equal."""
    raw_codes: IntArray
    """int64 [num_items, levels]: the nearest codes, before collisions were resolved. Rows may repeat."""
    codebook_sizes: tuple[int, ...]
    """How many codes each level has."""
    ordered: bool = True
    """True: each code refines the ones before it, so that items which share a prefix are alike. False: codes of
    parallel codebooks; each column is a codebook of its own and the order of the columns carries no meaning."""
    ordinal: bool = False
    """True: the last code only counts the items that share all others (`extra_level`) and stands for nothing."""

    def __post_init__(self) -> None:
        if self.codes.shape != self.raw_codes.shape or self.codes.ndim != 2:
            raise DataError(f"semantic ids: shapes {self.codes.shape} and {self.raw_codes.shape} must be equal, 2-D")
        if self.codes.shape[1] != len(self.codebook_sizes):
            raise DataError(
                f"semantic ids: {self.codes.shape[1]} levels, but {len(self.codebook_sizes)} codebook sizes"
            )
        check_codes(self.codes, self.codebook_sizes, "semantic ids")
        check_codes(self.raw_codes, self.codebook_sizes, "semantic ids (raw)")
        distinct = num_distinct(row_numbers(self.codes))
        if distinct != self.num_items:
            raise DataError(f"semantic ids: {self.num_items} items share {distinct} distinct codes; must be unique")

    @property
    def num_items(self) -> int:
        """How many items there are."""
        return len(self.codes)

    @property
    def levels(self) -> int:
        """Codes per item."""
        return len(self.codebook_sizes)

    def save(self, directory: Path) -> None:
        """Write the directory, whole or not at all."""
        facts = {"codebook_sizes": list(self.codebook_sizes), "ordered": self.ordered, "ordinal": self.ordinal}
        with atomic_directory(directory) as temporary:
            save_file(
                {
                    "codes": np.ascontiguousarray(self.codes),
                    "raw_codes": np.ascontiguousarray(self.raw_codes),
                },
                temporary / _FILE,
                metadata={"facts": json.dumps(facts)},
            )

    @classmethod
    def load(cls, directory: Path) -> SemanticIds:
        """Read what `save` wrote. Raises ArtifactError when it is missing, damaged or inconsistent."""
        try:
            # By way of PyTorch the codes are a map of the file, one in memory for all processes that load it.
            with safe_open(directory / _FILE, framework="pt") as file:
                metadata = file.metadata()
                # Before there was `facts`, the sizes stood alone and all codes were ordered.
                facts = json.loads(metadata.get("facts") or f'{{"codebook_sizes": {metadata["codebook_sizes"]}}}')
                return cls(
                    codes=file.get_tensor("codes").numpy(),
                    raw_codes=file.get_tensor("raw_codes").numpy(),
                    codebook_sizes=tuple(facts["codebook_sizes"]),
                    ordered=facts.get("ordered", True),
                    ordinal=facts.get("ordinal", False),
                )
        except (OSError, SafetensorError, KeyError, TypeError, AttributeError, ValueError, DataError) as error:
            raise ArtifactError(f"cannot read semantic ids from {directory}: {error}") from error


def row_numbers(codes: IntArray) -> IntArray:
    """int64 [n]: a number for each row of codes, int64 [n, L] and none negative; in the order of the rows.

    Numbers sort ten times faster than rows.
    """
    widths = [int(column.max(initial=0)).bit_length() for column in codes.T]
    if sum(widths) > 63:
        return np.unique(codes, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)
    places = [1 << sum(widths[level + 1 :]) for level in range(len(widths))]
    numbers: IntArray = np.einsum("nl,l->n", codes, np.asarray(places, dtype=np.int64))
    return numbers


def num_distinct(numbers: npt.NDArray[np.integer]) -> int:
    """How many different numbers there are, [n]; of ten million in a second, for which `np.unique` takes twenty."""
    ordered = np.sort(numbers)
    return min(len(ordered), 1) + int(np.count_nonzero(ordered[1:] != ordered[:-1]))


def check_codes(codes: IntArray, codebook_sizes: tuple[int, ...], what: str) -> None:
    """Raise DataError unless `codes` is int64 [n, levels] with every code inside its codebook."""
    if codes.ndim != 2 or codes.shape[1] != len(codebook_sizes) or codes.dtype != np.int64:
        raise DataError(
            f"{what}: codes must be int64 [n, {len(codebook_sizes)}], found {codes.dtype} {list(codes.shape)}"
        )
    # First without a table of booleans, which ten million rows take a second for.
    largest = [int(column.max(initial=0)) for column in codes.T]
    if codes.min(initial=0) < 0 or any(code >= size for code, size in zip(largest, codebook_sizes, strict=True)):
        outside = (codes < 0) | (codes >= np.asarray(codebook_sizes))
        row, level = np.argwhere(outside)[0]
        raise DataError(
            f"{what}: {int(outside.any(axis=1).sum())} of {len(codes)} rows have a code outside of its codebook, "
            f"e.g. row {row} has {codes[row, level]} at level {level}, whose codebook has {codebook_sizes[level]}; "
            "were these codes made by another tokenizer?"
        )
