"""What came of the experiments that run: lists, outcomes and differences of each, from the offline store. No HTTP.

A list counts in the variant that it was made in, and has an outcome when the user took an item of it by an event that
names it. Lists that testers forced do not count, nor do those of visitors without a history, which are not logged.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import polars as pl
import structlog
from pydantic import BaseModel, ConfigDict

from feature_store import StoreConfigError
from feature_store.offline import OfflineStore
from recsys.evaluation.ratios import UserRatio, ratio_difference
from recsys.simulator.experiment.assignment import NUM_BUCKETS
from recsys.simulator.experiment.sample_ratio import MISMATCH, sample_ratio_p_value
from serving.experiments import Experiment, ExperimentPlan, Layer

CONFIDENCE = 0.95
_MOST_TYPES = 10
"""Types of events that are counted by themselves, the most frequent ones."""
_LEAST_AGE_S = 10.0
"""Numbers are not counted anew sooner."""

_log = structlog.get_logger(__name__)


class _Out(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)


class VariantOut(_Out):
    """One way to serve."""

    variant: str
    settings: dict[str, Any]
    share: float
    """Of all users outside the holdout."""
    users: int
    """Who were shown a list."""
    lists: int


class RateOut(_Out):
    """Lists with an outcome by all lists."""

    variant: str
    lists: int
    """With the outcome."""
    rate: float | None
    """Null without lists."""
    difference: float | None
    """To the control; null for the control itself, and where either has no users."""
    low: float | None
    """The 95 % interval of the difference, over users; null where there are too few to tell."""
    high: float | None


class OutcomeOut(_Out):
    """One kind of outcome."""

    event_type: str | None
    """Null for any event."""
    rates: list[RateOut]


class ExperimentOut(_Out):
    """An experiment with what came of it. The first variant is the control."""

    experiment: str
    layer: str
    variants: list[VariantOut]
    outcomes: list[OutcomeOut]
    """Any event first, then each type, the most frequent first."""
    sample_ratio_p_value: float | None
    """How likely users in the variants at least this far from their shares are by chance; null where that says
    nothing."""
    sample_ratio_mismatch: bool
    """The users do not fit the shares (p < .001): something is wrong with the assignment or the log, and the
    differences say nothing."""
    note: str | None
    """What keeps the numbers from saying anything."""


class ExperimentsOut(_Out):
    """All experiments that run."""

    experiments: list[ExperimentOut]
    holdout: float
    """Share of users who are in none of them."""
    note: str | None
    """Why there are no numbers at all; null where there are."""


class ExperimentResults:
    """Counts what came of a plan. May be called from several threads; numbers are at most seconds old.

    Args:
        plan: the experiments that run.
        offline: where lists and events are; None: nobody says where.
        clock: seconds that never go back.
    """

    def __init__(
        self, plan: ExperimentPlan, offline: OfflineStore | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._plan = plan
        self._offline = offline
        self._clock = clock
        self._mutex = threading.Lock()
        self._counted_at = -_LEAST_AGE_S
        self._version: tuple[str, int] | None = None
        self._exposures: pl.DataFrame | None = None

    def read(self) -> ExperimentsOut:
        """The numbers. Reads all lists and events of the offline store where that has changed: not on an event loop."""
        exposures = self._current() if self._plan.layers else None
        note = None
        if self._plan.layers and exposures is None:
            note = (
                "There is no offline store to count in, or it cannot be read (the log says why): let the service write "
                "it (offline.enabled), or start `recsys events consume`, and name its directory (offline.directory)."
            )
        return ExperimentsOut(
            experiments=[
                _experiment(name, experiment, layer, _of_experiment(exposures, name))
                for layer in self._plan.layers
                for name, experiment in layer.experiments.items()
            ],
            holdout=self._plan.holdout / NUM_BUCKETS,
            note=note,
        )

    def _current(self) -> pl.DataFrame | None:
        """The exposures; None where there is no offline store, or none that can be read."""
        if self._offline is None:
            return None
        with self._mutex:
            if self._clock() - self._counted_at < _LEAST_AGE_S:
                return self._exposures
            try:
                manifest = self._offline.manifest()
                if (manifest.store_id, manifest.version) != self._version:
                    self._exposures = self._offline.exposures()
                    self._version = (manifest.store_id, manifest.version)
            except (StoreConfigError, OSError, pl.exceptions.PolarsError) as error:
                _log.warning("experiments cannot be counted", error=" ".join(str(error).split()))
                self._exposures = self._version = None
            self._counted_at = self._clock()
            return self._exposures


def _of_experiment(exposures: pl.DataFrame | None, name: str) -> pl.DataFrame:
    """Columns variant, user_id and outcomes, one row a list."""
    if exposures is None:
        return pl.DataFrame(schema={"variant": pl.String, "user_id": pl.String, "outcomes": pl.List(pl.String)})
    return exposures.filter(pl.col("experiment") == name)


def _experiment(name: str, experiment: Experiment, layer: Layer, lists: pl.DataFrame) -> ExperimentOut:
    variants = list(experiment.variants)
    of_variant = {variant: lists.filter(pl.col("variant") == variant) for variant in variants}
    users = {variant: rows["user_id"].n_unique() for variant, rows in of_variant.items()}
    p_value, note = _sample_ratio(name, users, layer.splits)
    counts = lists["outcomes"].explode(empty_as_null=False).value_counts()
    types = counts.sort(["count", "outcomes"], descending=[True, False])["outcomes"].to_list()[:_MOST_TYPES]
    is_mismatch = p_value is not None and p_value < MISMATCH
    if lists.is_empty():
        note = "Nobody has been shown a list in it yet."
    elif not types:
        note = "No event names one of its lists yet: send recommendation_id with the events that a list leads to."
    return ExperimentOut(
        experiment=name,
        layer=layer.name,
        variants=[
            VariantOut(
                variant=variant,
                settings=dict(experiment.variants[variant]),
                share=layer.splits[-1].get(f"{name}/{variant}", 0) / NUM_BUCKETS,
                users=users[variant],
                lists=of_variant[variant].height,
            )
            for variant in variants
        ],
        outcomes=[_outcome(kind, of_variant) for kind in (None, *types)],
        sample_ratio_p_value=p_value,
        sample_ratio_mismatch=is_mismatch,
        note=note,
    )


def _outcome(event_type: str | None, of_variant: Mapping[str, pl.DataFrame]) -> OutcomeOut:
    has_it = pl.col("outcomes").list.len() > 0 if event_type is None else pl.col("outcomes").list.contains(event_type)
    by_user = {
        variant: rows.group_by("user_id").agg(taken=has_it.sum(), lists=pl.len())
        for variant, rows in of_variant.items()
    }
    ratios = {
        variant: UserRatio.of(rows["taken"].to_numpy(), rows["lists"].to_numpy()) if rows.height else None
        for variant, rows in by_user.items()
    }
    control, *_ = ratios
    return OutcomeOut(
        event_type=event_type,
        rates=[
            RateOut(
                variant=variant,
                lists=int(by_user[variant]["taken"].sum()),
                rate=None if ratio is None else ratio.value,
                **_difference(ratio, None if variant == control else ratios[control]),
            )
            for variant, ratio in ratios.items()
        ],
    )


def _difference(ratio: UserRatio | None, control: UserRatio | None) -> dict[str, float | None]:
    if ratio is None or control is None:
        return {"difference": None, "low": None, "high": None}
    interval = ratio_difference(ratio, control, CONFIDENCE)
    return {
        "difference": ratio.value - control.value,
        "low": None if interval is None else interval.low,
        "high": None if interval is None else interval.high,
    }


def _sample_ratio(
    name: str, users: Mapping[str, int], splits: Sequence[Mapping[str, int]]
) -> tuple[float | None, str | None]:
    """The p-value, and why it says nothing."""
    now = {variant: splits[-1].get(f"{name}/{variant}", 0) for variant in users}
    for split in splits:
        before = {variant: split.get(f"{name}/{variant}", 0) for variant in users}
        if any(before[one] * now[two] != before[two] * now[one] for one in users for two in users):
            return None, "The shares have changed since it began, so that the users cannot be compared with them."
    with_share = {variant: share for variant, share in now.items() if share}
    if len(with_share) < 2 or not sum(users[variant] for variant in with_share):
        return None, None
    return sample_ratio_p_value({variant: users[variant] for variant in with_share}, with_share), None
