"""Stage `train`: fits the generator on the training sequences. The loop itself is `training.fit`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from recsys.data import Examples, IntArray, Sequences
from recsys.encoder import ItemEmbeddings
from recsys.evaluation.metrics import accuracy_metrics
from recsys.files import write_json
from recsys.generator import Constraints, GenerativeRecommender, GeneratorConfig, build_model
from recsys.tokenizer import SemanticIds
from training.config import RunConfig
from training.fit import fit_generator
from training.layout import DATA, ENCODE, TOKENIZE, TRAIN
from training.pipeline import Stage, Workspace
from training.scalars import ScalarLog
from training.stages import data, encode, tokenize

_CURVE = "curve.json"


def stage(config: RunConfig) -> Stage:
    """Goes on from the last finished epoch."""
    settings = {
        "generator": config.generator.model_dump(mode="json", exclude={"beams", "new_item_slots", "session_cache_mib"}),
        "fit": config.fit.model_dump(mode="json"),
        "mask_seen": config.evaluation.mask_seen,
        "seed": config.run.seed,
    }
    return Stage(
        name=TRAIN,
        version=3,
        inputs=(DATA, ENCODE, TOKENIZE),
        settings=settings,
        build=lambda workspace: _build(config, workspace),
    )


def _build(config: RunConfig, workspace: Workspace) -> None:
    split = data.load_split(workspace.inputs[DATA])
    embeddings = encode.load_embeddings(workspace.inputs[ENCODE])
    ids = tokenize.load_ids(workspace.inputs[TOKENIZE])
    vectors = embeddings.vectors if config.generator.model.text_input else None
    # Items that are held out join once the weights stand; until then the catalogue is without them.
    fitted, index = split.fitted_items, split.fitted_index
    codes, known_vectors = ids.codes[fitted], None if vectors is None else vectors[fitted]

    torch.manual_seed(config.run.seed)
    model = build_model(config.generator, codes, ids.codebook_sizes, known_vectors)
    recommender = GenerativeRecommender(config.generator, codes, ids.codebook_sizes, known_vectors, model)
    cases = sample(split.valid.renumber(index), config.fit.validation_users, config.run.seed)
    with ScalarLog(workspace.run_dir) as log:
        result = fit_generator(
            model,
            split.train.renumber(index),
            config.fit,
            seed=config.run.seed,
            validate=lambda: _ndcg_at_10(recommender, cases, config),
            checkpoint_dir=workspace.resume,
            log=log,
        )
    if len(split.held_out):
        recommender = recommender.with_catalog(ids.codes, vectors, known=fitted)
    recommender.save(workspace.output)
    write_json(workspace.output / _CURVE, {"best_epoch": result.best_epoch, "curve": result.curve})


def load_recommender(
    directory: Path, config: GeneratorConfig, ids: SemanticIds, embeddings: ItemEmbeddings
) -> GenerativeRecommender:
    """The generator of a finished stage, which searches as `config` says: its width may change after the fit."""
    stored = GenerativeRecommender.load(directory, ids.codes, ids.codebook_sizes, embeddings.vectors)
    return GenerativeRecommender(config, stored.codes, stored.codebook_sizes, stored.item_vectors, stored.model)


def load_curve(directory: Path) -> list[dict[str, float]]:
    """One entry an epoch: `epoch`, `loss`, and `ndcg@10` where it was validated."""
    curve: list[dict[str, float]] = json.loads((directory / _CURVE).read_text())["curve"]
    return curve


def rank(recommender: GenerativeRecommender, histories: Sequences, k: int, *, beams: int, mask_seen: bool) -> IntArray:
    """int64 [B, k]: the generator's lists, as every evaluation asks for them; -1 where there are no more items."""
    constraints = Constraints(deny=list(histories)) if mask_seen else None
    return recommender.recommend(histories, k, constraints=constraints, beams=beams).items


def sample(cases: Examples, size: int, seed: int) -> Examples:
    """At most `size` of the cases, in their order; the same ones under the same seed."""
    if len(cases) <= size:
        return cases
    return cases.select(np.sort(np.random.default_rng(seed).choice(len(cases), size, replace=False)))


def _ndcg_at_10(recommender: GenerativeRecommender, cases: Examples, config: RunConfig) -> float:
    lists = rank(
        recommender,
        cases.histories,
        10,
        beams=config.fit.validation_beams,
        mask_seen=config.evaluation.mask_seen,
    )
    ndcg = accuracy_metrics(lists, cases.targets, (10,))["ndcg@10"]
    return float(ndcg.numerator.mean())
