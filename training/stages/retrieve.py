"""Stage `retrieve`: the models that give candidates beside the generator, SASRec and the skip-gram counter."""

from __future__ import annotations

from pathlib import Path

from recsys.evaluation.baselines import SkipGram
from recsys.retrieval.towers import SasRecTower
from training.config import RunConfig
from training.layout import DATA, RETRIEVE
from training.pipeline import Stage, Workspace
from training.stages import data

_SASREC = "sasrec"
_SKIP_GRAM = "skip_gram"


def stage(config: RunConfig) -> Stage:
    """Over the items that may be fitted on, as the baselines are; begins anew after a kill."""

    def build(workspace: Workspace) -> None:
        split = data.load_split(workspace.inputs[DATA])
        num_items, train, valid = len(split.fitted_items), split.fitted_train, split.fitted_valid
        mask_seen = config.evaluation.mask_seen
        SkipGram(mask_seen=mask_seen).fit(train, num_items).save(workspace.output / _SKIP_GRAM)
        tower = SasRecTower(config.evaluation.sasrec, mask_seen=mask_seen).fit(train, num_items, valid)
        tower.save(workspace.output / _SASREC)

    settings = {
        "sasrec": config.evaluation.sasrec.model_dump(mode="json"),
        "mask_seen": config.evaluation.mask_seen,
    }
    return Stage(name=RETRIEVE, version=1, inputs=(DATA,), settings=settings, build=build)


def load_tower(directory: Path) -> SasRecTower:
    """SASRec of a finished stage, over the items that were fitted on."""
    return SasRecTower.load(directory / _SASREC)


def load_counter(directory: Path) -> SkipGram:
    """The counter of a finished stage, over the items that were fitted on."""
    return SkipGram.load(directory / _SKIP_GRAM)
