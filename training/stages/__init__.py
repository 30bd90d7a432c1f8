"""The stages of a run, in order. Each module makes one stage and reads its results back for the later ones."""

from __future__ import annotations

from training.config import RunConfig
from training.pipeline import Stage
from training.stages import (
    align,
    bundle,
    data,
    encode,
    evaluate,
    fuse,
    pairs,
    profiles,
    retrieve,
    tokenize,
    train,
    users,
)


def build_stages(config: RunConfig) -> list[Stage]:
    """All stages, from the source to the bundle."""
    stages = [module.stage(config) for module in (data, encode, tokenize)]
    if config.teach.tasks.user_tokens:
        stages.append(users.stage(config))
    stages.append(train.stage(config))
    if config.pairs is not None:
        stages.append(pairs.stage(config, config.pairs))
    if config.fusion is not None or (config.align is not None and align.reads_scorers(config.align)):
        stages.append(retrieve.stage(config))
    if config.align is not None:
        stages.append(align.stage(config, config.align))
    if config.fusion is not None:
        stages.append(fuse.stage(config, config.fusion))
    if config.profiles is not None:
        stages.append(profiles.stage(config, config.profiles))
    return [*stages, evaluate.stage(config), bundle.stage(config)]
