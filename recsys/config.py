"""The base class of every configuration model, and how their files are read. What they hold is each room's business."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

from recsys.errors import ConfigError


class StrictConfig(BaseModel):
    """Frozen, unknown keys are errors, and a field's docstring is its description."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, strict=False)


def read_yaml_over(packaged: Path, path: Path | None) -> dict[str, Any]:
    """The keys and values of a packaged file; top-level keys that the file `path` holds take that file's.

    Raises:
        ConfigError: see `read_yaml`.
    """
    return read_yaml(packaged) | ({} if path is None else read_yaml(path))


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file.

    Raises:
        ConfigError: the file cannot be read, is no YAML, or holds no mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: malformed YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected keys and values, found {type(values).__name__}")
    return values
