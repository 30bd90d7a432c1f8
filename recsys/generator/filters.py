"""Filters as data: conditions on the columns of a table of items, joined by and, or, not. Knows no HTTP and no users.

    {"and": [{"in": {"column": "categories", "values": ["Drama", "Noir"]}},
             {"range": {"column": "price", "max": 20}},
             {"not": {"eq": {"column": "brand", "value": "Acme"}}}]}

A filter is checked when it is read, within limits on its depth and size, and becomes an expression of Polars over one
table: then its columns must exist and be of the right kind. A condition on a value that is missing does not hold, so
its `not` does: a filter says yes or no to every item.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import and_, or_
from typing import Annotated, Any, Literal, TypeAlias

import polars as pl
from pydantic import BeforeValidator, Discriminator, Field, PlainValidator, Tag, WithJsonSchema, model_validator

from recsys.config import StrictConfig
from recsys.data.catalog import with_rows
from recsys.data.sequences import IntArray
from recsys.errors import DataError
from recsys.generator.rules import between, in_any_category, number

MAX_DEPTH = 8
"""Filters within filters."""
MAX_CONDITIONS = 100
"""Conditions and joints of a filter, together."""
MAX_VALUES = 100
"""Values of an `in`."""
MAX_TEXT = 256

ColumnName: TypeAlias = Annotated[str, Field(min_length=1, max_length=MAX_TEXT)]
Text: TypeAlias = Annotated[str, Field(strict=True, max_length=MAX_TEXT)]
Number: TypeAlias = Annotated[float, Field(strict=True, allow_inf_nan=False)]


def _text_or_number(value: Any) -> str | float:
    """One error for both types, where a union of them would have two.

    Raises:
        ValueError: it is neither, a text that is too long, or no finite number.
    """
    try:
        if isinstance(value, str) and len(value) <= MAX_TEXT:
            value.encode()
            return value
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf:
            return float(value)
    except (UnicodeEncodeError, OverflowError):  # half a letter; an integer of hundreds of digits
        pass
    raise ValueError(f"must be a finite number, or a text of at most {MAX_TEXT} letters")


Value: TypeAlias = Annotated[
    str | float,
    PlainValidator(_text_or_number),
    WithJsonSchema({"anyOf": [{"type": "string", "maxLength": MAX_TEXT}, {"type": "number"}]}),
]
Place: TypeAlias = tuple[str | int, ...]
"""Where in a filter: keys and numbers, outermost first."""

_Kind = Literal["text", "list", "number"]


class FilterError(DataError):
    """A filter does not fit the table.

    Args:
        message: one line, with the columns there are.
        place: of the offending part within the filter.
    """

    def __init__(self, message: str, place: Place) -> None:
        super().__init__(message)
        self.place = place


class _OnColumn(StrictConfig):
    column: ColumnName
    """Of the catalogue."""


class Equality(_OnColumn):
    """The column's value is this one."""

    value: Value
    """A number is compared with the number that the column holds, so that 5 is "$5.00"; a text letter by letter."""


class Membership(_OnColumn):
    """The column's value is one of these; of a column of lists, any entry is."""

    values: Annotated[list[Value], Field(min_length=1, max_length=MAX_VALUES)]


class Range(_OnColumn):
    """The column holds a number in min..max, both included; a text like $1,299.99 is a number."""

    min: Number | None = None
    max: Number | None = None

    @model_validator(mode="after")
    def _has_an_end(self) -> Range:
        if self.min is None and self.max is None:
            raise ValueError("give min, max or both; to ask only for a value, use exists")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min must not be above max, got {self.min:g} and {self.max:g}")
        return self


class Existence(_OnColumn):
    """The column has a value: a text that is not blank, a list that is not empty."""


class Containment(_OnColumn):
    """An entry of the list in the column is this text."""

    value: Text


class Eq(StrictConfig):
    """See `Equality`."""

    eq: Equality


class In(StrictConfig):
    """See `Membership`."""

    in_: Membership = Field(alias="in")


class InRange(StrictConfig):
    """See `Range`."""

    range: Range


class Exists(StrictConfig):
    """See `Existence`."""

    exists: Existence


class Contains(StrictConfig):
    """See `Containment`."""

    contains: Containment


class Named(StrictConfig):
    """A filter that the service's settings hold under this name."""

    named: Annotated[str, Field(min_length=1, max_length=MAX_TEXT)]


class And(StrictConfig):
    """All of these hold."""

    and_: Annotated[list[Node], Field(min_length=1, max_length=MAX_CONDITIONS)] = Field(alias="and")


class Or(StrictConfig):
    """One of these holds."""

    or_: Annotated[list[Node], Field(min_length=1, max_length=MAX_CONDITIONS)] = Field(alias="or")


class Not(StrictConfig):
    """This does not hold."""

    not_: Node = Field(alias="not")


_KEYS = ("and", "or", "not", "eq", "in", "range", "exists", "contains", "named")


def _key(value: Any) -> str | None:
    """Which kind of filter a value is: the one key of a mapping, or the alias of a model's one field."""
    if isinstance(value, StrictConfig):
        return next(field.alias or name for name, field in type(value).model_fields.items())
    return next((key for key in _KEYS if key in value), None) if isinstance(value, Mapping) else None


Node: TypeAlias = Annotated[
    Annotated[And, Tag("and")]
    | Annotated[Or, Tag("or")]
    | Annotated[Not, Tag("not")]
    | Annotated[Eq, Tag("eq")]
    | Annotated[In, Tag("in")]
    | Annotated[InRange, Tag("range")]
    | Annotated[Exists, Tag("exists")]
    | Annotated[Contains, Tag("contains")]
    | Annotated[Named, Tag("named")],
    Discriminator(
        _key,
        custom_error_type="filter_kind",
        custom_error_message=f"a filter is an object with one of the keys {', '.join(_KEYS)}",
    ),
]
"""Any filter, within no limits of its own."""


def _within_limits(value: Any) -> Any:
    """Refuse what is too deep or too large, before anything is made of it.

    Raises:
        ValueError: it is.
    """
    count, waiting = 0, [(value, 1)]
    while waiting:
        node, depth = waiting.pop()
        if not isinstance(node, Mapping):
            continue
        count += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"a filter may be nested {MAX_DEPTH} deep; use in for many values")
        if count > MAX_CONDITIONS:
            raise ValueError(f"a filter may have {MAX_CONDITIONS} conditions; use in for many values")
        for key in ("and", "or"):
            if isinstance(node.get(key), Sequence):
                waiting += [(child, depth + 1) for child in node[key][: MAX_CONDITIONS + 1]]
        waiting.append((node.get("not"), depth + 1))
    return value


Filter: TypeAlias = Annotated[Node, BeforeValidator(_within_limits)]
"""What requests and settings hold."""

for _model in (And, Or, Not):
    _model.model_rebuild()


def resolved(node: Node, named: Mapping[str, Node], place: Place = ()) -> Node:
    """`node` with what its names stand for in their place.

    Args:
        node: any filter.
        named: by name, without further names.
        place: of `node` in the whole.

    Raises:
        FilterError: there is no filter of that name.
    """
    match node:
        case Named(named=name):
            if name not in named:
                known = ", ".join(sorted(named)) or "none"
                raise FilterError(f"no filter is named {name!r}; there are: {known}", (*place, "named"))
            return named[name]
        case And(and_=parts):
            return And(**{"and": [resolved(part, named, (*place, "and", at)) for at, part in enumerate(parts)]})
        case Or(or_=parts):
            return Or(**{"or": [resolved(part, named, (*place, "or", at)) for at, part in enumerate(parts)]})
        case Not(not_=part):
            return Not(**{"not": resolved(part, named, (*place, "not"))})
    return node


def num_conditions(node: Node) -> int:
    """Conditions and joints of a filter, together; a name is one, whatever it stands for."""
    match node:
        case And(and_=parts) | Or(or_=parts):
            return 1 + sum(num_conditions(part) for part in parts)
        case Not(not_=part):
            return 1 + num_conditions(part)
    return 1


def joined(parts: Sequence[Node]) -> Node:
    """The filter that all of `parts` make, of which there is one at least."""
    return parts[0] if len(parts) == 1 else And(**{"and": list(parts)})


class FilterTable:
    """A table of items that filters are compiled for. Texts are read as numbers once a column, when first asked for.

    Args:
        items: one row an item.
        whole: the table that these rows are part of, which says what columns hold; None: this is all of it.
    """

    def __init__(self, items: pl.DataFrame, whole: FilterTable | None = None) -> None:
        self.items = items
        self._whole = whole
        self._numbers: dict[str, pl.Series] = {}

    def with_rows(self, items: pl.DataFrame, rows: pl.DataFrame, at: IntArray) -> FilterTable:
        """The table after some rows were replaced and others appended, as by `recsys.data.catalog.with_rows`.

        Args:
            items: the table with these rows.
            rows: the new rows.
            at: int64, ascending, where they are.
        """
        twin = FilterTable(items)
        for column, numbers in list(self._numbers.items()):
            new = rows.select(number(column))
            twin._numbers[column] = with_rows(numbers.alias(new.columns[0]).to_frame(), new, at).to_series()
        return twin

    def numbers(self, column: str) -> pl.Series:
        """float64 [N]: what `rules.number` reads in a column of texts or numbers."""
        if column not in self._numbers:
            self._numbers[column] = self.items.select(number(column)).to_series()
        return self._numbers[column]

    def has_numbers(self, column: str) -> bool:
        """Whether any item has a number there; so it is said of an empty table."""
        if self._whole is not None:
            return self._whole.has_numbers(column)
        found = self.numbers(column)
        return len(found) == 0 or found.null_count() < len(found)


def compiled(node: Node, table: FilterTable, place: Place = ()) -> pl.Expr:
    """`node` as an expression over the table's items, true or false for each row; `rules.mask` evaluates it.

    Args:
        node: a filter without names.
        table: of the items.
        place: of `node` in the whole.

    Raises:
        FilterError: a column that is not there, or not of the kind that the condition needs.
    """
    match node:
        case And(and_=parts):
            return reduce(and_, (compiled(part, table, (*place, "and", at)) for at, part in enumerate(parts)))
        case Or(or_=parts):
            return reduce(or_, (compiled(part, table, (*place, "or", at)) for at, part in enumerate(parts)))
        case Not(not_=part):
            return ~compiled(part, table, (*place, "not"))
        case Eq(eq=asked):
            column = _Column(table, asked, (*place, "eq"))
            return column.is_any([asked.value], "value").fill_null(False)
        case In(in_=asked):
            column = _Column(table, asked, (*place, "in"))
            return column.has_any(asked.values, "values").fill_null(False)
        case InRange(range=asked):
            column = _Column(table, asked, (*place, "range"))
            return column.between(asked.min, asked.max).fill_null(False)
        case Exists(exists=asked):
            return _Column(table, asked, (*place, "exists")).has_value()
        case Contains(contains=asked):
            column = _Column(table, asked, (*place, "contains"))
            return column.holds(asked.value).fill_null(False)
        case Named(named=name):
            raise FilterError(f"the filter {name!r} stands for another one; resolve it first", (*place, "named"))


class _Column:
    """A column that a condition is about.

    Raises:
        FilterError: from every method, if the condition does not fit the column.
    """

    def __init__(self, table: FilterTable, asked: _OnColumn, place: Place) -> None:
        self._name = asked.column
        self._place = place
        self._table = table
        items = self._items = table.items
        dtype = items.schema.get(self._name)
        if dtype is None:
            raise self._error(f"there is no column {self._name!r}; there are: {', '.join(items.columns)}")
        self._kind: _Kind
        if dtype == pl.List(pl.String()):
            self._kind = "list"
        elif dtype == pl.String():
            self._kind = "text"
        elif dtype.is_numeric():
            self._kind = "number"
        else:
            raise self._error(f"the column {self._name!r} holds {dtype}, which no filter can ask about")

    def is_any(self, values: Sequence[str | float], key: str) -> pl.Expr:
        """The value is one of these."""
        if self._kind == "list":
            raise self._error(f"the column {self._name!r} holds lists; use contains, or in")
        texts = [value for value in values if isinstance(value, str)]
        if texts and self._kind == "number":
            raise self._error(f"the column {self._name!r} holds numbers; give a number", key)
        numbers = [value for value in values if not isinstance(value, str)]
        parts = []
        if numbers:
            parts.append(self._numbers().is_in(numbers))
        if texts:
            parts.append(pl.col(self._name).is_in(texts))
        return pl.any_horizontal([part.fill_null(False) for part in parts])

    def has_any(self, values: Sequence[str | float], key: str) -> pl.Expr:
        """The value, or an entry of the list, is one of these."""
        if self._kind != "list":
            return self.is_any(values, key)
        texts = [value for value in values if isinstance(value, str)]
        if len(texts) < len(values):
            raise self._error(f"the column {self._name!r} holds lists of texts; give texts", key)
        return in_any_category(*texts, column=self._name)

    def between(self, low: float | None, high: float | None) -> pl.Expr:
        """The number in the column lies in low..high."""
        return between(self._numbers(), low, high)

    def has_value(self) -> pl.Expr:
        """There is a value."""
        column = pl.col(self._name)
        if self._kind == "list":
            return (column.list.drop_nulls().list.len() > 0).fill_null(False)
        if self._kind == "text":
            return (column.str.strip_chars() != "").fill_null(False)
        return column.is_not_null()

    def holds(self, value: str) -> pl.Expr:
        """An entry of the list is this one."""
        if self._kind != "list":
            lists = [name for name, dtype in self._items.schema.items() if dtype == pl.List(pl.String())]
            raise self._error(f"the column {self._name!r} holds no lists; use eq or in, or one of: {', '.join(lists)}")
        return in_any_category(value, column=self._name)

    def _numbers(self) -> pl.Expr:
        """float64: the numbers of the column, null for none."""
        if self._kind == "list":
            raise self._error(f"the column {self._name!r} holds lists, no numbers; {self._with_numbers()}")
        if not self._table.has_numbers(self._name):
            raise self._error(f"the column {self._name!r} holds no numbers; {self._with_numbers()}")
        return pl.lit(self._table.numbers(self._name))

    def _with_numbers(self) -> str:
        flat = [name for name, dtype in self._items.schema.items() if dtype == pl.String() or dtype.is_numeric()]
        names = [name for name in flat if self._table.has_numbers(name)]
        return f"columns with numbers: {', '.join(names) or 'none'}"

    def _error(self, message: str, key: str = "column") -> FilterError:
        return FilterError(message, (*self._place, key))
