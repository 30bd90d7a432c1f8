"""Stage `pairs`: preference pairs out of the training data and the trained generator."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.alignment.builders.beams import beam_pairs
from recsys.alignment.builders.cases import sample_cases
from recsys.alignment.builders.click_skip import click_skip_pairs
from recsys.alignment.builders.config import (
    BeamPairsConfig,
    ClickPairsConfig,
    NoveltyPairsConfig,
    PairsConfig,
    PerturbedPairsConfig,
)
from recsys.alignment.builders.feedback import feedback_pairs
from recsys.alignment.builders.novelty import novelty_pairs
from recsys.alignment.builders.perturbed import perturbed_pairs
from recsys.alignment.builders.ratings import rating_pairs
from recsys.alignment.builders.slate_log import ObservedSlates, read_slates
from recsys.alignment.candidates import policy_model
from recsys.alignment.noise.answers import AnswerScores, generator_scores
from recsys.alignment.noise.clean import clean
from recsys.alignment.noise.config import FilterInputs
from recsys.alignment.pairs import PreferencePairs
from recsys.data import Catalog, Examples, IntArray, Interactions, Sequences, Split
from recsys.errors import DataError
from recsys.evaluation.baselines import SkipGram
from recsys.evaluation.baselines.counting import item_counts
from recsys.files import sha256_file, write_json
from recsys.generator import GenerativeRecommender
from training.config import RunConfig
from training.layout import DATA, ENCODE, PAIRS, PAIRS_REPORT, TOKENIZE, TRAIN
from training.pipeline import Stage, Workspace
from training.stages import data, encode, tokenize, train

PAIRS_FILE = "pairs.parquet"
_AT_A_TIME = 1024
"""Answers that the counter scores together."""
_ALWAYS = ("beams", "ratings", "perturbed")


def stage(config: RunConfig, pairs: PairsConfig) -> Stage:
    """Minutes: begins anew after a kill."""
    settings = {
        # Without what is off, so that pairs that were made before there was a choice stay up to date.
        "pairs": {name: value for name, value in portable(pairs).items() if name in _ALWAYS or value},
        "mask_seen": config.evaluation.mask_seen,
        "seed": config.run.seed,
    }
    return Stage(
        name=PAIRS,
        version=1,
        inputs=(DATA, ENCODE, TOKENIZE, TRAIN),
        settings=settings,
        build=lambda workspace: _build(config, pairs, workspace),
    )


def _build(config: RunConfig, pairs: PairsConfig, workspace: Workspace) -> None:
    inputs = workspace.inputs
    split, interactions = data.load_split(inputs[DATA]), data.load_interactions(inputs[DATA])
    tables = []
    if pairs.ratings is not None:
        tables.append(_from_ratings(config, pairs, split, interactions))
    if pairs.perturbed is not None:
        chosen = pairs.perturbed
        tables.append(
            perturbed_pairs(
                _cases(config, chosen, split),
                interactions.user_ids,
                items=split.fitted_items,
                kind=chosen.kind,
                share=chosen.share,
                count=chosen.num_histories,
                seed=config.run.seed,
            )
        )
    left_out = 0
    if pairs.clicks is not None:
        log = _slates(pairs.clicks, data.load_catalog(inputs[DATA]), split, interactions)
        left_out = log.left_out
        tables.append(
            (feedback_pairs if pairs.clicks.graded else click_skip_pairs)(
                log.slates, max_weight=pairs.clicks.max_weight
            )
        )

    @cache
    def recommender() -> GenerativeRecommender:
        return train.load_recommender(
            inputs[TRAIN], config.generator, tokenize.load_ids(inputs[TOKENIZE]), encode.load_embeddings(inputs[ENCODE])
        )

    if pairs.beams is not None:
        tables.append(_from_beams(config, pairs.beams, split, interactions, recommender()))
    if pairs.novelty is not None:
        tables.append(_from_novelty(config, pairs.novelty, split, interactions, recommender()))
    table = PreferencePairs.concat(tables)
    if len(table) == 0:
        raise DataError("pairs: no training sequence is long enough for a pair; lower min_history of its sources")
    filtering = FilterInputs(
        item_vectors=lambda: encode.load_embeddings(inputs[ENCODE]).vectors,
        generator=lambda: generator_scores(policy_model(recommender().model)),
        counter=lambda: _counter_scores(split),
        seed=config.run.seed,
    )
    table, filtered = clean(table, pairs.filters, filtering)
    table.save(workspace.output / PAIRS_FILE)
    report: dict[str, Any] = _report(table)
    if pairs.clicks is not None:
        report["slates_left_out"] = left_out
    if filtered:
        report["filters"] = filtered
    write_json(workspace.output / PAIRS_REPORT, report)


def portable(pairs: PairsConfig) -> dict[str, Any]:
    """The section with the content of its file instead of the path.

    Raises:
        DataError: there is no such file.
    """
    settings = pairs.model_dump(mode="json")
    if pairs.clicks is not None:
        if not pairs.clicks.file.is_file():
            raise DataError(f"pairs.clicks.file: no file {pairs.clicks.file}; check the path")
        settings["clicks"]["file"] = sha256_file(pairs.clicks.file)
    return settings


def _slates(chosen: ClickPairsConfig, catalog: Catalog, split: Split, interactions: Interactions) -> ObservedSlates:
    """The slates of the log that tell nothing of what came after training."""
    index = {item: number for number, item in enumerate(catalog.frame["item_id"].to_list())}
    return read_slates(chosen.file, index, after_training(interactions, split))


def after_training(interactions: Interactions, split: Split) -> dict[str, frozenset[int]]:
    """By user id, the items that the user has beyond the training sequence.

    Targets of validation and test are among them; so is, where time divides, what lies between and what users without
    a case have.
    """
    rest = interactions.frame.filter(~_is_training(interactions, split))
    return {
        interactions.user_ids[user]: frozenset(items) for user, items in rest.group_by("user").agg("item").iter_rows()
    }


def _counter_scores(split: Split) -> AnswerScores:
    """The skip-gram counter, fitted on the training sequences."""
    counter = SkipGram().fit(split.train, split.num_items)

    def score(histories: Sequences, items: IntArray) -> npt.NDArray[np.float32]:
        found = np.zeros(len(items), dtype=np.float32)
        for begin in range(0, len(items), _AT_A_TIME):
            rows = np.arange(begin, min(begin + _AT_A_TIME, len(items)))
            found[rows] = counter.scores(histories.select(rows))[np.arange(len(rows)), items[rows]]
        return found

    return score


def _from_ratings(config: RunConfig, pairs: PairsConfig, split: Split, interactions: Interactions) -> PreferencePairs:
    chosen = pairs.ratings
    assert chosen is not None, "callers have asked"
    found = rating_pairs(
        training_log(interactions, split),
        interactions.user_ids,
        min_gap=chosen.min_gap,
        window=chosen.window,
        max_rejected=chosen.max_rejected,
        max_pairs_per_user=chosen.max_pairs_per_user,
        max_history=config.generator.model.max_history,
        seed=config.run.seed,
    )
    if len(found) == 0:
        raise DataError(
            f"pairs.ratings: no user has two ratings {chosen.min_gap} apart; lower pairs.ratings.min_gap, or set "
            "data.min_rating=null if that dropped the low ones"
        )
    return found


def _from_beams(
    config: RunConfig,
    chosen: BeamPairsConfig,
    split: Split,
    interactions: Interactions,
    recommender: GenerativeRecommender,
) -> PreferencePairs:
    return beam_pairs(
        recommender,
        _cases(config, chosen, split),
        interactions.user_ids,
        count=chosen.num_rejected,
        beams=chosen.beams,
        mask_seen=config.evaluation.mask_seen,
        created_by=f"generator of run {config.run.name}",
    )


def _from_novelty(
    config: RunConfig,
    chosen: NoveltyPairsConfig,
    split: Split,
    interactions: Interactions,
    recommender: GenerativeRecommender,
) -> PreferencePairs:
    found = novelty_pairs(
        recommender,
        _cases(config, chosen, split),
        interactions.user_ids,
        popularity=item_counts(split.train, split.num_items),
        candidates=chosen.candidates,
        min_ratio=chosen.min_ratio,
        max_rejected=chosen.max_rejected,
        beams=chosen.beams,
        mask_seen=config.evaluation.mask_seen,
        created_by=f"generator of run {config.run.name}",
    )
    if len(found) == 0:
        raise DataError(
            f"pairs.novelty: no list of {chosen.candidates} items holds one that is {chosen.min_ratio:g} times as "
            "popular as another; lower pairs.novelty.min_ratio, or raise pairs.novelty.candidates"
        )
    return found


def _cases(
    config: RunConfig, chosen: BeamPairsConfig | NoveltyPairsConfig | PerturbedPairsConfig, split: Split
) -> Examples:
    return sample_cases(
        split.train,
        chosen.max_cases,
        max_history=config.generator.model.max_history,
        seed=config.run.seed,
        min_history=chosen.min_history,
    )


def training_log(interactions: Interactions, split: Split) -> pl.DataFrame:
    """The rows of the log that the training sequences are made of, in their order."""
    return interactions.frame.filter(_is_training(interactions, split))


def _is_training(interactions: Interactions, split: Split) -> pl.Series:
    """Whether a row of the log is of a training sequence."""
    lengths = np.zeros(interactions.num_users, dtype=np.int64)
    lengths[split.train.users] = split.train.lengths
    fitted = (~pl.col("item").is_in(split.held_out.tolist())).alias("fitted")
    # A training sequence is the beginning of what its user has of items that may be fitted on.
    rows = interactions.frame.select("user", fitted, fitted.cast(pl.Int64).cum_sum().over("user").alias("count"))
    return rows["fitted"] & pl.Series(rows["count"].to_numpy() <= lengths[rows["user"].to_numpy()])


def _report(table: PreferencePairs) -> dict[str, dict[str, float]]:
    """By source: `pairs`, `users`, and `rejected` answers a pair."""
    found = table.frame.group_by("source").agg(
        pl.len().alias("pairs"),
        pl.col("user_id").n_unique().alias("users"),
        pl.col("rejected_items").list.len().mean().alias("rejected"),
    )
    return {str(row.pop("source")): row for row in found.sort("source").iter_rows(named=True)}


def load_pairs(directory: Path) -> PreferencePairs:
    """The pairs of a finished stage, over the whole catalogue's indices."""
    return PreferencePairs.load(directory / PAIRS_FILE)
