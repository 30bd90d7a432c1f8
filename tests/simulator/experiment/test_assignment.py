"""Buckets and arms against the hash itself, and splits that move as few users as they can."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from recsys.simulator.experiment.assignment import assign, bucket_of, split_buckets


def test_a_bucket_is_the_hash_of_salt_and_unit() -> None:
    expected = int(hashlib.sha256(b"ranking:196").hexdigest(), 16) % 10_000
    assert bucket_of("ranking", "196") == expected
    assert bucket_of("ranking", "196") != bucket_of("page", "196")


def test_buckets_are_uniform_and_independent_between_salts() -> None:
    """Chi-square over 200 000 ids: buckets in 100 groups, and pairs of two layers in 10 x 10."""
    ids = [str(number) for number in range(200_000)]
    first = np.array([bucket_of("a", unit) for unit in ids])
    second = np.array([bucket_of("b", unit) for unit in ids])
    assert stats.chisquare(np.bincount(first // 100, minlength=100)).pvalue > 0.001
    table = np.zeros((10, 10))
    np.add.at(table, (first // 1000, second // 1000), 1)
    assert stats.chi2_contingency(table).pvalue > 0.001


@settings(max_examples=40)
@given(st.lists(st.lists(st.integers(0, 2500), min_size=4, max_size=4), min_size=2, max_size=5))
def test_a_new_split_moves_the_fewest_buckets_possible(shares: list[list[int]]) -> None:
    splits = [dict(zip("abcd", each, strict=True)) for each in shares]
    for upto in range(1, len(splits) + 1):
        arms, owner = split_buckets(splits[:upto])
        held = Counter(arms[index] for index in owner.tolist() if index >= 0)
        assert {arm: held[arm] for arm in arms} == splits[upto - 1]
    arms, first = split_buckets(splits[:-1])
    same_arms, second = split_buckets(splits)
    assert arms == same_arms
    for arm in "abcd":
        index = arms.index(arm)
        stayed = int(((first == index) & (second == index)).sum())
        assert stayed == min(splits[-2][arm], splits[-1][arm])


def test_units_are_assigned_by_the_shares() -> None:
    units = [f"user{number}" for number in range(20_000)]
    found = assign(units, "salt", {"control": 4000, "new": 4000})
    assert found == assign(units, "salt", {"control": 4000, "new": 4000})
    shares = Counter(found)
    assert [shares[arm] / len(units) for arm in ("control", "new", None)] == pytest.approx([0.4, 0.4, 0.2], abs=0.01)
    assert found[7] == assign(units[7:8], "salt", {"control": 4000, "new": 4000})[0], "whoever else is there"
