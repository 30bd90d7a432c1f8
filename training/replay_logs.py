"""Logs as `recsys replay` takes them, and the propensities of a target in a table. Makes no estimates.

A log is a Parquet, CSV or JSON-lines table with a row for each item that was shown:

    request_id            text or whole number; of the list, or of the round with one item
    user_id               whose rounds are not independent of each other
    item_id               what was shown
    reward                a number, such as 1 for a click and 0 for none
    propensity            of the item under the policy that served, 0 < p <= 1; in a list: given the items above it
    position              whole number from 0 without gaps; only in logs of lists
    marginal_propensity   of the item at its place, whatever stands elsewhere; only in logs of lists
    context               text; only of rounds with one item: what else both policies knew, such as a segment
    target_propensity     the same as propensity, under the policy under test
    target_marginal_propensity   the same as marginal_propensity; only in logs of lists

A target in a table of its own has a row for each item and context: `item_id`, `propensity`, `context` where the log has
it, and `logged_propensity` where the whole policy that served is known. Each must sum to 1 in every context. With
`semantic_id` beside it, the codes of the item such as 17-3-201, there are estimates by prefixes of semantic IDs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from recsys.data.sequences import IntArray
from recsys.data.tables import NUM_EXAMPLES, as_ids, as_number, as_whole_number, raise_bad_rows, read_table
from recsys.errors import DataError
from recsys.simulator.off_policy import BadLogError, BanditLog, SlateLog, SlateTarget
from recsys.simulator.off_policy.log import FloatArray

MAX_CONTEXTS = 256
"""Contexts are told apart by the reward model one by one."""

_TOLERANCE = 1e-6
_SEMANTIC_ID = r"^\d{1,9}(-\d{1,9})*$"


@dataclass(frozen=True, kw_only=True, eq=False)
class LoggedRounds:
    """Rounds with one item."""

    log: BanditLog
    policy: FloatArray | None
    """float64 [C, K], the target where a table gives it whole."""
    propensities: FloatArray | None
    """float64 [n], the target's of the logged items where the log gives them."""
    codes: IntArray | None
    """int64 [K, levels], semantic IDs where a table gives them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LoggedLists:
    """Lists, and the target of the same table."""

    log: SlateLog
    target: SlateTarget


def read_log(path: Path, target: Path | None) -> LoggedRounds | LoggedLists:
    """Read a table of rounds or, if it has the column `position`, of lists.

    Args:
        path: the log.
        target: a table with the target's policy; None: the log has the target's propensities.

    Raises:
        DataError: a file cannot be read, a column is missing, or a row is no evidence; the message names rows.
    """
    frame = read_table(path)
    if "position" in frame.columns:
        if target is not None:
            raise DataError(f"{path}: a table cannot be the target of lists; add target_propensity to the log")
        return _lists(path.name, frame)
    return _rounds(path.name, frame, target)


def first_places(lists: LoggedLists, places: int) -> LoggedLists:
    """The same lists cut after some places, and only their rewards."""
    log, target = lists.log, lists.target
    return LoggedLists(
        log=SlateLog(
            items=log.items[:, :places],
            rewards=log.rewards[:, :places],
            conditional=log.conditional[:, :places],
            marginal=log.marginal[:, :places],
            users=log.users,
            request_ids=log.request_ids,
        ),
        target=SlateTarget(conditional=target.conditional[:, :places], marginal=target.marginal[:, :places]),
    )


def _rounds(name: str, frame: pl.DataFrame, target: Path | None) -> LoggedRounds:
    items, users = _ids(name, frame, "item_id"), _ids(name, frame, "user_id")
    requests = _ids(name, frame, "request_id")
    raise_bad_rows(name, requests, requests.is_duplicated(), "stands twice (lists need the column position)")
    rewards, served = _numbers(name, frame, "reward"), _propensities(name, frame, "propensity")
    contexts = _ids(name, frame, "context") if "context" in frame.columns else None
    propensities = policy = behaviour = codes = None
    if target is None:
        propensities = _propensities(name, frame, "target_propensity", least=0.0)
        known_items, known_contexts = items.unique(maintain_order=True), None
        if contexts is not None:
            known_contexts = contexts.unique(maintain_order=True)
    else:
        known_items, known_contexts, policy, behaviour, codes = _policy(target, contexts)
        unknown = ~items.is_in(known_items.implode())
        raise_bad_rows(name, items, unknown, f"is not in {target.name}")
        if contexts is not None and known_contexts is not None:
            raise_bad_rows(name, contexts, ~contexts.is_in(known_contexts.implode()), f"is not in {target.name}")
    num_contexts = 1 if known_contexts is None else len(known_contexts)
    if num_contexts > MAX_CONTEXTS:
        raise DataError(f"{name}: column 'context' has {num_contexts} values; at most {MAX_CONTEXTS} are possible")
    with _naming_requests(name, requests):
        log = BanditLog(
            actions=_index(items, known_items),
            rewards=rewards,
            propensities=served,
            num_actions=len(known_items),
            users=_index(users, users.unique(maintain_order=True)),
            contexts=None if contexts is None or known_contexts is None else _index(contexts, known_contexts),
            features=np.eye(num_contexts) if num_contexts > 1 else None,
            behaviour=behaviour,
        )
    return LoggedRounds(log=log, policy=policy, propensities=propensities, codes=codes)


def _policy(
    path: Path, contexts: pl.Series | None
) -> tuple[pl.Series, pl.Series | None, FloatArray, FloatArray | None, IntArray | None]:
    """Items, contexts, float64 [C, K] of the target and, where it is there, of the policy that served, and codes."""
    name, frame = path.name, read_table(path)
    if (contexts is not None) != ("context" in frame.columns):
        raise DataError(f"{name}: column 'context' must be in both the log and the target, or in neither")
    items = _ids(name, frame, "item_id")
    where = _ids(name, frame, "context") if contexts is not None else pl.Series("context", ["all"] * len(items))
    pairs = pl.DataFrame({"item": items, "context": where})
    raise_bad_rows(name, items, pairs.is_duplicated(), "stands twice in one context")
    known_items, known_contexts = items.unique(maintain_order=True), where.unique(maintain_order=True)
    place = (_index(where, known_contexts), _index(items, known_items))

    def policy(column: str) -> FloatArray:
        values = _propensities(name, frame, column, least=0.0)
        table = np.zeros((len(known_contexts), len(known_items)))
        table[place] = values
        sums = table.sum(axis=1)[place[0]]
        problem = f"must sum to 1 over the items of a context, and sums to {sums[np.abs(sums - 1).argmax()]:.6g}"
        raise_bad_rows(name, pl.Series(column, values), pl.Series(np.abs(sums - 1) > _TOLERANCE), problem)
        return table

    has_behaviour, has_codes = ("logged_propensity" in frame.columns), ("semantic_id" in frame.columns)
    if has_codes and not has_behaviour:
        raise DataError(
            f"{name}: column 'semantic_id' needs 'logged_propensity', the whole policy that served: prefixes have "
            "propensities under both"
        )
    return (
        known_items,
        known_contexts if contexts is not None else None,
        policy("propensity"),
        policy("logged_propensity") if has_behaviour else None,
        _codes(name, frame, place[1]) if has_codes else None,
    )


def _codes(name: str, frame: pl.DataFrame, items: IntArray) -> IntArray:
    """int64 [K, levels], of the items that each row of the table is of."""
    texts = _ids(name, frame, "semantic_id")
    raise_bad_rows(name, texts, ~texts.str.contains(_SEMANTIC_ID), "must be whole numbers with - between them")
    parts = texts.str.split("-")
    levels = parts.list.len()
    raise_bad_rows(name, texts, levels != levels[0], f"must have {levels[0]} codes like the first row")
    owners = pl.DataFrame({"item": items, "code": texts}).select(pl.col("code").n_unique().over("item") > 1)
    raise_bad_rows(name, texts, owners.to_series(), "is not the same in all contexts of the item")
    codes = np.empty((int(items.max()) + 1, levels[0]), dtype=np.int64)
    codes[items] = np.array(parts.list.eval(pl.element().cast(pl.Int64)).to_list())
    return codes


def _lists(name: str, frame: pl.DataFrame) -> LoggedLists:
    requests, items = _ids(name, frame, "request_id"), _ids(name, frame, "item_id")
    users = _ids(name, frame, "user_id")
    places = as_whole_number(frame["position"], name)
    raise_bad_rows(name, places, places < 0, "is below 0")
    pairs = pl.DataFrame({"request": requests, "place": places})
    raise_bad_rows(name, requests, pairs.is_duplicated(), "has two items at one position (a request logged twice?)")
    sizes = pairs.select((pl.col("place").max().over("request") + 1) != pl.len().over("request")).to_series()
    raise_bad_rows(name, requests, sizes, "has a gap between its positions")
    owners = pl.DataFrame({"request": requests, "user": users}).select(pl.col("user").n_unique().over("request") > 1)
    raise_bad_rows(name, requests, owners.to_series(), "is of several users")
    known = requests.unique(maintain_order=True)
    row, place = _index(requests, known), places.to_numpy()
    shape = (len(known), int(place.max()) + 1)

    def table(values: np.ndarray, empty: float) -> FloatArray:
        filled = np.full(shape, empty)
        filled[row, place] = values
        return filled

    first = np.empty(len(known), dtype=np.int64)
    first[row] = _index(users, users.unique(maintain_order=True))
    with _naming_requests(name, known):
        log = SlateLog(
            items=table(_index(items, items.unique(maintain_order=True)), -1).astype(np.int64),
            rewards=table(_numbers(name, frame, "reward"), 0.0),
            conditional=table(_propensities(name, frame, "propensity"), 1.0),
            marginal=table(_propensities(name, frame, "marginal_propensity"), 1.0),
            users=first,
            request_ids=known.to_numpy(),
        )
    target = SlateTarget(
        conditional=table(_propensities(name, frame, "target_propensity", least=0.0), 1.0),
        marginal=table(_propensities(name, frame, "target_marginal_propensity", least=0.0), 1.0),
    )
    return LoggedLists(log=log, target=target)


@contextmanager
def _naming_requests(name: str, requests: pl.Series) -> Iterator[None]:
    """Rows of a log have no numbers in a table: refusals name requests too."""
    try:
        yield
    except BadLogError as error:
        named = ", ".join(repr(requests[row]) for row in error.rows[:NUM_EXAMPLES])
        raise DataError(f"{name}: {error}: request_id {named}") from error


def _ids(name: str, frame: pl.DataFrame, column: str) -> pl.Series:
    return as_ids(_column(name, frame, column), name)


def _numbers(name: str, frame: pl.DataFrame, column: str) -> FloatArray:
    values = as_number(_column(name, frame, column), name)
    raise_bad_rows(name, frame[column], values.is_null() | ~values.is_finite(), "has no finite value")
    return values.to_numpy()


def _propensities(name: str, frame: pl.DataFrame, column: str, least: float | None = None) -> FloatArray:
    """Probabilities above 0, or of at least `least`."""
    values = as_number(_column(name, frame, column), name)
    raise_bad_rows(name, frame[column], values.is_null(), "has no value: without propensities nothing can be estimated")
    is_low = values <= 0 if least is None else values < least
    problem = "must be above 0 and at most 1" if least is None else "must be 0 to 1"
    raise_bad_rows(name, frame[column], is_low | (values > 1 + _TOLERANCE), problem)
    return values.to_numpy()


def _column(name: str, frame: pl.DataFrame, column: str) -> pl.Series:
    if column not in frame.columns:
        hint = "; or name the target with --target" if column == "target_propensity" else ""
        raise DataError(f"{name}: no column {column!r}; there are {', '.join(frame.columns)}{hint}")
    return frame[column]


def _index(values: pl.Series, known: pl.Series) -> np.ndarray:
    """int64, the place of each value among the known ones."""
    places = pl.DataFrame({"value": known}).with_row_index("place")
    joined = values.to_frame("value").join(places, on="value", how="left", maintain_order="left")
    return joined["place"].cast(pl.Int64).to_numpy()
