"""One run's tokenizer on another run's catalogue: has it drifted, and names for it that keep the old ones.

Reads what two runs have stored and writes only where it is told to; trains nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recsys.data import Catalog, IntArray, Split
from recsys.encoder import ItemEmbeddings
from recsys.errors import ConfigError
from recsys.files import atomic_directory, sha256_directory, write_json
from recsys.tokenizer.drift import drift_report
from recsys.tokenizer.retokenize import retokenize
from training.layout import DATA, ENCODE, SEMANTIC_IDS, TEXT_ENCODER, TOKENIZE, TOKENIZER, TOKENIZER_REPORT
from training.stages import data, encode, tokenize


@dataclass(frozen=True, kw_only=True, eq=False)
class _Stored:
    """What a run knows of its items."""

    run_dir: Path
    catalog: Catalog
    split: Split
    embeddings: ItemEmbeddings


def drift_between(run_dir: Path, other_dir: Path) -> dict[str, Any]:
    """`drift_report` of a run's tokenizer: the items it was fitted on against the catalogue of another run.

    Raises:
        ArtifactError: a run lacks a stage that is needed.
        ConfigError: the two runs' vectors do not lie in one space.
    """
    run, other = _read(run_dir), _read(other_dir)
    _check_one_space(run, other)
    tokenizer = tokenize.load_fitted(run_dir / TOKENIZE)
    return drift_report(tokenizer, run.embeddings.vectors[run.split.fitted_items], other.embeddings.vectors)


def retokenize_between(run_dir: Path, other_dir: Path, output: Path, *, refitted: bool) -> dict[str, Any]:
    """Name the items of another run's catalogue, keeping a run's names by `item_id`; the report of `retokenize`.

    Writes the directory `output` whole or not at all: `semantic_ids/`, `tokenizer/` and `report.json`. With `refitted`
    the codebooks are the other run's, under this run's numbers; else they are this run's.

    Raises:
        ArtifactError: a run lacks a stage that is needed.
        ConfigError: `output` exists, or, without `refitted`, the two runs' vectors do not lie in one space.
        DataError: the runs' tokenizers have other sizes.
    """
    if output.exists():
        raise ConfigError(f"{output} exists; choose another directory with --out")
    run, other = _read(run_dir), _read(other_dir)
    if not refitted:
        _check_one_space(run, other)
    result = retokenize(
        tokenize.load_ids(run_dir / TOKENIZE),
        run.embeddings.vectors,
        tokenize.load_fitted((other_dir if refitted else run_dir) / TOKENIZE),
        other.embeddings.vectors,
        _old_rows(run.catalog, other.catalog),
        refitted=refitted,
    )
    with atomic_directory(output) as directory:
        result.ids.save(directory / SEMANTIC_IDS)
        result.tokenizer.save(directory / TOKENIZER)
        write_json(directory / TOKENIZER_REPORT, result.report)
    return result.report


def _read(run_dir: Path) -> _Stored:
    return _Stored(
        run_dir=run_dir,
        catalog=data.load_catalog(run_dir / DATA),
        split=data.load_split(run_dir / DATA),
        embeddings=encode.load_embeddings(run_dir / ENCODE),
    )


def _check_one_space(run: _Stored, other: _Stored) -> None:
    if run.embeddings.encoder != other.embeddings.encoder:
        raise ConfigError(
            f"{run.run_dir} and {other.run_dir} have encoded their items in different ways (section encoder of their "
            "configs), so their vectors cannot be compared; run the second with the first one's encoder"
        )
    encoder = run.embeddings.encoder
    if encoder.alignment is not None:
        tuned = [sha256_directory(stored.run_dir / ENCODE / TEXT_ENCODER) for stored in (run, other)]
        if tuned[0] != tuned[1]:
            raise ConfigError(
                f"{run.run_dir} and {other.run_dir} each tuned a text encoder of their own (encoder.alignment), so "
                "their vectors cannot be compared; run both without alignment and with one tuned model, "
                f"encoder.model={run.run_dir / ENCODE / TEXT_ENCODER} for instance"
            )
    if encoder.collaborative_weight > 0:
        raise ConfigError(
            "encoder.collaborative_weight is above 0: the collaborative vectors of two runs have no axes in common, so "
            "one run's codebooks say nothing about the other's items; run both with 0, or use `retokenize --refitted`"
        )


def _old_rows(old: Catalog, new: Catalog) -> IntArray:
    """int64 [n]: the row of each new item in the old catalogue, by `item_id`; -1 where it has none."""
    rows = {item: row for row, item in enumerate(old.item_ids)}
    return np.asarray([rows.get(item, -1) for item in new.item_ids], dtype=np.int64)
