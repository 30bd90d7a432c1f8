"""Stage `profiles`: users in words, and how much better the frozen recommender finds what they chose next with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from recsys.errors import ConfigError
from recsys.files import sha256_file, write_json
from recsys.profile.attributes import ItemAttributes
from recsys.profile.cases import make_cases
from recsys.profile.recommender_judge import RecommenderJudge
from recsys.profile.utility import Judge
from recsys.profile.wording import Wording
from recsys.progress import console
from training.config import RunConfig
from training.layout import DATA, ENCODE, PROFILES, PROFILES_FILE, PROFILES_REPORT, TOKENIZE, TRAIN
from training.pipeline import Stage, Workspace
from training.profiles import Kept, Outcome, ProfilesConfig, make_profiles, summary, title_judge
from training.stages import data, encode, tokenize, train


def stage(config: RunConfig, profiles: ProfilesConfig) -> Stage:
    """After a kill, goes on with the texts, judgements and tuned writer that there are."""
    settings = profiles.model_dump(mode="json", exclude={"wording": True, "chat": {"cache"}})
    settings["judge_model"] = train.model_source(profiles.judge_model)
    if profiles.writer is not None:
        settings["writer"]["name"] = train.model_source(profiles.writer.name)
    if profiles.wording is not None:
        try:
            Wording.load(profiles.wording)
        except ConfigError as error:
            raise ConfigError(f"profiles.wording: {error}") from error
        settings["wording"] = sha256_file(profiles.wording)
    by_generator = profiles.judge == "generator"
    return Stage(
        name=PROFILES,
        version=1,
        inputs=(DATA, ENCODE, TOKENIZE, TRAIN) if by_generator else (DATA,),
        settings=settings,
        build=lambda workspace: _build(config, profiles, workspace),
    )


def _build(config: RunConfig, profiles: ProfilesConfig, workspace: Workspace) -> None:
    catalog = data.load_catalog(workspace.inputs[DATA])
    interactions = data.load_interactions(workspace.inputs[DATA])
    attributes = ItemAttributes(catalog)
    counts = np.bincount(interactions.frame["item"].to_numpy(), minlength=catalog.num_items)
    cases = make_cases(interactions.sequences(), counts, profiles.cases)
    outcome = make_profiles(
        profiles,
        attributes,
        cases,
        _judge(config, profiles, attributes, workspace),
        workspace.output,
        Kept(workspace.resume),
    )
    _frame(outcome, interactions.user_ids).write_parquet(workspace.output / PROFILES_FILE)
    write_json(workspace.output / PROFILES_REPORT, outcome.report)
    for line in summary(outcome.report):
        console.print(line, highlight=False, markup=False)


def _judge(config: RunConfig, profiles: ProfilesConfig, attributes: ItemAttributes, workspace: Workspace) -> Judge:
    if profiles.judge == "titles":
        return title_judge(profiles.judge_model, attributes, profiles.precision)
    inputs = workspace.inputs
    embeddings, ids = encode.load_embeddings(inputs[ENCODE]), tokenize.load_ids(inputs[TOKENIZE])
    return RecommenderJudge(train.load_recommender(inputs[TRAIN], config.generator, ids, embeddings))


def _frame(outcome: Outcome, user_ids: list[str]) -> pl.DataFrame:
    rows = [
        {"user_id": user_ids[user], "arm": arm, "text": profile.text, "profile": profile.to_json()}
        for arm, profiles in outcome.profiles.items()
        for user, profile in zip(outcome.users, profiles, strict=True)
    ]
    return pl.DataFrame(rows)


def load_frame(directory: Path) -> pl.DataFrame:
    """The profiles of a finished stage, see `layout.PROFILES_FILE`."""
    return pl.read_parquet(directory / PROFILES_FILE)
