"""Finds a bundle and the keys of its store, without loading what a model needs (PyTorch takes seconds)."""

from __future__ import annotations

import json
from pathlib import Path

from recsys.errors import ArtifactError

_RUNS = Path("runs")
"""Where a run is found by its name, relative to the working directory."""
_MANIFEST = "manifest.json"


def find_bundle(path: Path) -> Path:
    """The bundle that `path` names: in a run's directory, itself, or in a run under runs/; else `path` as it is."""
    candidates = (path / "bundle", path, _RUNS / path / "bundle")
    return next((candidate for candidate in candidates if (candidate / _MANIFEST).is_file()), path)


def namespace_of(bundle: Path) -> str:
    """The namespace of the store that a bundle is served with.

    Raises:
        ArtifactError: there is no bundle.
    """
    file = bundle / _MANIFEST
    try:
        return f"recsys:{json.loads(file.read_text())['name']}"
    except FileNotFoundError as error:
        raise ArtifactError(f"bundle: {file} is missing; name a bundle, or a run whose bundle stage is done") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"bundle: cannot read {file}: {error!r}; build the bundle again") from error
