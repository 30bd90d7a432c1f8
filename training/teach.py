"""Settings of teaching a language model: which tasks, how they are weighed and packed."""

from __future__ import annotations

from pydantic import Field, model_validator

from recsys.config import StrictConfig
from recsys.generator.lm.config import TaskMixConfig
from recsys.generator.lm.preference import PreferenceConfig


class TeachConfig(StrictConfig):
    """What a language model is taught with; used where `generator.model.lm` is set. Its schedule is `fit`, where
    `batch_positions` counts rows: tokens of text and rows of items."""

    tasks: TaskMixConfig = TaskMixConfig()
    """The mix of tasks and their wording."""
    line_rows: int = Field(default=512, ge=16)
    """Rows of a packed line; longer sequences are cut."""
    text_weight: float = Field(default=1.0, ge=0)
    """Weight of a token of text beside a code of an item."""
    steps_per_epoch: int | None = Field(default=None, ge=1)
    """At most so many steps an epoch, for a small budget; an epoch's examples come in a new order each time."""
    language_rate: float = Field(default=0.1, gt=0, le=1)
    """Learning rate of the language model's own weights or adapters, as a share of `fit.learning_rate`: what is new has
    further to go than what has been trained before."""
    report_samples: int = Field(default=200, ge=0)
    """Examples of each task that are asked after the fit, in a phrasing that training never saw."""
    preference: PreferenceConfig | None = None
    """Weigh target items by what their history causes (NextQuill); off when not given."""

    @model_validator(mode="after")
    def _only_what_a_run_can_serve(self) -> TeachConfig:
        if self.tasks.reasoning.rewriting != "none":
            raise ValueError("tasks.reasoning.rewriting: the reasoning mode does not rewrite histories; set it to none")
        return self
