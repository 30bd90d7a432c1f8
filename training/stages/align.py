"""Stage `align`: the trained generator, tuned further on rewards of its own lists or on preference pairs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from recsys.alignment.group_policy import Prompts, current_prompts, labelled_prompts
from recsys.alignment.rewards import RewardContext, Scorer, build_rewards
from recsys.data import Examples, Sequences, Split
from recsys.errors import ConfigError
from recsys.evaluation.baselines.counting import item_counts
from recsys.evaluation.metrics import accuracy_metrics
from recsys.files import write_json
from recsys.generator import GenerativeRecommender
from recsys.generator.placement import place
from training.align import AlignConfig
from training.config import RunConfig
from training.group_policy import Served, fit_group_policy
from training.layout import ALIGN, ALIGN_REPORT, DATA, ENCODE, PAIRS, RETRIEVE, TOKENIZE, TRAIN
from training.pipeline import Stage, Workspace
from training.preference_fit import fit_preferences
from training.scalars import ScalarLog
from training.stages import data, encode, retrieve, tokenize, train
from training.stages.pairs import load_pairs

_COUNTER_FLOOR = 0.01
"""What an item without any evidence has of the counter, so that its logarithm is finite."""


def stage(config: RunConfig, align: AlignConfig) -> Stage:
    """Goes on from the last validation.

    Raises:
        ConfigError: pairs are asked for, and the run makes none.
    """
    if align.method == "preference" and config.pairs is None:
        raise ConfigError("align.method=preference reads pairs; add a section `pairs`, or set group_policy")
    return Stage(
        name=ALIGN,
        version=1,
        inputs=(
            DATA,
            ENCODE,
            TOKENIZE,
            TRAIN,
            *((PAIRS,) if align.method == "preference" else ()),
            *((RETRIEVE,) if reads_scorers(align) else ()),
        ),
        settings={
            "align": align.model_dump(mode="json"),
            "mask_seen": config.evaluation.mask_seen,
            "seed": config.run.seed,
        },
        build=lambda workspace: _build(config, align, workspace),
    )


def reads_scorers(align: AlignConfig) -> bool:
    """Whether a reward asks SASRec or the counter of stage `retrieve`."""
    return align.method == "group_policy" and any(term.kind == "scorer" for term in align.rewards.terms)


def served_stage(config: RunConfig) -> str:
    """The stage whose generator is served: the aligned one, where there is one."""
    return TRAIN if config.align is None else ALIGN


def _build(config: RunConfig, align: AlignConfig, workspace: Workspace) -> None:
    inputs = workspace.inputs
    split = data.load_split(inputs[DATA])
    embeddings = encode.load_embeddings(inputs[ENCODE])
    ids = tokenize.load_ids(inputs[TOKENIZE])
    recommender = train.load_recommender(inputs[TRAIN], config.generator, ids, embeddings)
    cases = train.sample(split.valid, align.validation_users, config.run.seed)
    popularity = item_counts(split.train, split.num_items)

    def validate() -> Served:
        return served(recommender, cases, popularity, align.validation_beams, config.evaluation.mask_seen)

    before = validate()
    with ScalarLog(workspace.run_dir) as log:
        if align.method == "group_policy":
            context = RewardContext.of(
                ids,
                popularity=torch.from_numpy(popularity),
                item_vectors=torch.from_numpy(embeddings.vectors),
                scorers=scorers(split, inputs[RETRIEVE]) if reads_scorers(align) else {},
            )
            policy_fit = fit_group_policy(
                recommender.model,
                prompts(split.train, align, config.run.seed),
                build_rewards(align.rewards, context),
                align.group_policy,
                seed=config.run.seed,
                start=before,
                validate=validate,
                horizon=align.prompts.horizon,
                checkpoint_dir=workspace.resume,
                log=log,
            )
            curve, best, raised = policy_fit.curve, policy_fit.best_update, policy_fit.alarms
        else:
            pair_fit = fit_preferences(
                recommender,
                load_pairs(inputs[PAIRS]),
                align.preference,
                seed=config.run.seed,
                validate=lambda: validate().ndcg,
                mask_seen=config.evaluation.mask_seen,
                checkpoint_dir=workspace.resume,
                log=log,
            )
            curve, best, raised = pair_fit.curve, pair_fit.best_epoch, []
    place(recommender.model, torch.device("cpu"))
    after = validate()
    recommender.save(workspace.output)
    report = {
        "method": align.method,
        "before": dataclasses.asdict(before),
        "after": dataclasses.asdict(after),
        "best": best,
        "alarms": raised,
        "curve": curve,
    }
    write_json(workspace.output / ALIGN_REPORT, report)


def prompts(train_sequences: Sequences, align: AlignConfig, seed: int) -> Prompts:
    """The prompts that the configuration asks for.

    Raises:
        ConfigError: none.
    """
    chosen = align.prompts
    parts = []
    if chosen.labelled:
        parts.append(
            labelled_prompts(train_sequences, min_history=chosen.min_history, max_prompts=chosen.labelled, seed=seed)
        )
    if chosen.current:
        parts.append(current_prompts(train_sequences))
    if not parts:
        raise ConfigError("align.prompts: set labelled above 0, or current: true; there is nothing to ask the policy")
    return parts[0] if len(parts) == 1 else parts[0] + parts[1]


def scorers(split: Split, retrieved: Path) -> Mapping[str, Scorer]:
    """`sasrec` and `skip_gram`: the models of stage `retrieve` as log-scores of all items, which rewards may sum.

    Both were fitted on training sequences alone. Items that were held out have the lowest score of their row.
    """
    tower, counter = retrieve.load_tower(retrieved), retrieve.load_counter(retrieved)

    def sasrec(histories: Sequences) -> npt.NDArray[np.float32]:
        scores = torch.from_numpy(np.asarray(tower.scores(histories), dtype=np.float32))
        return np.asarray(scores.log_softmax(-1).numpy())

    def skip_gram(histories: Sequences) -> npt.NDArray[np.float32]:
        evidence = np.asarray(counter.evidence(histories).toarray(), dtype=np.float32)
        return np.asarray(np.log(evidence + _COUNTER_FLOOR))

    return {name: _over_all_items(score, split) for name, score in (("sasrec", sasrec), ("skip_gram", skip_gram))}


def _over_all_items(score: Callable[[Sequences], npt.NDArray[np.float32]], split: Split) -> Scorer:
    if not len(split.held_out):
        return score

    def scattered(histories: Sequences) -> npt.NDArray[np.float32]:
        known = score(histories.renumber(split.fitted_index))
        scores = np.repeat(known.min(axis=1, keepdims=True), split.num_items, axis=1)
        scores[:, split.fitted_items] = known
        return scores

    return scattered


def served(
    recommender: GenerativeRecommender, cases: Examples, popularity: npt.NDArray[Any], beams: int, mask_seen: bool
) -> Served:
    """What the decoder comes to on validation cases, with at least 50 beams."""
    lists = train.rank(recommender, cases.histories, 50, beams=beams, mask_seen=mask_seen)
    metrics = accuracy_metrics(lists, cases.targets, (10, 50))
    top = lists[:, :10]
    top = top[top >= 0]
    return Served(
        ndcg=float(metrics["ndcg@10"].numerator.mean()),
        recall_at_50=float(metrics["recall@50"].numerator.mean()),
        coverage=len(np.unique(top)) / len(recommender.codes),
        popularity=float(np.log1p(popularity[top]).mean()),
    )
