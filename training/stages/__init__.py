"""The stages of a run, in order. Each module makes one stage and reads its results back for the later ones."""

from __future__ import annotations

from training.config import RunConfig
from training.pipeline import Stage
from training.stages import bundle, data, encode, evaluate, retrieve, tokenize, train


def build_stages(config: RunConfig) -> list[Stage]:
    """All stages, from the source to the bundle."""
    retrieval = () if config.fusion is None else (retrieve,)
    return [module.stage(config) for module in (data, encode, tokenize, train, *retrieval, evaluate, bundle)]
