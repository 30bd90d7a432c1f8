"""The steps between a source's tables and the final log, on tables of a few rows."""

from __future__ import annotations

from collections import Counter

import numpy as np
import polars as pl
import pytest

from recsys.data import DataConfig, Interactions
from recsys.data.prepare import prepare
from recsys.data.sources.raw import RawData, event_frame, item_frame
from recsys.errors import DataError


def raw(events: list[tuple[str, str]], items: list[str] | None = None, **columns: list[object]) -> RawData:
    users, names = zip(*events, strict=True)
    catalogue = items if items is not None else sorted(set(names))
    series = {"user_id": pl.Series(users), "item_id": pl.Series(names)}
    return RawData(
        items=item_frame({"item_id": pl.Series(catalogue)}),
        events=event_frame(series | {name: pl.Series(values) for name, values in columns.items()}),
    )


def histories(data: RawData, config: DataConfig) -> dict[str, list[str]]:
    """Item ids by user id."""
    catalog, interactions = prepare(data, config, only_interacted=False)
    return {
        user: [catalog.item_ids[item] for item in items]
        for user, items in zip(interactions.user_ids, interactions.sequences(), strict=True)
    }


def test_time_orders_each_user_and_users_keep_their_order_of_appearance() -> None:
    data = raw([("b", "x"), ("a", "y"), ("b", "z"), ("a", "x")], timestamp=[30, 20, 10, 40])
    assert histories(data, DataConfig()) == {"b": ["z", "x"], "a": ["y", "x"]}


def test_position_orders_when_there_is_no_time() -> None:
    data = raw([("a", "x"), ("a", "y"), ("a", "z")], position=[2, 0, 1])
    assert histories(data, DataConfig()) == {"a": ["y", "z", "x"]}


def test_row_order_counts_when_there_is_nothing_else() -> None:
    data = raw([("a", "z"), ("a", "x"), ("a", "y")])
    assert histories(data, DataConfig()) == {"a": ["z", "x", "y"]}
    assert histories(data, DataConfig(tie_order="item_id")) == {"a": ["z", "x", "y"]}


def test_ties_follow_the_order_asked_for() -> None:
    data = raw([("a", "q"), ("a", "z"), ("a", "x"), ("a", "y")], timestamp=[1, 5, 5, 5])
    assert histories(data, DataConfig())["a"] == ["q", "z", "x", "y"]
    assert histories(data, DataConfig(tie_order="item_id"))["a"] == ["q", "x", "y", "z"]
    shuffled = [histories(data, DataConfig(tie_order="shuffle", tie_seed=seed))["a"] for seed in range(20)]
    assert all(order[0] == "q" for order in shuffled)
    assert len(set(map(tuple, shuffled))) > 3
    assert histories(data, DataConfig(tie_order="shuffle", tie_seed=3))["a"] == shuffled[3]


def test_given_position_orders_ties_before_the_tie_order_does() -> None:
    shuffles = [DataConfig(tie_order="shuffle", tie_seed=seed) for seed in range(5)]
    data = raw([("a", "x"), ("a", "y"), ("a", "z")], timestamp=[5, 5, 9], position=[1, 0, 2])
    for config in (DataConfig(), DataConfig(tie_order="item_id"), *shuffles):
        assert histories(data, config)["a"] == ["y", "x", "z"]
    tied = raw([("a", "z"), ("a", "x"), ("a", "y")], timestamp=[5, 5, 5], position=[1, 1, 0])
    assert histories(tied, DataConfig(tie_order="item_id"))["a"] == ["y", "x", "z"]


def test_positions_that_contradict_times_are_counted() -> None:
    data = raw([("a", "x"), ("a", "y"), ("b", "x")], timestamp=[1, 2, 3], position=[1, 0, 0])
    with pytest.raises(DataError, match=r"position contradicts timestamp in 1 of 3 rows, e.g. user 'a' position 0"):
        histories(data, DataConfig())


@pytest.mark.parametrize(
    ("policy", "expected"), [("none", list("xyxz")), ("first", list("xyz")), ("last", list("yxz"))]
)
def test_repeats_stay_or_leave_one(policy: str, expected: list[str]) -> None:
    data = raw([("a", "x"), ("a", "y"), ("a", "x"), ("a", "z")], timestamp=[1, 2, 3, 4])
    assert histories(data, DataConfig.model_validate({"deduplicate": policy}))["a"] == expected


def test_event_types_and_ratings_filter_rows() -> None:
    data = raw(
        [("a", "x"), ("a", "y"), ("a", "z"), ("a", "x")],
        event_type=["view", "buy", "buy", "buy"],
        rating=[None, 2.0, 4.0, None],
    )
    assert histories(data, DataConfig(event_types=["buy"]))["a"] == ["y", "z", "x"]
    assert histories(data, DataConfig(min_rating=3))["a"] == ["x", "z", "x"]
    with pytest.raises(DataError, match=r"event_types: 'cart' occurs in none of 4 .* the log has 'buy', 'view'"):
        histories(data, DataConfig(event_types=["cart", "buy"]))


def test_rating_thresholds_that_leave_nothing_say_what_there_is() -> None:
    with pytest.raises(DataError, match=r"5\.0 leaves none of 2 interactions; ratings lie in 1\.0 to 2\.0"):
        histories(raw([("a", "x"), ("a", "y")], rating=[1.0, 2.0]), DataConfig(min_rating=5))
    with pytest.raises(DataError, match="none of 1 interactions has a rating"):
        histories(raw([("a", "x")]), DataConfig(min_rating=5))


@pytest.mark.parametrize("seed", range(5))
def test_k_core_equals_a_reference_that_removes_one_at_a_time(seed: int) -> None:
    rng = np.random.default_rng(seed)
    events = [(f"u{user}", f"i{item}") for user, item in rng.integers(25, size=(200, 2)).tolist()]
    left = list(events)
    while True:
        users, items = Counter(user for user, _ in left), Counter(item for _, item in left)
        poor = [pair for pair in left if users[pair[0]] < 6 or items[pair[1]] < 5]
        if not poor:
            break
        gone = poor[0]
        left = [
            (user, item)
            for user, item in left
            if not (user == gone[0] and users[user] < 6) and not (item == gone[1] and items[item] < 5)
        ]
    assert 0 < len(left) < len(events)
    kept = histories(raw(events), DataConfig(min_user_interactions=6, min_item_interactions=5))
    assert sorted((user, item) for user, items in kept.items() for item in items) == sorted(left)


def test_k_core_that_leaves_nothing_says_so() -> None:
    with pytest.raises(DataError, match="min_item_interactions 1 leave none of 2 interactions"):
        histories(raw([("a", "x"), ("b", "x")]), DataConfig(min_user_interactions=2))


def test_catalogue_keeps_or_drops_items_without_interactions() -> None:
    data = raw([("a", "z"), ("a", "x")], items=["x", "y", "z"])
    everything, log = prepare(data, DataConfig(), only_interacted=False)
    assert everything.item_ids == ["x", "y", "z"]
    assert log.frame["item"].to_list() == [2, 0]
    assert log.num_items == 3
    interacted, log = prepare(data, DataConfig(), only_interacted=True)
    assert interacted.item_ids == ["x", "z"]
    assert log.frame["item"].to_list() == [1, 0]


def test_unknown_items_in_the_log_are_counted_with_examples() -> None:
    data = raw([("a", "x"), ("a", "p"), ("b", "p"), ("b", "q")], items=["x", "y"])
    with pytest.raises(
        DataError, match=r"3 of 4 rows name 2 items that are not among the 2 of the catalogue, e.g. 'p', 'q'"
    ):
        histories(data, DataConfig())


def test_users_without_rows_left_get_no_index() -> None:
    data = raw([("a", "x"), ("b", "x"), ("b", "y")])
    _, interactions = prepare(data, DataConfig(min_user_interactions=2), only_interacted=False)
    assert isinstance(interactions, Interactions)
    assert interactions.user_ids == ["b"]
