"""The words with which a language model plays users: read from YAML and checked. Knows no items."""

from __future__ import annotations

from pathlib import Path

from pydantic import model_validator

from recsys.config import StrictConfig
from recsys.profile.wording import check_placeholders, load_wording

PACKAGED = Path(__file__).with_name("wording.yaml")
"""The wording that comes with the package."""


class QuestionWording(StrictConfig):
    """What is asked at the end of a scene."""

    direct: str
    """For the letter alone."""
    reasoned: str
    """For the decision process, then the letter."""


class FactorWording(StrictConfig):
    """Sentences of the teacher by rule."""

    stimulus: str
    """What an item is."""
    popular: str
    """What an item is that many have chosen."""
    known: str
    """What the history has in common with it."""
    unknown: str
    """That the history has nothing in common with it."""
    fits: str
    """The verdict on an item that shares something with the history."""
    tempts: str
    """The verdict on another."""
    nothing: str
    """The verdict of taking nothing."""


class MirrorWording(StrictConfig):
    """All that is said to the model and expected of it."""

    scene: str
    """What the model reads."""
    memory: str
    """The profile, where there is one."""
    event: str
    """An item of the history."""
    option: str
    """An item on offer."""
    nothing: str
    """Taking nothing."""
    question: QuestionWording
    """What is asked."""
    process: str
    """The decision process."""
    answer: str
    """What stands before the letter."""
    factors: FactorWording
    """Sentences of the teacher by rule."""

    @model_validator(mode="after")
    def _placeholders_are_there(self) -> MirrorWording:
        for where, template, expected in (
            ("scene", self.scene, {"memory", "history", "options", "question"}),
            ("memory", self.memory, {"profile"}),
            ("event", self.event, {"item"}),
            ("option", self.option, {"letter", "item"}),
            ("process", self.process, {"stimulus", "knowledge", "evaluation", "style"}),
            ("factors.stimulus", self.factors.stimulus, {"names"}),
            ("factors.popular", self.factors.popular, {"names"}),
            ("factors.known", self.factors.known, {"count", "total", "name"}),
            ("factors.unknown", self.factors.unknown, {"total"}),
            ("factors.fits", self.factors.fits, {"item"}),
            ("factors.tempts", self.factors.tempts, {"item"}),
        ):
            check_placeholders(where, template, expected)
        if not self.answer.strip() or "{" in self.answer:
            raise ValueError("answer: must be words without placeholders, they end the decision process")
        return self

    @property
    def lead(self) -> str:
        """How every decision process begins."""
        return self.process.split("{", 1)[0].rstrip()

    @classmethod
    def load(cls, path: Path | None = None) -> MirrorWording:
        """The packaged wording; keys that the YAML file `path` holds take that file's.

        Raises:
            ConfigError: the file cannot be read, or a key or placeholder is unknown or missing.
        """
        return load_wording(cls, PACKAGED, path)
