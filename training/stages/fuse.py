"""Stage `fuse`: a ranker over the candidates of the generator and of the models of `retrieve`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from recsys.encoder import ItemEmbeddings
from recsys.evaluation.baselines.counting import item_counts
from recsys.generator import GenerativeRecommender
from recsys.retrieval import FusedRecommender, FusionConfig, Retrieval, fit_ranker, load_fused
from training.config import RunConfig
from training.layout import DATA, ENCODE, FUSE, FUSION, RETRIEVE, TOKENIZE
from training.pipeline import Stage, Workspace
from training.stages import align, data, encode, retrieve, tokenize, train


def stage(config: RunConfig, fusion: FusionConfig) -> Stage:
    """Minutes: after a kill only the shards of the indexes that were done are kept."""
    settings = {
        "fusion": fusion.model_dump(mode="json"),
        "mask_seen": config.evaluation.mask_seen,
        "beams": config.generator.beams,
        "new_item_slots": config.generator.new_item_slots,
    }
    return Stage(
        name=FUSE,
        version=1,
        inputs=(DATA, ENCODE, TOKENIZE, align.served_stage(config), RETRIEVE),
        settings=settings,
        build=lambda workspace: _build(config, fusion, workspace),
    )


def _build(config: RunConfig, fusion: FusionConfig, workspace: Workspace) -> None:
    inputs = workspace.inputs
    split = data.load_split(inputs[DATA])
    generator, embeddings = _generator(config, inputs)
    retrieval = Retrieval.build(
        fusion,
        item_counts=item_counts(split.train, split.num_items),
        fitted=split.fitted_items,
        tower=retrieve.load_tower(inputs[RETRIEVE]),
        counter=retrieve.load_counter(inputs[RETRIEVE]),
        vectors=embeddings.vectors,
        work=workspace.resume,
    )
    # No source was fitted on these cases, though some of their metrics chose an epoch.
    fit = fit_ranker(retrieval.pool(generator), split.valid, fusion, mask_seen=config.evaluation.mask_seen)
    (workspace.output / FUSION).mkdir()
    retrieval.save(workspace.output / FUSION, fit.ranker, fit.report)


def load(config: RunConfig, inputs: Mapping[str, Path]) -> FusedRecommender:
    """The fused recommender of a finished stage, with the search of `config.generator`."""
    generator, embeddings = _generator(config, inputs)
    return load_fused(inputs[FUSE] / FUSION, generator, embeddings.vectors)


def _generator(config: RunConfig, inputs: Mapping[str, Path]) -> tuple[GenerativeRecommender, ItemEmbeddings]:
    embeddings = encode.load_embeddings(inputs[ENCODE])
    ids = tokenize.load_ids(inputs[TOKENIZE])
    return train.load_recommender(inputs[align.served_stage(config)], config.generator, ids, embeddings), embeddings
