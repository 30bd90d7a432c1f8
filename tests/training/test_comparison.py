"""Paired differences between runs, on lists made by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recsys.errors import ArtifactError, DataError
from recsys.evaluation.config import EvaluationConfig
from training.comparison import paired_differences

USERS = 200


def write(run: Path, hit_rank: int, targets: np.ndarray | None = None) -> Path:
    """Every list holds its target at `hit_rank` (from 0)."""
    targets = np.full(USERS, 5) if targets is None else targets
    lists = np.tile(np.arange(100, 110), (USERS, 1))
    lists[:, hit_rank] = targets
    (run / "evaluate").mkdir(parents=True)
    frame = {"user": np.arange(USERS), "target": targets, "generator": pl.Series(lists, dtype=pl.List(pl.Int64))}
    pl.DataFrame(frame).write_parquet(run / "evaluate" / "lists.parquet")
    return run


def test_a_difference_is_of_means_over_seeds(tmp_path: Path) -> None:
    better = [write(tmp_path / "a0", 0), write(tmp_path / "a1", 2)]
    worse = [write(tmp_path / "b0", 9)]
    found = paired_differences(better, worse)
    expected = (1 + 1 / np.log2(4)) / 2 - 1 / np.log2(11)
    assert found["ndcg@10"].value == pytest.approx(expected)
    assert found["ndcg@10"].low == pytest.approx(expected)  # every user has the same difference
    assert found["recall@10"].value == 0
    assert found["recall@5"].value == 1


def test_two_models_of_the_same_runs_are_compared(tmp_path: Path) -> None:
    run = write(tmp_path / "a", 4)
    lists = run / "evaluate" / "lists.parquet"
    frame = pl.read_parquet(lists)
    first = np.tile(np.arange(10), (USERS, 1))
    first[:, 0] = frame["target"].to_numpy()
    frame.with_columns(pl.Series("fused", first, dtype=pl.List(pl.Int64))).write_parquet(lists)
    found = paired_differences([run], [run], models=("fused", "generator"))
    assert found["ndcg@10"].value == pytest.approx(1 - 1 / np.log2(6))
    with pytest.raises(ArtifactError, match=r"a/evaluate/lists\.parquet"):
        paired_differences([run], [run], models=("fused", "sasrec"))


def test_cut_offs_beyond_the_lists_are_left_out_or_refused(tmp_path: Path) -> None:
    runs = [write(tmp_path / "a", 0)], [write(tmp_path / "b", 0)]
    assert {name.rpartition("@")[2] for name in paired_differences(*runs)} == {"5", "10"}
    with pytest.raises(DataError, match="kept lists of 10 items, but ks asks for 50"):
        paired_differences(*runs, EvaluationConfig())
    with pytest.raises(DataError, match="at least one run on each side"):
        paired_differences([], runs[1])


def test_runs_on_other_cases_cannot_be_compared(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a", 0), write(tmp_path / "b", 0, np.full(USERS, 6))
    with pytest.raises(DataError, match="evaluated on other cases"):
        paired_differences([first], [second])


def test_an_unfinished_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"nothing/evaluate/lists\.parquet"):
        paired_differences([tmp_path / "nothing"], [write(tmp_path / "a", 0)])
