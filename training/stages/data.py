"""Stage `data`: the source becomes a checked catalogue, a log and a split."""

from __future__ import annotations

from pathlib import Path

import torch

from recsys.data import Catalog, Interactions, Split, fingerprints, load_dataset, make_split
from recsys.errors import DataError
from recsys.files import write_json
from training.config import RunConfig
from training.layout import DATA
from training.pipeline import Stage, Workspace

_CATALOG = "catalog.parquet"
_INTERACTIONS = "interactions"
_SPLIT = "split"
_SCRATCH = "scratch"


def stage(config: RunConfig) -> Stage:
    """Local files count by their content, wherever they lie, and those of a store by what it says of them.

    Its build raises DataError when a baseline that is asked for cannot be fitted on the split.
    """

    def build(workspace: Workspace) -> None:
        dataset = load_dataset(config.data, scratch=workspace.resume / _SCRATCH, threads=torch.get_num_threads())
        write_json(workspace.output / "dataset.json", {"name": dataset.name})
        dataset.catalog.save(workspace.output / _CATALOG)
        interactions = dataset.interactions
        del dataset  # the catalogue is not needed any more, and large
        split = make_split(interactions, config.data)
        _check_baselines(config, split)
        interactions.save(workspace.output / _INTERACTIONS)
        split.save(workspace.output / _SPLIT)

    return Stage(name=DATA, version=2, inputs=(), settings=_settings(config), build=build)


def _settings(config: RunConfig) -> dict[str, object]:
    return {**config.data.model_dump(mode="json", exclude={"path"}), "files": fingerprints(config.data)}


def _check_baselines(config: RunConfig, split: Split) -> None:
    """SASRec is fitted last: what it cannot learn from is said before hours of training, not after them."""
    if "sasrec" in config.evaluation.baselines and not (split.train.lengths >= 2).any():
        raise DataError(
            "evaluation.baselines: sasrec needs a training sequence of at least 2 items, and no user has one "
            "after the split; set evaluation.baselines without sasrec, or use data with more interactions a user"
        )


def load_catalog(directory: Path) -> Catalog:
    """The catalogue of a finished stage."""
    return Catalog.load(directory / _CATALOG)


def load_interactions(directory: Path) -> Interactions:
    """The log of a finished stage."""
    return Interactions.load(directory / _INTERACTIONS)


def load_split(directory: Path) -> Split:
    """The split of a finished stage."""
    return Split.load(directory / _SPLIT)
