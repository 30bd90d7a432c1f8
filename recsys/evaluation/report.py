"""The evaluation report as data: `report.json`. Its names are a contract with the scripts that read it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from recsys.errors import ArtifactError
from recsys.evaluation.bootstrap import Interval
from recsys.files import write_json


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class EvaluationProtocol(_Part):
    """Everything that must be equal before two reports may be compared, and what reproduces this one."""

    split: str
    """`leave_last_out` or `global_time`."""
    subset: Literal["valid", "test"]
    """Which cases were ranked. Validation flatters: models were chosen on it."""
    fitted_on: Literal["train", "train+valid"] = "train"
    """What the models learned from. Refitting on validation lifts most numbers and must be said."""
    mask_seen: bool
    """Whether the items of a user's history are left out of the ranking."""
    tie_order: str
    """How interactions of the same time were ordered."""
    tie_share: float
    """Share of interactions that have a tie."""
    has_repeats: bool
    """Whether any user has an item twice."""
    ranking: str = "full catalogue"
    """What a target competes with; never a sample of negatives."""
    hit: str = "item"
    """What counts as a hit: the target item itself, not an item of the same code."""
    num_items: int
    """Size of the catalogue."""
    num_users: int
    """Users with a case."""
    num_cases: int
    """Ranked cases."""
    num_train_interactions: int
    """Interactions that models were fitted on."""
    ks: list[int]
    """Cut-offs."""
    n_bootstrap: int
    """Resamples of users."""
    confidence: float
    """Coverage of the intervals."""
    seeds: dict[str, int] = Field(default_factory=dict)
    """Seed by what it seeded."""
    notes: dict[str, str | int | float | bool] = Field(default_factory=dict)
    """Further facts of the run, such as the generator's beam width."""


class Segment(_Part):
    """Metrics on a group of cases."""

    cases: int
    """How many there are."""
    models: dict[str, dict[str, Interval]]
    """Metric by model."""


class TrainingCurve(_Part):
    """How one model's training went. `x` counts `x_label` (epochs, steps); a series has a value or None for each."""

    x_label: str
    x: list[float]
    series: dict[str, list[float | None]]


class EvaluationReport(_Part):
    """Content of `report.json`."""

    protocol: EvaluationProtocol
    models: dict[str, dict[str, Interval]]
    """`models.<name>.<metric>` = value, low, high."""
    segments: dict[str, dict[str, Segment]]
    """`segments.<dimension>.<label>`."""
    differences: dict[str, dict[str, Interval]]
    """`differences.<baseline>.<metric>`: generator minus baseline, on the same resamples of users. An interval without
    0 is a difference that these users support. Empty when there is no generator."""
    training_curves: dict[str, TrainingCurve] | None = None
    """By model."""
    code_usage: list[list[int]] | None = None
    """Semantic IDs: how many items use each code, one list a level."""

    def save(self, path: Path) -> None:
        """Write JSON, whole or not at all."""
        write_json(path, self.model_dump(mode="json", exclude_none=True))

    @classmethod
    def load(cls, path: Path) -> EvaluationReport:
        """Read what `save` wrote. Raises ArtifactError when it is missing or not a report."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise ArtifactError(f"cannot read the evaluation report {path}: {error}") from error
