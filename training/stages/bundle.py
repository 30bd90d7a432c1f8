"""Stage `bundle`: everything that serving loads, in one directory with a manifest."""

from __future__ import annotations

import json

import numpy as np

from recsys.bundle import write_bundle
from training.config import RunConfig
from training.layout import BUNDLE, DATA, ENCODE, EVALUATE, FUSE, FUSION, REPORT, TEXT_ENCODER, TOKENIZE
from training.pipeline import Stage, Workspace
from training.stages import align, data, encode, pairs, tokenize, train


def stage(config: RunConfig) -> Stage:
    """Users are served with their whole histories: what was held out for the test is no secret to the service."""

    def build(workspace: Workspace) -> None:
        inputs = workspace.inputs
        catalog = data.load_catalog(inputs[DATA])
        interactions = data.load_interactions(inputs[DATA])
        embeddings = encode.load_embeddings(inputs[ENCODE])
        ids = tokenize.load_ids(inputs[TOKENIZE])
        counts = np.bincount(interactions.frame["item"].to_numpy(), minlength=catalog.num_items)
        write_bundle(
            workspace.output,
            name=config.run.name,
            config=_portable(config),
            catalog=catalog,
            interactions=interactions,
            item_counts=counts,
            embeddings=embeddings,
            semantic_ids=ids,
            tokenizer=tokenize.load_fitted(inputs[TOKENIZE]),
            recommender=train.load_recommender(inputs[align.served_stage(config)], config.generator, ids, embeddings),
            report=json.loads((inputs[EVALUATE] / REPORT).read_text()),
            fusion=None if config.fusion is None else inputs[FUSE] / FUSION,
            text_encoder=tuned if (tuned := inputs[ENCODE] / TEXT_ENCODER).is_dir() else None,
        )

    return Stage(
        name=BUNDLE,
        version=5,
        inputs=(
            DATA,
            ENCODE,
            TOKENIZE,
            align.served_stage(config),
            *(() if config.fusion is None else (FUSE,)),
            EVALUATE,
        ),
        settings=_portable(config),
        build=build,
    )


def _portable(config: RunConfig) -> dict[str, object]:
    """The configuration without what belongs to this machine."""
    config = config.model_copy(update={"encoder": encode.portable(config.encoder)})
    settings = config.model_dump(mode="json", exclude={"run": {"dir", "threads"}, "data": {"path"}, "engine": True})
    if config.pairs is not None:
        settings["pairs"] = pairs.portable(config.pairs)
    return settings
