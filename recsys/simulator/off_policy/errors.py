"""What is wrong with a log, and in which rows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from recsys.errors import DataError

_NAMED = 5


class BadLogError(DataError):
    """A log, or the propensities of a policy for it, cannot be used.

    Args:
        problem: what is wrong, and the fix.
        rows: those that have the problem, counted from 0; the message names the first ones.
    """

    def __init__(self, problem: str, rows: npt.ArrayLike = ()) -> None:
        self.rows = np.asarray(rows, dtype=np.int64).tolist()
        named = ", ".join(map(str, self.rows[:_NAMED]))
        more = f" and {len(self.rows) - _NAMED} more" if len(self.rows) > _NAMED else ""
        where = f" (row{'s' if len(self.rows) > 1 else ''} {named}{more}, counted from 0)" if self.rows else ""
        super().__init__(problem + where)


def refuse_rows(is_bad: npt.NDArray[np.bool_], problem: str) -> None:
    """Refuse the rows of a mask, bool [n] or [n, any], if there are any.

    Raises:
        BadLogError: a row is bad.
    """
    rows = np.flatnonzero(is_bad.reshape(len(is_bad), -1).any(axis=1)) if is_bad.size else np.zeros(0, dtype=np.int64)
    if len(rows):
        raise BadLogError(problem, rows)
