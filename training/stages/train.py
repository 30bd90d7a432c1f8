"""Stage `train`: fits the generator on the training sequences. The loop itself is `training.fit`."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recsys.assets import ASSETS
from recsys.data import Examples, IntArray, Sequences
from recsys.encoder import ItemEmbeddings
from recsys.encoder.encoder import FloatArray
from recsys.errors import DataError
from recsys.evaluation.metrics import accuracy_metrics
from recsys.files import sha256_directory, sha256_file, write_json
from recsys.generator import Constraints, GenerativeRecommender, GeneratorConfig, Recommendations, build_model
from recsys.generator.lm.initial_rows import ground_rows, ground_users
from recsys.generator.lm.make import make_task_mix
from recsys.generator.lm.tasks import TaskMix
from recsys.generator.placement import place
from recsys.generator.recommender import GeneratorModel
from recsys.ranks import Ranks
from recsys.tokenizer import SemanticIds
from recsys.tokenizer.user_histories import HistoryIndexer
from training.config import RunConfig
from training.fit import fit_generator
from training.language_report import language_report
from training.layout import DATA, ENCODE, LANGUAGE_REPORT, TOKENIZE, TRAIN, USERS
from training.objectives import Objective, TaskObjective
from training.pipeline import Stage, Workspace
from training.scalars import ScalarLog
from training.stages import data, encode, tokenize, users
from training.teach import TeachConfig

_CURVE = "curve.json"


def stage(config: RunConfig) -> Stage:
    """Goes on from the last finished epoch."""
    settings: dict[str, Any] = {
        "generator": config.generator.model_dump(mode="json", exclude={"beams", "new_item_slots", "session_cache_mib"}),
        "fit": config.fit.model_dump(mode="json"),
        "mask_seen": config.evaluation.mask_seen,
        "seed": config.run.seed,
    }
    if config.generator.model.lm is not None:
        if config.generator.model.lm.load_in == "float32":
            # Runs that were trained before there was a choice stay up to date.
            del settings["generator"]["model"]["lm"]["load_in"]
        settings |= {"teach": _portable(config.teach), "language_model": model_source(config.generator.model.lm.name)}
    return Stage(
        name=TRAIN,
        version=3,
        inputs=(DATA, ENCODE, TOKENIZE, *((USERS,) if config.teach.tasks.user_tokens else ())),
        settings=settings,
        build=partial(_build, config),
        shared=True,
    )


def _build(config: RunConfig, workspace: Workspace) -> None:
    split = data.load_split(workspace.inputs[DATA])
    embeddings = encode.load_embeddings(workspace.inputs[ENCODE])
    ids = tokenize.load_ids(workspace.inputs[TOKENIZE])
    vectors = embeddings.vectors if config.generator.model.text_input else None
    # Items that are held out join once the weights stand; until then the catalogue is without them.
    codes, known_vectors = split.of_fitted(ids.codes), None if vectors is None else split.of_fitted(vectors)

    torch.manual_seed(config.run.seed)
    named = config.teach.tasks.user_tokens
    indexer = users.load_indexer(workspace, split.of_fitted(embeddings.vectors)) if named else None
    model = build_model(config.generator, codes, ids.codebook_sizes, known_vectors, users=indexer)
    recommender = GenerativeRecommender(config.generator, codes, ids.codebook_sizes, known_vectors, model)
    train = _learned_from(split.fitted_train, config)
    mix = objective = None
    if config.generator.model.lm is not None:
        ground_rows(model, codes, ids.codebook_sizes, split.of_fitted(embeddings.vectors), config.run.seed)
        if indexer is not None:
            ground_users(model, config.run.seed + 1)
        mix = _task_mix(config, workspace, train, split.fitted_items, embeddings.vectors, indexer)
        objective = _teaching(config, mix)
    cases = sample(split.fitted_valid, config.fit.validation_users, config.run.seed)
    with ScalarLog(workspace.run_dir) as log:
        result = fit_generator(
            model,
            train,
            config.fit,
            seed=config.run.seed,
            validate=lambda: _ndcg_at_10(recommender, cases, config, workspace.ranks),
            checkpoint_dir=workspace.resume,
            log=log,
            objective=objective,
            body_rate=1.0 if objective is None else config.teach.language_rate,
            ranks=workspace.ranks,
        )
    if not workspace.ranks.leads:
        return
    if mix is not None:
        told = language_report(recommender, mix, config.teach.line_rows, config.teach.report_samples)
        write_json(workspace.output / LANGUAGE_REPORT, told)
    place(model, torch.device("cpu"))
    if len(split.held_out):
        recommender = recommender.with_catalog(ids.codes, embeddings.vectors, known=split.fitted_items)
    recommender.save(workspace.output)
    write_json(workspace.output / _CURVE, {"best_epoch": result.best_epoch, "curve": result.curve})


def _learned_from(train: Sequences, config: RunConfig) -> Sequences:
    at_most = config.fit.max_users
    if at_most is None or len(train) <= at_most:
        return train
    chosen = np.random.default_rng(config.run.seed).choice(len(train), at_most, replace=False)
    return train.select(np.sort(chosen))


def _teaching(config: RunConfig, mix: TaskMix) -> Callable[[GeneratorModel], Objective]:
    return lambda model: TaskObjective(model, mix, config.teach, config.fit.batch_positions, config.fit.label_smoothing)


def _task_mix(
    config: RunConfig,
    workspace: Workspace,
    train: Sequences,
    fitted: IntArray,
    vectors: FloatArray,
    indexer: HistoryIndexer | None,
) -> TaskMix:
    catalog = data.load_catalog(workspace.inputs[DATA])
    user_ids = data.load_interactions(workspace.inputs[DATA]).user_ids
    # One length of histories for what is taught and what is asked.
    tasks = config.teach.tasks.model_copy(update={"max_history": config.generator.model.max_history})
    return make_task_mix(
        tasks, catalog, train, user_ids, seed=config.run.seed, items=fitted, vectors=vectors, users=indexer
    )


def _portable(config: TeachConfig) -> dict[str, Any]:
    """The settings with the content of files instead of their paths."""
    settings = config.model_dump(mode="json")
    tasks = settings["tasks"]
    for holder, key, file in (
        (tasks, "templates", config.tasks.templates),
        (tasks["texts"], "table", config.tasks.texts.table),
    ):
        if file is not None:
            if not file.is_file():
                raise DataError(f"teach.tasks: no file {file} for {key!r}; check the path")
            holder[key] = sha256_file(file)
    return settings


def model_source(name: str) -> str:
    """What tells a language model from another: its name, or the content of a directory."""
    return sha256_directory(Path(name)) if name not in ASSETS and Path(name).is_dir() else name


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


def recommend(
    recommender: GenerativeRecommender, histories: Sequences, k: int, *, beams: int, mask_seen: bool
) -> Recommendations:
    """The generator's lists, as every evaluation asks for them."""
    return recommender.recommend(histories, k, constraints=unseen(histories, mask_seen), beams=beams)


def unseen(histories: Sequences, mask_seen: bool) -> Constraints | None:
    """What every evaluation asks of a list: no item of the history, where seen items are masked."""
    return Constraints(deny=list(histories)) if mask_seen else None


def rank(recommender: GenerativeRecommender, histories: Sequences, k: int, *, beams: int, mask_seen: bool) -> IntArray:
    """int64 [B, k]: the items of `recommend`; -1 where there are no more."""
    return recommend(recommender, histories, k, beams=beams, mask_seen=mask_seen).items


def sample(cases: Examples, size: int, seed: int) -> Examples:
    """At most `size` of the cases, in their order; the same ones under the same seed."""
    if len(cases) <= size:
        return cases
    return cases.select(np.sort(np.random.default_rng(seed).choice(len(cases), size, replace=False)))


def _ndcg_at_10(recommender: GenerativeRecommender, cases: Examples, config: RunConfig, ranks: Ranks) -> float:
    """Over all cases, each process ranking its part of them."""
    own = cases.select(np.arange(len(cases))[ranks.part(len(cases))])
    gain = 0.0
    if len(own):
        lists = rank(
            recommender,
            own.histories,
            10,
            beams=config.fit.validation_beams,
            mask_seen=config.evaluation.mask_seen,
        )
        gain = float(accuracy_metrics(lists, own.targets, (10,))["ndcg@10"].numerator.sum())
    return ranks.mean(gain, len(own))
