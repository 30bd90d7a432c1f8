"""A log that is no evidence is refused, with the rows named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from recsys.errors import RecsysError
from recsys.simulator.off_policy import BadLogError, BanditLog, SlateLog, SlateTarget, evaluate_policy


def _log(**changes: Any) -> BanditLog:
    values: dict[str, Any] = {
        "actions": np.array([0, 1, 2, 0]),
        "rewards": np.array([1.0, 0.0, 0.0, 1.0]),
        "propensities": np.array([0.5, 0.25, 0.25, 0.5]),
        "num_actions": 3,
    }
    return BanditLog(**(values | changes))


@pytest.mark.parametrize(
    ("changes", "message", "rows"),
    [
        ({"propensities": np.array([0.5, np.nan, 0.25, 0.0])}, "propensities must be above 0", [1, 3]),
        ({"propensities": np.array([0.5, 1.5, -0.25, 0.1])}, "propensities must be above 0", [1, 2]),
        ({"actions": np.array([0, 3, -1, 0])}, "actions must lie in 0..2", [1, 2]),
        ({"rewards": np.array([1.0, np.inf, 0.0, 0.0])}, "rewards must be finite", [1]),
        ({"request_ids": np.array(["a", "b", "c", "b"])}, "request ids must be different", [1, 3]),
        ({"users": np.array([0, -1, 1, 0])}, "users must be 0 or more", [1]),
        ({"contexts": np.array([0, 0, -1, 0])}, "contexts must be 0 or more", [2]),
        ({"behaviour": np.array([[0.5, 0.25, 0.2]])}, "behaviour: .* must sum to 1", [0]),
        ({"behaviour": np.array([[0.5, 0.2, 0.3]])}, "contradict", [1, 2]),
        ({"behaviour": np.array([[0.5, 0.75, -0.25]])}, "0 or more", [0]),
    ],
)
def test_bad_rows_are_named(changes: dict[str, Any], message: str, rows: list[int]) -> None:
    with pytest.raises(BadLogError, match=message) as caught:
        _log(**changes)
    assert caught.value.rows == rows
    assert isinstance(caught.value, RecsysError)
    assert f"{'rows' if len(rows) > 1 else 'row'} {rows[0]}" in str(caught.value)


def test_an_empty_log_and_columns_of_different_lengths_are_refused() -> None:
    empty = np.zeros(0)
    with pytest.raises(BadLogError, match="empty"):
        BanditLog(actions=empty.astype(np.int64), rewards=empty, propensities=empty, num_actions=3)
    with pytest.raises(BadLogError, match="4 rows, got 3"):
        _log(rewards=np.zeros(3))
    with pytest.raises(BadLogError, match="a row for each of 3 contexts"):
        _log(contexts=np.array([0, 1, 2, 0]), features=np.zeros((2, 1)))


def test_only_the_first_rows_are_in_the_message() -> None:
    with pytest.raises(BadLogError, match=r"rows 0, 1, 2, 3, 4 and 95 more") as caught:
        BanditLog(
            actions=np.zeros(100, dtype=np.int64), rewards=np.zeros(100), propensities=np.zeros(100), num_actions=1
        )
    assert len(caught.value.rows) == 100


@pytest.mark.parametrize("target", [[[0.5, 0.5, 0.5]], [[0.5, np.nan, 0.5]], [[1.0, 0.0]]])
def test_a_target_that_is_no_policy_is_refused(target: list[list[float]]) -> None:
    with pytest.raises(BadLogError, match="target"):
        evaluate_policy(_log(), np.array(target))


def _lists(**changes: Any) -> SlateLog:
    values: dict[str, Any] = {
        "items": np.array([[0, 1], [1, -1]]),
        "rewards": np.array([[1.0, 0.0], [0.0, 0.0]]),
        "conditional": np.array([[0.5, 0.5], [0.5, 1.0]]),
        "marginal": np.array([[0.5, 0.5], [0.5, 1.0]]),
    }
    return SlateLog(**(values | changes))


@pytest.mark.parametrize(
    ("changes", "message", "rows"),
    [
        ({"conditional": np.array([[0.5, 0.0], [0.5, 1.0]])}, "conditional must be above 0", [0]),
        ({"marginal": np.array([[0.5, 0.1], [0.5, 1.0]])}, "at least the product", [0]),
        ({"rewards": np.array([[1.0, 0.0], [0.0, 1.0]])}, "0 where no item stands", [1]),
        ({"items": np.array([[0, 1], [-1, 1]])}, "first place", [1]),
        ({"request_ids": np.array(["a", "a"])}, "different", [0, 1]),
    ],
)
def test_bad_lists_are_named(changes: dict[str, Any], message: str, rows: list[int]) -> None:
    with pytest.raises(BadLogError, match=message) as caught:
        _lists(**changes)
    assert caught.value.rows == rows


def test_lists_with_gaps_and_targets_that_are_no_probabilities_are_refused() -> None:
    with pytest.raises(BadLogError, match="no gaps"):
        SlateLog(
            items=np.array([[0, -1, 1]]),
            rewards=np.zeros((1, 3)),
            conditional=np.ones((1, 3)),
            marginal=np.ones((1, 3)),
        )
    with pytest.raises(BadLogError, match="target marginal must be at least 0"):
        SlateTarget(conditional=np.zeros((1, 2)), marginal=np.array([[0.0, -0.1]]))
    _lists()
