"""Profiles of many users: written by rule and by a language model, tuned on what they are worth, and compared.

The users that tuning learns from are others than those that the comparison asks about. Knows neither runs nor stages.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from shutil import copytree
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import nn

from recsys.config import StrictConfig
from recsys.errors import DataError
from recsys.files import sha256_file, sha256_json
from recsys.generator.config import LanguageModelConfig
from recsys.generator.lm.backbone import load_backbone
from recsys.generator.lm.config import ChatTeacherConfig
from recsys.kept_answers import KeptAnswers
from recsys.profile.attributes import ItemAttributes
from recsys.profile.cases import Case, CaseConfig
from recsys.profile.generated import LanguageProfiler, explorers
from recsys.profile.kept import KeptJudge, KeptWriter
from recsys.profile.ladder import compare
from recsys.profile.pairs import PairConfig, TextPair, text_pairs
from recsys.profile.profile import Profile
from recsys.profile.template import TemplateConfig, TemplateProfiler
from recsys.profile.title_judge import TitleJudge
from recsys.profile.utility import Judge, LengthConfig, Scored, score
from recsys.profile.wording import Wording
from recsys.profile.writers import ChatWriter, LocalWriter, TextWriter
from recsys.progress import progress_bar
from training.profile_tuning import Margins, TuneConfig, held_out_margins, tune_writer

ADAPTER = "adapter"
"""Directory of the tuned writer's adapter, below the output."""
TEMPLATE, GENERATED, TUNED = "template", "generated", "tuned"
_HELD_OUT_SHARE = 0.2
Precision = Literal["float32", "bfloat16"]
_DTYPES: dict[Precision, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class WriterConfig(StrictConfig):
    """The language model that writes profiles on this machine."""

    name: str = "smollm2-135m-instruct"
    """An asset, a directory or a name of the Hub."""
    max_tokens: int = Field(default=64, ge=1)
    """Tokens of a profile."""
    max_events: int = Field(default=20, ge=1)
    """Newest events that a prompt names."""
    batch_size: int = Field(default=8, ge=1)
    """Profiles written at a time."""


class TuningConfig(TuneConfig):
    """How the writer is tuned, and on what (LettinGo, arXiv 2506.18309)."""

    users: int = Field(default=200, ge=2)
    """Users whose profiles become pairs; every fifth of them is kept to check the margins. None is compared."""
    temperatures: tuple[float, ...] = Field(default=(0.7, 1.0, 1.2), min_length=1)
    """Each user gets a profile for each temperature, style of the wording, and writer."""
    pairs: PairConfig = PairConfig()
    """Which differences count."""


class ProfilesConfig(StrictConfig):
    """Which profiles are written, and what judges them."""

    users: int = Field(default=500, ge=2)
    """Users that the comparison asks about."""
    cases: CaseConfig = CaseConfig()
    """How their histories are divided."""
    template: TemplateConfig = TemplateConfig()
    """How much is said by rule."""
    wording: Path | None = None
    """A YAML file with one's own sentences and prompts; empty: the packaged ones."""
    writer: WriterConfig | None = None
    """The language model that writes; empty: profiles by rule alone."""
    chat: ChatTeacherConfig | None = None
    """A chat model whose profiles join those that the writer is tuned on."""
    tuning: TuningConfig | None = None
    """Tunes the writer; empty: it stays as it is."""
    judge: Literal["titles", "generator"] = "titles"
    """The frozen recommender: `judge_model` by the titles of candidates, or the run's generator, which then needs a
    language model as its body."""
    judge_model: str = "smollm2-135m-instruct"
    """The language model that ranks titles."""
    length: LengthConfig = LengthConfig()
    """What length costs."""
    precision: Precision = Field(default="float32", exclude_if=lambda precision: bool(precision == "float32"))
    """Of the language models that write, are tuned and rank titles: `bfloat16` takes about half the time on processors
    that have it. Left out of what is written while it is the default: settings of earlier runs stay as they were."""
    seed: int = 0
    """Of the choice of users, the draws and the resampling."""

    @model_validator(mode="after")
    def _tuning_has_a_writer(self) -> ProfilesConfig:
        if self.writer is None and (self.tuning is not None or self.chat is not None):
            raise ValueError("writer: is empty, so there is nothing to tune; name a model or leave tuning and chat out")
        if self.chat is not None and self.tuning is None:
            raise ValueError("chat: its profiles are for tuning; set tuning, or leave chat out")
        # Compared with the defaults, as a run that is read again holds all keys.
        defaults = ChatTeacherConfig.model_fields
        if self.chat is not None and self.chat.temperature != defaults["temperature"].default:
            raise ValueError("chat.temperature: would do nothing, as tuning.temperatures holds; leave it out")
        if self.chat is not None and self.chat.max_description_words != defaults["max_description_words"].default:
            raise ValueError("chat.max_description_words: would do nothing, no description is read; leave it out")
        return self


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """What was written and how it compares."""

    profiles: dict[str, list[Profile]]
    """By the name of the arm, one a compared user."""
    users: list[int]
    """Those users."""
    report: dict[str, Any]
    """The ladder, and what tuning saw."""


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What became of tuning."""

    pairs: int
    """What the writer was tuned on."""
    margins: Margins
    """How it judges the pairs that were kept out."""


class Kept:
    """What was done before a kill, in a directory: texts, what they are worth, and tuned adapters.

    Args:
        directory: made when there is none.

    Raises:
        ArtifactError: the file of answers cannot be read.
    """

    def __init__(self, directory: Path) -> None:
        self.answers = KeptAnswers(directory / "answers.jsonl", "remove it")
        self._directory = directory

    def adapter(self, key: str, adapter: Path) -> Tuned | None:
        """What `add_adapter` was told; its files are in `adapter` then. None when it was not."""
        known = self.answers.get(key)
        if known is None:
            return None
        copytree(self._stored(key), adapter)
        found = json.loads(known)
        return Tuned(pairs=found["pairs"], margins=Margins(**found["margins"]))

    def add_adapter(self, key: str, adapter: Path, tuned: Tuned) -> None:
        """Keep an adapter."""
        copytree(adapter, self._stored(key), dirs_exist_ok=True)
        self.answers.add(key, json.dumps(asdict(tuned)))

    def _stored(self, key: str) -> Path:
        return self._directory / f"adapter-{key[:16]}"


@dataclass(frozen=True, kw_only=True, eq=False)
class _Materials:
    config: ProfilesConfig
    attributes: ItemAttributes
    wording: Wording
    judge: Judge
    kept: Kept | None

    def writer(self, adapter: Path | None) -> TextWriter:
        config = self.config.writer
        assert config is not None
        writer = local_writer(config, self.config.precision, adapter)
        if self.kept is None:
            return writer
        weights = "" if adapter is None else sha256_file(adapter / "adapter_model.safetensors")
        return KeptWriter(writer, self.kept.answers, f"{config.model_dump_json()} {self.config.precision} {weights}")

    def profiler(self, writer: TextWriter) -> LanguageProfiler:
        assert self.config.writer is not None
        return LanguageProfiler(
            writer, self.attributes, self.wording, max_events=self.config.writer.max_events, seed=self.config.seed
        )


def title_judge(model: str, attributes: ItemAttributes, precision: Precision = "float32") -> TitleJudge:
    """The language model `model` as the frozen recommender. Items are shown with their categories: a small model does
    not know films by their names."""
    backbone = load_backbone(LanguageModelConfig(name=model, tuning="frozen"), field="profiles.judge_model")
    backbone.precision = _DTYPES[precision]
    for module in backbone.modules():
        if isinstance(module, nn.Linear):
            # Mixed precision would convert the weights for every text; norms and what goes between layers stay float32.
            module.to(backbone.precision)
    described = []
    for item, title in enumerate(attributes.titles):
        categories = [attribute.name for attribute in attributes.of(item) if attribute.kind == "category"]
        described.append(f"{title} ({', '.join(categories)})" if categories else title)
    return TitleJudge(backbone, described)


def make_profiles(
    config: ProfilesConfig,
    attributes: ItemAttributes,
    cases: Sequence[Case],
    judge: Judge,
    output: Path,
    kept: Kept | None = None,
) -> Outcome:
    """Write, tune and compare, as `config` says; an adapter of the tuned writer goes into `output`.

    Args:
        config: what to do.
        attributes: of the catalogue.
        cases: of all users that have one.
        judge: the frozen recommender.
        output: an existing directory.
        kept: what a call with the same judge and catalogue, which was killed, has left; goes on from there.

    Raises:
        DataError: there are too few users.
        ConfigError: TRL is missing, or no pair is far enough apart.
        AssetError: there is no such model.
    """
    if kept is not None:
        judge = KeptJudge(judge, kept.answers, f"{config.judge} {config.judge_model} {config.precision}")
    materials = _Materials(
        config=config,
        attributes=attributes,
        wording=Wording.load(config.wording),
        judge=judge,
        kept=kept,
    )
    tuned_users = 0 if config.tuning is None else config.tuning.users
    if len(cases) < tuned_users + 2:
        raise DataError(
            f"profiles: {len(cases)} users have histories that are long enough, tuning takes {tuned_users} of them and "
            "the comparison at least 2; lower profiles.tuning.users or profiles.cases"
        )
    order = np.random.default_rng(config.seed).permutation(len(cases))
    for_tuning = [cases[row] for row in order[:tuned_users]]
    compared = [cases[row] for row in order[tuned_users : tuned_users + config.users]]
    histories = [case.compressed for case in compared]
    by_rule = TemplateProfiler(attributes, config.template, materials.wording)
    arms: dict[str, list[Profile]] = {TEMPLATE: [written.profile for written in by_rule.write(histories)]}
    facts: dict[str, Any] = {}
    if config.writer is not None:
        writer = materials.writer(None)
        arms[GENERATED] = [each.profile for each in materials.profiler(writer).write(histories)]
        if config.tuning is not None:
            facts["tuning"] = _tune(materials, config.tuning, writer, for_tuning, output / ADAPTER)
            tuned = materials.writer(output / ADAPTER)
            arms[TUNED] = [each.profile for each in materials.profiler(tuned).write(histories)]
    report = compare(judge, compared, arms, control=TEMPLATE, length=config.length, seed=config.seed)
    return Outcome(profiles=arms, users=[case.user for case in compared], report=report | facts)


def local_writer(config: WriterConfig, precision: Precision = "float32", adapter: Path | None = None) -> LocalWriter:
    """The language model that `config` names, with the adapter that tuning saved."""
    return LocalWriter(
        config.name,
        adapter,
        max_tokens=config.max_tokens,
        batch_size=config.batch_size,
        precision=_DTYPES[precision],
    )


def _tune(
    materials: _Materials, config: TuningConfig, writer: TextWriter, cases: Sequence[Case], adapter: Path
) -> dict[str, Any]:
    """Explore, evaluate, align; what there was to learn from, and whether it was learned."""
    explored = _explore(materials, config, writer, cases)
    scored = [each for each in explored if each.text]
    profiler = materials.profiler(writer)
    prompts = {case.user: profiler.prompt(Profile(), case.compressed) for case in cases}
    pairs = text_pairs(scored, prompts, config.pairs)
    users = [case.user for case in cases]
    kept_out = set(users[: round(_HELD_OUT_SHARE * len(users))])
    learned = [pair for pair in pairs if pair.user not in kept_out]
    checked = [pair for pair in pairs if pair.user in kept_out]
    tuned = _tuned(materials, learned, checked, config, adapter)
    return {
        "loss": config.loss,
        "users": len(users),
        "profiles": len(scored),
        "empty_profiles": len(explored) - len(scored),
        "unfaithful": float(np.mean([not each.is_faithful for each in scored])),
        "utility": float(np.mean([each.utility for each in scored])),
        "pairs": tuned.pairs,
        "too_long_pairs": len(learned) - tuned.pairs,
        "users_with_pairs": len({pair.user for pair in learned}),
        "held_out_margins": asdict(tuned.margins),
    }


def _tuned(
    materials: _Materials,
    learned: Sequence[TextPair],
    checked: Sequence[TextPair],
    config: TuningConfig,
    adapter: Path,
) -> Tuned:
    """Tune the writer, unless the same was done before a kill."""
    assert materials.config.writer is not None
    name, mixed = materials.config.writer.name, materials.config.precision == "bfloat16"
    texts = [[asdict(pair) for pair in pairs] for pairs in (learned, checked)]
    key = sha256_json([name, texts, config.model_dump(mode="json"), mixed])
    found = None if materials.kept is None else materials.kept.adapter(key, adapter)
    if found is not None:
        return found
    num_learned = tune_writer(name, learned, config, adapter, mixed=mixed)
    tuned = Tuned(pairs=num_learned, margins=held_out_margins(name, adapter, checked, config))
    if materials.kept is not None:
        materials.kept.add_adapter(key, adapter, tuned)
    return tuned


def _explore(materials: _Materials, config: TuningConfig, writer: TextWriter, cases: Sequence[Case]) -> list[Scored]:
    writers: list[TextWriter] = [writer]
    if materials.config.chat is not None:
        writers.append(ChatWriter(materials.config.chat))
    assert materials.config.writer is not None
    pool = explorers(
        writers,
        materials.attributes,
        materials.wording,
        config.temperatures,
        max_events=materials.config.writer.max_events,
        seed=materials.config.seed + 1,
    )
    histories = [case.compressed for case in cases]
    written = [[each.profile for each in profiler.write(histories)] for profiler in pool]
    scored: list[Scored] = []
    with progress_bar("what profiles are worth", len(cases)) as advance:
        for case, profiles in zip(cases, zip(*written, strict=True), strict=True):
            texts = [profile.text for profile in profiles]
            faithful = [profile.is_faithful for profile in profiles]
            scored += score(materials.judge, case, texts, faithful, materials.config.length)
            advance(1, "")
    return scored


def summary(report: Mapping[str, Any]) -> list[str]:
    """The ladder as lines of text."""
    lines = [f"{'arm':<12}{'utility':>26}{'NDCG@10':>26}{'tokens':>8}{'unfaithful':>12}"]
    for name, row in report["arms"].items():
        cells = [
            f"{row[metric]['value']:.3f} [{row[metric]['low']:.3f}, {row[metric]['high']:.3f}]"
            for metric in ("utility", "ndcg@10")
        ]
        lines.append(f"{name:<12}{cells[0]:>26}{cells[1]:>26}{row['tokens']:>8.1f}{row['unfaithful']:>12.2f}")
    return lines
