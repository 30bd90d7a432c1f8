"""Sentences of template profiles and prompts for language models: read from YAML and checked. Knows no items."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from string import Formatter
from typing import TypeVar

from pydantic import Field, ValidationError, model_validator

from recsys.config import StrictConfig, read_yaml_over
from recsys.errors import ConfigError
from recsys.profile.attributes import Attribute

PACKAGED = Path(__file__).with_name("wording.yaml")
"""The wording that comes with the package."""


class StatementWording(StrictConfig):
    """A sentence for each kind of attribute."""

    category: str
    """A kind of item."""
    brand: str
    """A brand."""
    era: str
    """A decade."""


class Wording(StrictConfig):
    """All that a profile is made of and asked with."""

    statements: StatementWording
    """Sentences of the template."""
    styles: Mapping[str, str] = Field(min_length=1)
    """Prompts for a profile, by the name of their style."""
    update: str
    """The prompt for a profile that goes on from another."""

    @model_validator(mode="after")
    def _placeholders_are_there(self) -> Wording:
        for kind in StatementWording.model_fields:
            check_placeholders(f"statements.{kind}", getattr(self.statements, kind), {"name", "count", "total"})
        for style, prompt in self.styles.items():
            check_placeholders(f"styles.{style}", prompt, {"history"})
        check_placeholders("update", self.update, {"profile", "events"})
        return self

    def statement(self, attribute: Attribute, *, count: int, total: int) -> str:
        """The sentence that a user met `attribute` in `count` of `total` events."""
        sentence: str = getattr(self.statements, attribute.kind)
        return sentence.format(name=attribute.name, count=count, total=total)

    @classmethod
    def load(cls, path: Path | None = None) -> Wording:
        """The packaged wording; keys that the YAML file `path` holds take that file's.

        Raises:
            ConfigError: the file cannot be read, or a key or placeholder is unknown or missing.
        """
        return load_wording(cls, PACKAGED, path)


WordingT = TypeVar("WordingT", bound=StrictConfig)


def load_wording(kind: type[WordingT], packaged: Path, path: Path | None) -> WordingT:
    """The wording of `packaged`; keys that the YAML file `path` holds take that file's.

    Raises:
        ConfigError: the file cannot be read, or a key or placeholder is unknown or missing.
    """
    values = read_yaml_over(packaged, path)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        message = str(first["msg"]).removeprefix("Value error, ")
        raise ConfigError(f"{path or packaged}: {f'{where}: ' if where else ''}{message}") from error


def check_placeholders(where: str, template: str, expected: set[str]) -> None:
    """Raise ValueError unless `template` has each placeholder of `expected` once and no other."""
    try:
        names = [name for _, name, _, _ in Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise ValueError(f"{where}: {error}; write {{{{ and }}}} for braces") from error
    if sorted(names) != sorted(expected):
        listed = ", ".join(f"{{{name}}}" for name in sorted(expected))
        raise ValueError(f"{where}: must have the placeholders {listed}, each once, and no other")
