"""Rules of a request over the columns of a table of items: a category, a price range, stock, any predicate of Polars.

A rule is an expression over one row an item, in the order of the item indices; what it leaves becomes the `allow` of
`Constraints`. A row where a rule is null, for example an item without a price, is not permitted. Knows no users.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.data.sequences import IntArray
from recsys.errors import DataError
from recsys.generator.constraints import Cap, Constraints


def in_any_category(*names: str, column: str = "categories") -> pl.Expr:
    """Items with at least one of the categories `names`, of a list column."""
    return pl.col(column).list.eval(pl.element().is_in(list(names))).list.any()


def number(column: str) -> pl.Expr:
    """float64: the number that each item has in `column`, null for none. A text like $1,299.99 is one."""
    plain = pl.col(column).cast(pl.Float64, strict=False).fill_nan(None)
    # A comma is taken for what separates thousands, as shops that write a dollar sign do.
    text = pl.col(column).cast(pl.String).str.replace_all(",", "").str.extract(r"^\s*\$?\s*(\d+(?:\.\d+)?)\s*$", 1)
    return pl.coalesce(plain, text.cast(pl.Float64))


def price_between(low: float | None = None, high: float | None = None, column: str = "price") -> pl.Expr:
    """Items whose price lies in low..high, both included; None leaves an end open. A text like $1,299.99 is a price.

    An item without a price is not permitted.
    """
    return between(number(column), low, high)


def between(numbers: pl.Expr, low: float | None, high: float | None) -> pl.Expr:
    """Where there are `numbers`, and they lie in low..high, both included; None leaves an end open."""
    rule = numbers.is_not_null()
    if low is not None:
        rule = rule & (numbers >= low)
    if high is not None:
        rule = rule & (numbers <= high)
    return rule


def in_stock(at_least: int = 1, column: str = "stock") -> pl.Expr:
    """Items of which at least so many are there."""
    return pl.col(column) >= at_least


def mask(items: pl.DataFrame, rules: Sequence[pl.Expr]) -> npt.NDArray[np.bool_]:
    """bool [N]: the rows of `items` for which all `rules` hold.

    Raises:
        DataError: a rule names a column that is not there, or is no predicate.
    """
    named = [rule.alias(str(number)) for number, rule in enumerate(rules)]
    try:
        found = items.select(named) if named else pl.DataFrame()
    except pl.exceptions.PolarsError as error:
        raise DataError(f"rules: {str(error).splitlines()[0]}; the table has the columns {items.columns}") from error
    permitted = np.ones(items.height, dtype=bool)
    for number, column in enumerate(found.iter_columns()):
        if column.dtype != pl.Boolean or len(column) not in (1, items.height):
            raise DataError(f"rules: rule {number} must give true or false for each item, found {column.dtype}")
        permitted &= column.fill_null(False).to_numpy()
    return permitted


def constrain(
    items: pl.DataFrame,
    rules: Sequence[Sequence[pl.Expr]],
    *,
    deny: Sequence[IntArray] | None = None,
    caps: Sequence[Cap] = (),
) -> Constraints:
    """The constraints of B requests.

    Args:
        items: one row an item, in the order of the item indices.
        rules: of each request, which all must hold; one entry for all requests, or B.
        deny: see `Constraints`.
        caps: see `Constraints`.
    """
    rows = [mask(items, request) for request in rules]
    allow = rows[0] if len(rows) == 1 else np.stack(rows)
    return Constraints(allow=allow, deny=deny, caps=caps)
