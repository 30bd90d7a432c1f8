"""Which arm of which experiment a user is in: the same one each time, with nothing stored. Knows no HTTP, no model.

A user has one of 10 000 buckets in each layer, by a hash of the layer's salt and the user's id; a layer's buckets are
split among its arms, and those of another layer fall independently. What arms do is the settings that they carry.
Tang et al., "Overlapping experiment infrastructure", KDD 2010.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from feature_store.slates import Exposure
from recsys.config import StrictConfig
from recsys.errors import ConfigError
from recsys.simulator.experiment.assignment import NOBODY, NUM_BUCKETS, bucket_of, split_buckets

OVERRIDE_HEADER = "X-Recsys-Variant"
"""For testers: `experiment=variant`, several with commas between them."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]


class Experiment(StrictConfig):
    """Ways to serve that are compared with each other."""

    variants: Mapping[Name, Mapping[str, Any]] = Field(min_length=1)
    """The settings of each; the first is the control."""


class Layer(StrictConfig):
    """Experiments of which a user is in one at most."""

    name: Name
    salt: str = Field(default="", max_length=64)
    """Another one shuffles all users anew; the layer's name where it is empty."""
    experiments: Mapping[Name, Experiment]
    splits: tuple[Mapping[str, Annotated[int, Field(ge=0, le=NUM_BUCKETS)]], ...] = Field(min_length=1)
    """Buckets of each arm, `experiment/variant`, out of 10 000. To change them append a split: the series is what
    keeps everybody who need not move where they are."""

    @model_validator(mode="after")
    def _splits_are_possible(self) -> Layer:
        arms = {f"{name}/{variant}" for name, experiment in self.experiments.items() for variant in experiment.variants}
        for split in self.splits:
            if unknown := sorted(split.keys() - arms):
                raise ValueError(f"splits of {self.name}: there is no arm {unknown[0]}; known are {sorted(arms)}")
            if sum(split.values()) > NUM_BUCKETS:
                raise ValueError(f"splits of {self.name}: {sum(split.values())} buckets are more than {NUM_BUCKETS}")
        return self


class ExperimentPlan(StrictConfig):
    """All experiments that run."""

    holdout: int = Field(default=0, ge=0, le=NUM_BUCKETS)
    """Buckets, out of 10 000, whose users are in no experiment at all: what all experiments together do shows in the
    difference to them."""
    holdout_salt: str = "holdout"
    layers: tuple[Layer, ...] = ()

    @model_validator(mode="after")
    def _names_are_unique(self) -> ExperimentPlan:
        salts = [layer.salt or layer.name for layer in self.layers] + [self.holdout_salt]
        experiments = [name for layer in self.layers for name in layer.experiments]
        for kind, names in (("salts", salts), ("experiments", experiments)):
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"{kind} must differ, or their users would not: {twice[0]} stands twice")
        return self


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """Where a user is."""

    exposures: tuple[Exposure, ...]
    """One for each layer in which the user is in an experiment; log them with what was shown."""
    settings: Mapping[str, Any]
    """What the arms ask for, together; a setting of a later layer wins."""
    is_holdout: bool


class Experiments:
    """Assigns users to arms.

    Args:
        plan: the experiments.
    """

    def __init__(self, plan: ExperimentPlan) -> None:
        self._plan = plan
        self._layers = [(layer, *split_buckets(layer.splits)) for layer in plan.layers]

    @property
    def variants(self) -> dict[str, list[str]]:
        """The variants of each experiment; the control first."""
        return {
            name: list(experiment.variants)
            for layer in self._plan.layers
            for name, experiment in layer.experiments.items()
        }

    def assign(self, unit: str, forced: Mapping[str, str] | None = None) -> Assignment:
        """The arms of a unit.

        Args:
            unit: a user id, or what else stays the same between visits.
            forced: the variant of experiments by name, which a tester wants to see; see `parse_override`.

        Raises:
            ConfigError: a forced experiment or variant does not exist.
        """
        forced = forced or {}
        for experiment, variant in forced.items():
            if variant not in self.variants.get(experiment, []):
                raise ConfigError(f"{OVERRIDE_HEADER}: there is no {experiment}={variant}; known are {self.variants}")
        is_holdout = bucket_of(self._plan.holdout_salt, unit) < self._plan.holdout
        exposures: list[Exposure] = []
        settings: dict[str, Any] = {}
        for layer, arms, owner in self._layers:
            bucket = bucket_of(layer.salt or layer.name, unit)
            asked = [name for name in layer.experiments if name in forced]
            if asked:
                experiment, variant = asked[0], forced[asked[0]]
            elif is_holdout or owner[bucket] == NOBODY:
                continue
            else:
                experiment, variant = arms[owner[bucket]].split("/")
            exposures.append(Exposure(experiment=experiment, variant=variant, bucket=bucket, forced=bool(asked)))
            settings |= layer.experiments[experiment].variants[variant]
        return Assignment(exposures=tuple(exposures), settings=settings, is_holdout=is_holdout)


def load_plan(values: Mapping[str, Any]) -> ExperimentPlan:
    """The plan of a mapping, such as that of a YAML file.

    Raises:
        ConfigError: it is not possible; the message names the first field.
    """
    try:
        return ExperimentPlan.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "experiments"
        raise ConfigError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from error


def parse_override(header: str) -> dict[str, str]:
    """The experiments and variants of the header, by name.

    Raises:
        ConfigError: it is of another form.
    """
    found: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in header.split(","))):
        experiment, equals, variant = (piece.strip() for piece in part.partition("="))
        if not (experiment and equals and variant):
            raise ConfigError(f"{OVERRIDE_HEADER}: expected experiment=variant, got {part[:80]!r}")
        found[experiment] = variant
    return found
