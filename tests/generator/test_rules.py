"""Rules over columns: what they leave, and that the order among it is the unfiltered one."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from scored_catalogue import exact_order, score_catalogue

from recsys.data.sequences import Sequences
from recsys.errors import DataError
from recsys.generator.rules import constrain, in_any_category, in_stock, mask, price_between

ITEMS = pl.DataFrame(
    {
        "categories": [["a", "b"], [], ["b"], ["c"], ["a"]],
        "price": ["$9.99", "12", None, "about 5", "30.00"],
        "stock": [0, 3, 1, None, 9],
    }
)


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ([], [0, 1, 2, 3, 4]),
        ([in_any_category("a", "c")], [0, 3, 4]),
        ([in_any_category("unheard of")], []),
        ([price_between(10)], [1, 4]),
        ([price_between(None, 12)], [0, 1]),
        ([price_between(9.99, 12)], [0, 1]),
        ([in_stock()], [1, 2, 4]),
        ([in_any_category("a"), in_stock(2), price_between(high=100)], [4]),
        ([pl.col("stock").is_null() | (pl.col("categories").list.len() == 2)], [0, 3]),
        ([pl.lit(True)], [0, 1, 2, 3, 4]),
    ],
)
def test_rules_leave_the_rows_for_which_they_all_hold(rules: list[pl.Expr], expected: list[int]) -> None:
    assert np.flatnonzero(mask(ITEMS, rules)).tolist() == expected


def test_prices_may_be_numbers() -> None:
    items = pl.DataFrame({"price": [1.5, 20.0, None]})
    assert mask(items, [price_between(1, 20)]).tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("rule", "message"),
    [(pl.col("colour") == "red", "colour.*has the columns"), (pl.col("stock") + 1, "rule 0 must give")],
)
def test_rules_that_are_none_are_refused(rule: pl.Expr, message: str) -> None:
    with pytest.raises(DataError, match=message):
        mask(ITEMS, [rule])


@pytest.mark.parametrize("shape", ["nested", "flat", "any_order"])
def test_the_order_among_what_rules_leave_is_the_unfiltered_one(make_recommender, shape: str) -> None:
    recommender = make_recommender(shape, num_items=300)
    rng = np.random.default_rng(0)
    items = pl.DataFrame(
        {
            "categories": [rng.choice(list("abcd"), size=rng.integers(0, 3)).tolist() for _ in range(300)],
            "price": rng.uniform(1, 50, size=300).round(2),
            "stock": rng.integers(0, 4, size=300),
        },
        schema={"categories": pl.List(pl.String), "price": pl.Float64, "stock": pl.Int64},
    )
    histories = Sequences.from_lists([[1, 2], [], [9]])
    rules = [
        [in_any_category("a"), in_stock()],
        [price_between(5, 20)],
        [in_any_category("b", "c"), price_between(high=30), pl.col("stock") != 2],
    ]
    constraints = constrain(items, rules, deny=[np.arange(5)] * 3)
    found = recommender.recommend(histories, 12, beams=12, exact=True, constraints=constraints)
    assert found.certified is not None
    assert found.certified.all()
    for row, history in enumerate(histories):
        scores = score_catalogue(recommender, history)
        permitted = mask(items, rules[row])
        permitted[:5] = False
        order = exact_order(recommender, scores)
        expected = order[permitted[order]][:12]
        assert found.items[row].tolist() == expected.tolist()
        np.testing.assert_allclose(found.scores[row], scores[expected], atol=1e-4)


def test_one_set_of_rules_serves_all_requests() -> None:
    constraints = constrain(ITEMS, [[in_stock()]])
    assert constraints.allow is not None
    assert constraints.allow.tolist() == [False, True, True, False, True]


def test_prices_may_have_separators_and_exponents() -> None:
    texts = pl.DataFrame({"price": ["$1,299.99", "9.99", "nan", "call us", None]})
    assert mask(texts, [price_between(5)]).tolist() == [True, True, False, False, False]
    numbers = pl.DataFrame({"price": [1e9, 2.5, None]})
    assert mask(numbers, [price_between(5)]).tolist() == [True, False, False]
