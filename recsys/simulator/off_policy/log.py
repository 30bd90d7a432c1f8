"""What off-policy estimates read: rounds that a policy served, and how likely what it chose was. Refuses bad logs.

Shapes: n rounds, K actions, C contexts, d features of a context, L places of a slate. A *context* is all that a policy
sees of a round; rounds that look alike share one, so that a policy is a table [C, K] and not [n, K].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from recsys.data.sequences import IntArray
from recsys.simulator.off_policy.errors import BadLogError, refuse_rows

FloatArray = npt.NDArray[np.float64]

_TOLERANCE = 1e-6
"""By which probabilities may miss their sum: they went through decimal files."""


@dataclass(frozen=True, kw_only=True, eq=False)
class BanditLog:
    """n rounds in each of which one action was taken.

    Raises:
        BadLogError: it is empty, the lengths differ, a value is out of its range, a round has no user, a request
            stands twice, or the propensities contradict `behaviour`. The message names the rows.
    """

    actions: IntArray
    """int64 [n], 0 .. num_actions - 1."""
    rewards: FloatArray
    """float64 [n], finite."""
    propensities: FloatArray
    """float64 [n]: probability of the action under the policy that took it, 0 < p <= 1."""
    num_actions: int
    """K."""
    users: IntArray | None = None
    """int64 [n], 0 or more: rounds of one user are not independent. None: every round is somebody else's."""
    contexts: IntArray | None = None
    """int64 [n], 0 .. C - 1. None: all rounds have the one context 0."""
    features: FloatArray | None = None
    """float64 [C, d], which the reward model reads. None: it tells contexts apart by nothing."""
    behaviour: FloatArray | None = None
    """float64 [C, K]: the whole policy that served, where it is known; marginalised weights need it."""
    request_ids: npt.NDArray[Any] | None = None
    """[n], each once."""

    def __post_init__(self) -> None:
        num_rounds = len(self.actions)
        _check_lengths(num_rounds, self.rewards, self.propensities, self.users, self.contexts, self.request_ids)
        _check_rounds(self.rewards, self.users, self.request_ids)
        refuse_rows(
            (self.actions < 0) | (self.actions >= self.num_actions), f"actions must lie in 0..{self.num_actions - 1}"
        )
        _check_propensities("propensities", self.propensities, least="above 0")
        if self.contexts is not None:
            num_contexts = 1 + int(self.contexts.max())
            refuse_rows(self.contexts < 0, "contexts must be 0 or more")
            for name in ("features", "behaviour"):
                table = getattr(self, name)
                if table is not None and len(table) < num_contexts:
                    raise BadLogError(f"{name} must have a row for each of {num_contexts} contexts, got {len(table)}")
        if self.features is not None:
            refuse_rows(~np.isfinite(self.features), "features must be finite numbers")
        if self.behaviour is not None:
            check_policy("behaviour", self.behaviour, self)
            refuse_rows(
                ~np.isclose(self.behaviour[self.context_of, self.actions], self.propensities, rtol=1e-4, atol=1e-9),
                "propensities contradict the policy that served (behaviour); log what was drawn from",
            )

    @property
    def context_of(self) -> IntArray:
        """int64 [n]."""
        return np.zeros(len(self.actions), dtype=np.int64) if self.contexts is None else self.contexts

    @property
    def num_contexts(self) -> int:
        """C."""
        if self.features is not None:
            return len(self.features)
        return 1 if self.contexts is None else 1 + int(self.contexts.max())

    @property
    def user_of(self) -> IntArray:
        """int64 [n]."""
        return np.arange(len(self.actions)) if self.users is None else self.users

    def __len__(self) -> int:
        return len(self.actions)


def check_policy(name: str, policy: FloatArray, log: BanditLog) -> None:
    """Refuse a table of probabilities that is no policy for the contexts and actions of a log.

    Args:
        name: for the message.
        policy: float64 [C, K].
        log: the log.

    Raises:
        BadLogError: a shape or a value is impossible, or a row does not sum to 1; rows are contexts.
    """
    if policy.ndim != 2 or policy.shape[1] != log.num_actions or len(policy) < log.num_contexts:
        raise BadLogError(
            f"{name} must have a row for each of {log.num_contexts} contexts and a column for each of "
            f"{log.num_actions} actions, got shape {policy.shape}"
        )
    refuse_rows(~(policy >= 0), f"{name} must hold probabilities of 0 or more for each action")
    sums = policy.sum(axis=1)
    refuse_rows(
        ~(np.abs(sums - 1) <= _TOLERANCE), f"{name}: the probabilities of all actions must sum to 1 in each context"
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class SlateLog:
    """n lists of up to L places that were shown.

    Raises:
        BadLogError: as for `BanditLog`; or a marginal is below the probability of the places up to it, which it sums.
    """

    items: IntArray
    """int64 [n, L]; -1 = the list is shorter."""
    rewards: FloatArray
    """float64 [n, L], finite; 0 beside -1."""
    conditional: FloatArray
    """float64 [n, L]: probability of the item at its place given those before it, 0 < p <= 1; 1 beside -1."""
    marginal: FloatArray
    """float64 [n, L]: probability of the item at its place, whatever stands elsewhere, 0 < p <= 1; 1 beside -1."""
    users: IntArray | None = None
    """int64 [n]. None: every list is somebody else's."""
    request_ids: npt.NDArray[Any] | None = None
    """[n], each once."""

    def __post_init__(self) -> None:
        _check_lengths(len(self.items), self.rewards, self.conditional, self.marginal, self.users, self.request_ids)
        shapes = {self.items.shape, self.rewards.shape, self.conditional.shape, self.marginal.shape}
        if len(shapes) > 1 or self.items.ndim != 2 or not self.items.shape[1]:
            raise BadLogError(
                f"items, rewards, conditional and marginal must have one shape [lists, places], got {shapes}"
            )
        _check_rounds(self.rewards, self.users, self.request_ids)
        refuse_rows((self.items < 0) & (self.rewards != 0), "rewards must be 0 where no item stands")
        refuse_rows(self.items[:, :1] < 0, "a list must have an item at its first place")
        refuse_rows((self.items[:, :-1] < 0) & (self.items[:, 1:] >= 0), "a list must have no gaps")
        for name in ("conditional", "marginal"):
            _check_propensities(name, getattr(self, name), least="above 0")
            refuse_rows((self.items < 0) & (getattr(self, name) != 1), f"{name} must be 1 where no item stands")
        least = np.cumprod(self.conditional, axis=1) * np.where(self.items < 0, 0, 1 - _TOLERANCE)
        refuse_rows(
            self.marginal < least,
            "marginal propensities must be at least the product of the conditional ones up to their place, which they "
            "contain",
        )

    @property
    def user_of(self) -> IntArray:
        """int64 [n]."""
        return np.arange(len(self.items)) if self.users is None else self.users

    def __len__(self) -> int:
        return len(self.items)


@dataclass(frozen=True, kw_only=True, eq=False)
class SlateTarget:
    """How likely a policy under test is to show the lists of a log.

    Raises:
        BadLogError: a value is no probability.
    """

    conditional: FloatArray
    """float64 [n, L], as in the log; may be 0; whatever stands beside -1 does not count."""
    marginal: FloatArray
    """float64 [n, L]."""

    def __post_init__(self) -> None:
        for name in ("conditional", "marginal"):
            _check_propensities(f"target {name}", getattr(self, name), least="at least 0")


def _check_lengths(num_rounds: int, *columns: npt.NDArray[Any] | None) -> None:
    if not num_rounds:
        raise BadLogError("the log is empty: there is nothing to estimate from")
    lengths = {len(column) for column in columns if column is not None}
    if lengths - {num_rounds}:
        raise BadLogError(f"all columns must have {num_rounds} rows, got {', '.join(map(str, sorted(lengths)))}")


def _check_rounds(rewards: FloatArray, users: IntArray | None, request_ids: npt.NDArray[Any] | None) -> None:
    refuse_rows(~np.isfinite(rewards), "rewards must be finite numbers")
    if users is not None:
        refuse_rows(users < 0, "users must be 0 or more: rounds of nobody are not those of one user")
    if request_ids is not None:
        _, index, counts = np.unique(request_ids, return_inverse=True, return_counts=True)
        refuse_rows(counts[index] > 1, "request ids must be different: a request that counts twice is no evidence")


def _check_propensities(name: str, values: FloatArray, *, least: str) -> None:
    is_low = values <= 0 if least == "above 0" else values < 0
    refuse_rows(
        np.isnan(values) | is_low | (values > 1 + _TOLERANCE),
        f"{name} must be {least} and at most 1 in each row: without them no estimate of another policy is possible",
    )
