from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from recsys.errors import ConfigError
from serving.experiments import (
    NUM_BUCKETS,
    ExperimentPlan,
    Experiments,
    bucket_of,
    load_plan,
    parse_override,
    sample_ratio_p_value,
    split_buckets,
)

PLAN = {
    "holdout": 1000,
    "layers": [
        {
            "name": "ranking",
            "experiments": {
                "ranker": {"variants": {"control": {}, "new": {"mode": "reason"}}},
                "depth": {"variants": {"shallow": {"k": 5}, "deep": {"k": 50}}},
            },
            "splits": [{"ranker/control": 4000, "ranker/new": 4000, "depth/deep": 1000}],
        },
        {
            "name": "page",
            "experiments": {"title": {"variants": {"short": {}, "long": {"long_titles": True}}}},
            "splits": [{"title/short": 5000, "title/long": 5000}],
        },
    ],
}
USERS = [f"user{number}" for number in range(20_000)]


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


def test_users_keep_their_arm_when_it_grows_and_an_arm_that_joins_shuffles_nobody() -> None:
    def arms(*splits: dict[str, int]) -> dict[str, str | None]:
        layer = PLAN["layers"][0] | {"splits": splits}
        running = Experiments(ExperimentPlan.model_validate({"layers": [layer]}))
        found = {}
        for user in USERS[:3000]:
            exposures = running.assign(user).exposures
            found[user] = exposures[0].variant if exposures else None
        return found

    before = arms({"ranker/control": 5000, "ranker/new": 500})
    grown = arms({"ranker/control": 5000, "ranker/new": 500}, {"ranker/control": 5000, "ranker/new": 5000})
    assert {(before[user], grown[user]) for user in before} == {("control", "control"), ("new", "new"), (None, "new")}
    joined = arms(
        {"ranker/control": 5000, "ranker/new": 500}, {"ranker/control": 5000, "ranker/new": 500, "depth/deep": 9}
    )
    moved = {(before[user], joined[user]) for user in before if before[user] != joined[user]}
    assert moved <= {(None, "deep")}


def test_shares_hold_layers_cross_and_the_holdout_is_in_nothing() -> None:
    running = Experiments(load_plan(PLAN))
    assignments = {user: running.assign(user) for user in USERS}
    assert all(assignments[user] == running.assign(user) for user in USERS[:100])
    held_out = [found for found in assignments.values() if found.is_holdout]
    assert len(held_out) / len(USERS) == pytest.approx(0.1, abs=0.01)
    assert all(not found.exposures and not found.settings for found in held_out)
    pairs = Counter(
        tuple((each.experiment, each.variant) for each in found.exposures)
        for found in assignments.values()
        if not found.is_holdout
    )
    crossed = {
        f"{experiment}/{variant} {title}": pairs[(experiment, variant), ("title", title)]
        for experiment, variant in (("ranker", "control"), ("ranker", "new"), ("depth", "deep"))
        for title in ("short", "long")
    }
    shares = {name: 1 if name.startswith("depth") else 4 for name in crossed}
    assert sample_ratio_p_value(crossed, shares) > 0.001
    assert pairs[("title", "short"),] + pairs[("title", "long"),] > 0, "the rest of a layer is in no experiment of it"


def test_an_arm_carries_its_settings_and_its_exposure() -> None:
    running = Experiments(load_plan(PLAN | {"holdout": 0}))
    user = next(user for user in USERS if len(running.assign(user).settings) == 2)
    found = running.assign(user)
    assert found.settings in ({"mode": "reason", "long_titles": True}, {"k": 50, "long_titles": True})
    assert [each.bucket for each in found.exposures] == [bucket_of("ranking", user), bucket_of("page", user)]
    assert not any(each.forced for each in found.exposures)


def test_a_tester_sees_the_arm_that_was_asked_for_even_from_the_holdout() -> None:
    running = Experiments(load_plan(PLAN | {"holdout": NUM_BUCKETS}))
    found = running.assign("anybody", parse_override("depth = shallow, "))
    assert [(each.experiment, each.variant, each.forced) for each in found.exposures] == [("depth", "shallow", True)]
    assert found.settings == {"k": 5}
    assert found.is_holdout
    for unknown in ({"depth": "deeper"}, {"nothing": "new"}):
        with pytest.raises(ConfigError, match="there is no"):
            running.assign("anybody", unknown)


@pytest.mark.parametrize("header", ["ranker", "ranker=", "=new", "a=b,c"])
def test_a_malformed_override_is_one_error(header: str) -> None:
    with pytest.raises(ConfigError, match="expected experiment=variant"):
        parse_override(header)


def test_impossible_plans_name_the_field() -> None:
    layer = PLAN["layers"][0]
    for change, message in [
        ({"layers": [layer | {"splits": [{"ranker/old": 1}]}]}, "no arm ranker/old"),
        ({"layers": [layer | {"splits": [{"ranker/new": 6000, "ranker/control": 6000}]}]}, "12000 buckets"),
        ({"layers": [layer, layer]}, "ranking stands twice"),
        ({"layers": [layer, layer | {"name": "other"}]}, "depth stands twice"),
        ({"layers": [layer | {"name": "holdout"}]}, "holdout stands twice"),
        ({"layers": [layer | {"splits": []}]}, "layers.0.splits"),
        ({"holdout": 10_001}, "holdout"),
    ]:
        with pytest.raises(ConfigError, match=message):
            load_plan(change)


def test_a_sample_ratio_mismatch_is_found_and_chance_is_not() -> None:
    # chi-square 2.0 with one degree of freedom
    assert sample_ratio_p_value({"a": 5050, "b": 4950}, {"a": 1, "b": 1}) == pytest.approx(0.317311, abs=1e-6)
    assert sample_ratio_p_value({"a": 5200, "b": 4800}, {"a": 1, "b": 1}) < 0.001
    for observed, shares in [
        ({"a": 1}, {"a": 1}),
        ({"a": 1, "b": 1}, {"a": 1, "c": 1}),
        ({"a": 0, "b": 0}, {"a": 1, "b": 1}),
    ]:
        with pytest.raises(ValueError, match="two or more arms"):
            sample_ratio_p_value(observed, shares)
