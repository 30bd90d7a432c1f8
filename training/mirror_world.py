"""What a simulator made of a language model is made from: settings, users, scenes, and the model that reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, ValidationError

from recsys.config import StrictConfig, read_yaml
from recsys.data import Catalog, DataConfig, Sequences, load_dataset
from recsys.encoder.collaborative import cooccurrence_embeddings, unit_rows
from recsys.errors import ConfigError, DataError
from recsys.generator.lm.backbone import Backbone, load_causal_lm
from recsys.generator.lm.config import ChatTeacherConfig
from recsys.profile.attributes import ItemAttributes
from recsys.profile.template import TemplateConfig, TemplateProfiler
from recsys.profile.wording import Wording
from recsys.simulator.behaviour.logged_sessions import LoggedSessions
from recsys.simulator.mirror.distillation import DistillConfig
from recsys.simulator.mirror.prompts import Mode, ScenePrompts
from recsys.simulator.mirror.reader import OptionReader
from recsys.simulator.mirror.scenes import Scene, SceneConfig, interaction_scenes
from recsys.simulator.mirror.simulator import ReadingConfig
from recsys.simulator.mirror.wording import MirrorWording
from training.profile_tuning import TuneConfig


class SupervisedConfig(StrictConfig):
    """How the model is taught before it is aligned."""

    learning_rate: float = Field(default=2e-4, gt=0)
    """Of the adapter."""
    rank: int = Field(default=16, ge=1)
    """Of the LoRA adapter."""
    epochs: float = Field(default=1.0, gt=0)
    """Passes over the answers."""
    batch_size: int = Field(default=4, ge=1)
    """Answers of a step."""
    warmup_steps: int = Field(default=10, ge=0)
    """Steps over which the learning rate rises; then it falls as a cosine does."""
    max_tokens: int = Field(default=1024, ge=16)
    """Of scene and answer together; what is longer is left out."""
    direct_share: float = Field(default=0.5, ge=0, le=1)
    """Share of all scenes whose letter alone is taught too, so that it can be read without a decision process."""


class MirrorConfig(StrictConfig):
    """Everything about a simulator made of a language model."""

    data: DataConfig
    """Catalogue and log."""
    model: str = "smollm2-135m-instruct"
    """An asset, a directory or a name of the Hub."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the model when it reads; it is fitted in float32 weights, with products in bfloat16 if this says so."""
    train_users: int = Field(default=1000, ge=2)
    """Users that the model learns from."""
    test_users: int = Field(default=500, ge=2)
    """Other users, whose choices it is to foretell."""
    scenes: SceneConfig = SceneConfig(min_options=2, max_options=12)
    """Of the users that it learns from."""
    test_options: int = Field(default=5, ge=2, le=26)
    """Options of every scene that is foretold."""
    wording: Path | None = None
    """A YAML file with one's own words; empty: the packaged ones."""
    max_history: int = Field(default=10, ge=1)
    """Items of the history that are named."""
    max_categories: int = Field(default=3, ge=0)
    """Categories of an item that are named."""
    memory: TemplateConfig | None = TemplateConfig()
    """The profile by rule that stands for the whole history; empty: none."""
    chat: ChatTeacherConfig | None = None
    """The strong model that writes decision processes; empty: rules over metadata."""
    teacher_temperature: float = Field(default=1.0, gt=0)
    """Of what the teacher writes."""
    teacher_draws: int = Field(default=10, ge=1)
    """Decision processes of the teacher a scene."""
    student_draws: int = Field(default=10, ge=0)
    """Decision processes of the model itself a scene."""
    distill: DistillConfig = DistillConfig()
    """Which scenes are learned from."""
    sft: SupervisedConfig = SupervisedConfig()
    """The supervised fit."""
    dpo: TuneConfig = TuneConfig(loss="dpo", epochs=2)
    """The alignment on pairs."""
    reading: ReadingConfig = ReadingConfig()
    """How choices are foretold."""
    modes: tuple[Mode, ...] = Field(default=("direct", "reasoned"), min_length=1)
    """With and without a decision process."""
    checkpoint_steps: int = Field(default=25, ge=1)
    """What was fitted is kept every so many steps."""
    seed: int = 0
    """Of the choice of users and all draws."""

    @classmethod
    def load(cls, path: Path) -> MirrorConfig:
        """Read a YAML file.

        Raises:
            ConfigError: it cannot be read, or a key is unknown or has a wrong value.
        """
        try:
            return cls.model_validate(read_yaml(path))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ConfigError(f"{path}: {where}: {str(first['msg']).removeprefix('Value error, ')}") from error


@dataclass(frozen=True, kw_only=True, eq=False)
class World:
    """What all steps read."""

    prompts: ScenePrompts
    train: list[Scene]
    test: list[Scene]
    item_counts: npt.NDArray[np.int64]
    """int64 [num_items], without the users that are foretold."""
    vectors: npt.NDArray[np.float32]
    """float32 [num_items, D]: items that the same users took, likewise."""
    catalog: Catalog
    """Of all items."""
    known: LoggedSessions
    """Histories of all users but those that are foretold."""


def make_world(config: MirrorConfig) -> World:
    """Load the data, divide the users and make scenes.

    Raises:
        DataError: there are too few users with a long enough history.
        ConfigError: the wording is malformed.
    """
    dataset = load_dataset(config.data)
    log = dataset.interactions.sequences()
    num_items = dataset.catalog.num_items
    able = np.flatnonzero(log.lengths > config.scenes.min_history)
    wanted = config.train_users + config.test_users
    if len(able) < wanted:
        raise DataError(
            f"mirror: {len(able)} users have more than {config.scenes.min_history} items, train_users and test_users "
            f"take {wanted}; lower them, or scenes.min_history"
        )
    users = np.random.default_rng(config.seed).permutation(able)
    tested, taught = users[: config.test_users], users[config.test_users : wanted]
    known = LoggedSessions.of(dataset.interactions, np.setdiff1d(np.arange(len(log)), tested))
    counts = np.bincount(known.log.items, minlength=num_items)
    vectors = unit_rows(cooccurrence_embeddings(known.log, num_items, dim=min(64, num_items - 1), window=5)[0])
    times = first_seen = None
    if dataset.interactions.has_timestamps:
        stamps = dataset.interactions.frame["timestamp"].to_numpy()
        times = Sequences(users=log.users, offsets=log.offsets, items=stamps)
        first_seen = np.full(num_items, np.iinfo(np.int64).max)
        np.minimum.at(first_seen, log.items, stamps)

    def scenes(users: npt.NDArray[np.int64], settings: SceneConfig) -> list[Scene]:
        return interaction_scenes(
            log.select(users),
            counts,
            settings,
            vectors={"taste": vectors},
            times=None if times is None else times.select(users).items,
            first_seen=first_seen,
        )

    test_scenes = config.scenes.model_copy(
        update={"min_options": config.test_options, "max_options": config.test_options}
    )
    attributes = ItemAttributes(dataset.catalog)
    profiler = None if config.memory is None else TemplateProfiler(attributes, config.memory, Wording.load())
    return World(
        prompts=ScenePrompts(
            attributes,
            MirrorWording.load(config.wording),
            max_history=config.max_history,
            max_categories=config.max_categories,
            profiler=profiler,
        ),
        train=scenes(taught, config.scenes),
        test=scenes(tested, test_scenes),
        item_counts=counts,
        vectors=vectors,
        catalog=dataset.catalog,
        known=known,
    )


def load_reader(config: MirrorConfig, prompts: ScenePrompts, adapters: Sequence[Path]) -> OptionReader:
    """The model with adapters, ready to read scenes.

    Raises:
        AssetError: there is no such model, or its tokenizer cuts letters.
        ArtifactError: an adapter cannot be read.
    """
    model, tokenizer = load_causal_lm(config.model, field="mirror.model", adapters=adapters)
    backbone = Backbone(model, tokenizer).to("cuda" if torch.cuda.is_available() else "cpu")
    return OptionReader(backbone.to(getattr(torch, config.precision)), prompts)
