"""What the arm of an experiment changes in a request for a list. Knows no HTTP and no model."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import structlog
from pydantic import Field

from feature_store.slates import Exposure
from recsys.config import StrictConfig
from recsys.errors import ConfigError
from recsys.generator.filters import Named, joined
from serving.answers import Mode
from serving.experiments import ExperimentPlan, Experiments
from serving.schemas.requests import RecommendRequest
from serving.schemas.rules import MAX_K, Diversity, MaxPer

_log = structlog.get_logger(__name__)


class ArmSettings(StrictConfig):
    """What an arm asks for. What a request itself says wins: an arm changes the defaults."""

    mode: Mode | None = None
    max_per_category: int | None = Field(default=None, ge=1, le=MAX_K)
    max_per: MaxPer | None = None
    """By column of the catalogue."""
    diversity: Diversity | None = None
    filter: str | None = Field(default=None, min_length=1)
    """Name of one of the settings' filters. It holds together with the request's own."""
    epsilon: float | None = Field(default=None, ge=0, le=1)
    """Share of lists that are drawn at random, see `recsys.simulator.exploration`."""
    model_version: str | None = Field(default=None, min_length=1)
    """Of a model in memory, which answers instead of the active one."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """Where a request is, and what follows."""

    settings: ArmSettings = field(default_factory=ArmSettings)
    exposures: tuple[Exposure, ...] = ()

    @property
    def variants(self) -> dict[str, str]:
        """The variant of each experiment that the request is in."""
        return {exposure.experiment: exposure.variant for exposure in self.exposures}

    def applied_to(self, request: RecommendRequest, *, can_reason: bool, columns: Collection[str]) -> RecommendRequest:
        """The request as the arm wants it.

        Args:
            request: what is asked.
            can_reason: whether the model has mode `reason`; else the arm's mode is left out.
            columns: of the model's catalogue; caps on others are left out. It may be another model than the arm's.
        """
        wanted: dict[str, Any] = {
            name: getattr(self.settings, name) for name in ("mode", "max_per_category", "max_per", "diversity")
        }
        if wanted["mode"] == "reason" and not can_reason:
            _log.warning("the model of this arm gives no reasons, answering directly", variants=self.variants)
            del wanted["mode"]
        if missing := sorted((wanted["max_per"] or {}).keys() - set(columns)):
            _log.warning("the catalogue lacks a column of this arm", column=missing[0], variants=self.variants)
            wanted["max_per"] = {name: most for name, most in wanted["max_per"].items() if name in columns}
        changes = {
            name: value for name, value in wanted.items() if value is not None and name not in request.model_fields_set
        }
        if self.settings.filter is not None:
            own = [] if request.filter is None else [request.filter]
            changes["filter"] = joined([*own, Named(named=self.settings.filter)])
        return request.model_copy(update=changes) if changes else request


class Arms:
    """The experiments of a service.

    Args:
        plan: of which the settings of every variant are `ArmSettings`.
    """

    def __init__(self, plan: ExperimentPlan) -> None:
        self._plan = plan
        self._experiments = Experiments(plan)

    def check_mode(self, no_reasons: str | None) -> None:
        """Refuse a plan that the first model cannot follow. A later one without reasons answers directly.

        Args:
            no_reasons: why the model has no mode `reason`; None if it has.

        Raises:
            ConfigError: a variant asks for that mode all the same.
        """
        for place, settings in self._variants():
            if no_reasons and settings.mode == "reason" and settings.model_version is None:
                raise ConfigError(f"experiments: {place} asks for mode reason, but {no_reasons}")

    def check_columns(self, model_version: str, columns: Collection[str]) -> None:
        """Refuse a model whose catalogue lacks what the plan asks of it.

        Args:
            model_version: of the model.
            columns: of its catalogue.

        Raises:
            ConfigError: a variant that it may answer caps a column that is not there.
        """
        for place, settings in self._variants():
            missing = sorted((settings.max_per or {}).keys() - set(columns))
            if missing and settings.model_version in (None, model_version):
                raise ConfigError(
                    f"experiments: {place} has max_per of {missing[0]!r}, but there are the columns "
                    f"{', '.join(columns)}"
                )

    def _variants(self) -> Iterator[tuple[str, ArmSettings]]:
        for layer in self._plan.layers:
            for name, experiment in layer.experiments.items():
                for variant, settings in experiment.variants.items():
                    yield f"{name}/{variant}", ArmSettings.model_validate(settings)

    def of(self, unit: str | None, forced: Mapping[str, str]) -> Arm:
        """Where a request is.

        Args:
            unit: the user; None for a request that is in no experiment. One of somebody unknown is in none: the next
                might be elsewhere.
            forced: what a tester wants to see, experiment -> variant.

        Raises:
            ConfigError: what is forced does not exist, or there is no user.
        """
        if unit is None:
            if forced:
                raise ConfigError(
                    "only a request with user_id and without model_version is in an experiment; force a variant there"
                )
            return Arm()
        assignment = self._experiments.assign(unit, forced)
        return Arm(settings=ArmSettings.model_validate(assignment.settings), exposures=assignment.exposures)
