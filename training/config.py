"""A run's configuration: the schema, how a YAML file and `key=value` overrides become it, and errors that help.

What each section means is the business of its room.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from recsys.alignment.builders.config import PairsConfig
from recsys.assets import ASSETS
from recsys.config import StrictConfig
from recsys.data import DataConfig
from recsys.encoder import EncoderConfig
from recsys.errors import ConfigError
from recsys.evaluation import EvaluationConfig
from recsys.generator import GeneratorConfig
from recsys.retrieval import FusionConfig
from recsys.tokenizer import TokenizerConfig, UserIndexerConfig
from training.align import AlignConfig
from training.engines.config import EngineConfig, LocalEngine
from training.fit import FitConfig
from training.layout import CONFIG_FILE, RUNS
from training.profiles import ProfilesConfig
from training.teach import TeachConfig

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
_NAME_RULE = "may have letters, digits, '.', '_' and '-' only, and not begin with '.'"


class RunSection(StrictConfig):
    """Where a run lives and what makes it repeatable."""

    name: str = ""
    """Name of the run's directory; empty: the stem of the configuration file."""
    dir: Path = RUNS
    """Directory that holds the runs."""
    seed: int = Field(default=0, ge=0)
    """The seed of everything that learns or samples. `data.tie_seed`, the order of interactions of one timestamp, is
    separate: another run.seed must not change the split."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of a stage; empty: what PyTorch chooses."""

    @field_validator("name")
    @classmethod
    def _name_is_one_directory(cls, name: str) -> str:
        if name and not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} {_NAME_RULE}")
        return name


class RunConfig(StrictConfig):
    """One run from raw data to a bundle that can be served."""

    run: RunSection = RunSection()
    """Where it lives, its seed."""
    engine: EngineConfig = LocalEngine()
    """Who starts the processes that train. A name alone stands for its defaults. No result depends on it."""
    data: DataConfig
    """The data set and how it is filtered and split."""
    encoder: EncoderConfig = EncoderConfig()
    """Item text to vectors."""
    tokenizer: TokenizerConfig
    """Vectors to semantic IDs."""
    generator: GeneratorConfig = GeneratorConfig()
    """The generative model and its search."""
    fit: FitConfig = FitConfig()
    """How the generative model is trained."""
    teach: TeachConfig = TeachConfig()
    """What a language model is taught with, where `generator.model.lm` names one."""
    users: UserIndexerConfig | None = Field(default=None, exclude_if=lambda section: section is None)
    """How users get the semantic IDs that `teach.tasks.user_tokens` asks for; empty: the defaults. Not written where it
    is empty: what earlier runs were made with stays as it was."""
    pairs: PairsConfig | None = None
    """Preference pairs out of the training data and the trained generator; null: off."""
    align: AlignConfig | None = None
    """How the trained generator is tuned further, by rewards of its own lists or on the pairs; null: off. What comes
    after it uses the aligned one, and the evaluation shows both."""
    fusion: FusionConfig | None = None
    """Several sources of candidates and a ranker over them, served instead of the generator alone; null: off. Its
    SASRec is the one of `evaluation.sasrec`, fitted once for both."""
    profiles: ProfilesConfig | None = None
    """Profiles of users in words, and what they are worth; null: off."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Protocol, metrics and baselines."""

    @model_validator(mode="after")
    def _the_generator_can_judge_profiles(self) -> RunConfig:
        profiles = self.profiles
        if profiles is None or profiles.judge != "generator":
            return self
        if self.generator.model.lm is None:
            raise ValueError(
                "profiles.judge: generator reads profiles with a language model as its body; set generator.model.lm, "
                "or profiles.judge=titles"
            )
        if self.data.split.kind != "leave_last_out" or profiles.cases.targets > 2:
            raise ValueError(
                "profiles.judge: generator was fitted on all but the last 2 items of a user of a leave_last_out split; "
                "set profiles.cases.targets to 1 or 2, or profiles.judge=titles"
            )
        return self

    @model_validator(mode="after")
    def _users_are_named_for_a_language_model(self) -> RunConfig:
        if not self.teach.tasks.user_tokens:
            if self.users is not None:
                raise ValueError("users: is read with teach.tasks.user_tokens only; set that to true")
            return self
        if self.generator.model.lm is None:
            raise ValueError("teach.tasks.user_tokens: only a language model reads them; set generator.model.lm")
        if self.align is not None:
            raise ValueError("teach.tasks.user_tokens: alignment reads histories without them; set align to null")
        return self

    @property
    def run_dir(self) -> Path:
        """The directory of the run."""
        return self.run.dir / self.run.name


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML says that keys are unique; PyYAML keeps the last one in silence."""


def _unique_mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    merge = "tag:yaml.org,2002:merge"
    keys = [loader.construct_object(key) for key, _ in node.value if key.tag != merge]
    for key in keys:
        if keys.count(key) > 1:
            raise ConfigError(f"{node.start_mark.name}: key {key!r} is given twice; keep one")
    loader.flatten_mapping(node)
    return loader.construct_mapping(node, deep=True)


_UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def _read_yaml(text: str, source: str) -> Any:
    try:
        loader = _UniqueKeyLoader(text)
        loader.name = source
        return loader.get_single_data()
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not valid YAML: {' '.join(str(error).split())}") from error


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file, lay `key.path=value` overrides over it (values are YAML), validate, and name the run."""
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [file.name for file in path.parent.glob("*.yaml")], n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise ConfigError(f"no configuration file {path}{hint}")
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path} as UTF-8 text: {error}") from error
    values = _read_yaml(text, str(path)) or {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a mapping of sections, found {type(values).__name__}")
    for override in overrides:
        _apply_override(values, override)
    config = parse_config(values, str(path))
    if not config.run.name and not _NAME.fullmatch(path.stem):
        raise ConfigError(
            f"run.name, by default the name of {path}: {path.stem!r} {_NAME_RULE}; rename the file or set run.name="
        )
    run = config.run if config.run.name else config.run.model_copy(update={"name": path.stem})
    # A run is found again by its stored configuration, from any working directory.
    data = config.data
    if isinstance(data.path, Path):
        data = data.model_copy(update={"path": data.path.absolute()})
    encoder = config.encoder
    if encoder.model not in ASSETS and Path(encoder.model).is_dir():
        encoder = encoder.model_copy(update={"model": str(Path(encoder.model).absolute())})
    modalities = tuple(
        modality if modality.file is None else modality.model_copy(update={"file": modality.file.absolute()})
        for modality in encoder.modalities
    )
    encoder = encoder.model_copy(update={"modalities": modalities})
    changes: dict[str, Any] = {"run": run, "data": data, "encoder": encoder}
    if config.pairs is not None and config.pairs.clicks is not None:
        clicks = config.pairs.clicks.model_copy(update={"file": config.pairs.clicks.file.absolute()})
        changes["pairs"] = config.pairs.model_copy(update={"clicks": clicks})
    if config.profiles is not None:
        changes["profiles"] = _absolute_profile_paths(config.profiles)
    return config.model_copy(update={**changes, **_absolute_language_paths(config)})


def _absolute_profile_paths(profiles: ProfilesConfig) -> ProfilesConfig:
    """The section with absolute paths."""
    changes: dict[str, Any] = {}
    if profiles.wording is not None:
        changes["wording"] = profiles.wording.absolute()
    if profiles.chat is not None:
        changes["chat"] = profiles.chat.model_copy(update={"cache": profiles.chat.cache.absolute()})
    if profiles.writer is not None:
        changes["writer"] = profiles.writer.model_copy(update={"name": _absolute_model(profiles.writer.name)})
    return profiles.model_copy(update={**changes, "judge_model": _absolute_model(profiles.judge_model)})


def _absolute_model(name: str) -> str:
    """A language model's directory as an absolute path; other names as they are."""
    return str(Path(name).absolute()) if name not in ASSETS and Path(name).is_dir() else name


def _absolute_language_paths(config: RunConfig) -> dict[str, Any]:
    """The sections that name a language model and what it is taught with, with absolute paths."""
    lm = config.generator.model.lm
    if lm is None:
        return {}
    lm = lm.model_copy(update={"name": _absolute_model(lm.name)})
    model = config.generator.model.model_copy(update={"lm": lm})
    tasks = config.teach.tasks
    texts, chat = tasks.texts, tasks.reasoning.chat
    if texts.table is not None:
        texts = texts.model_copy(update={"table": texts.table.absolute()})
    if chat is not None:
        chat = chat.model_copy(update={"cache": chat.cache.absolute()})
    reasoning = tasks.reasoning.model_copy(update={"chat": chat})
    templates = None if tasks.templates is None else tasks.templates.absolute()
    tasks = tasks.model_copy(update={"texts": texts, "reasoning": reasoning, "templates": templates})
    return {
        "generator": config.generator.model_copy(update={"model": model}),
        "teach": config.teach.model_copy(update={"tasks": tasks}),
    }


def stored_config(run_dir: Path) -> RunConfig:
    """The resolved configuration that a run was made with."""
    path = run_dir / CONFIG_FILE
    if not path.is_file():
        raise ConfigError(f"{run_dir} is no run: it has no {CONFIG_FILE}; make one with `recsys run CONFIG`")
    config = parse_config(_read_yaml(path.read_text(), str(path)), str(path))
    run = config.run.model_copy(update={"dir": run_dir.absolute().parent, "name": run_dir.absolute().name})
    return config.model_copy(update={"run": run})


def config_yaml(config: RunConfig) -> str:
    """The whole configuration, defaults included, as YAML that `load_config` reads back."""
    values = config.model_dump(mode="json")
    for section, content in values.items():
        if section != "run" and content is not None:
            _drop_seeds(getattr(config, section), content)
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


# ---------------------------------------------------------------------------------------------------------------------
# one seed: sections have a `seed` for those who use a room alone; in a run all of them are `run.seed`
# ---------------------------------------------------------------------------------------------------------------------


def _with_seed(section: StrictConfig, seed: int, prefix: str) -> StrictConfig:
    changes: dict[str, Any] = {}
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, StrictConfig):
            changes[name] = _with_seed(value, seed, f"{prefix}.{name}")
        elif name == "seed":
            if name in section.model_fields_set:
                raise ConfigError(f"{prefix}.seed: a run has one seed for everything; set run.seed")
            changes[name] = seed
    return section.model_copy(update=changes)


def _drop_seeds(section: StrictConfig, values: dict[str, Any]) -> None:
    """Take the seeds out of `values`, what was written of `section`, which may leave defaults out."""
    for name in type(section).model_fields:
        if name == "seed":
            del values[name]
        elif isinstance(getattr(section, name), StrictConfig) and name in values:
            _drop_seeds(getattr(section, name), values[name])


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"override {override!r} must look like section.key=value, for example run.seed=1")
    here: Any = values
    for part in parts[:-1]:
        if here.get(part) is None:
            here[part] = {}
        elif part == "engine" and isinstance(here[part], str):
            here[part] = {"name": here[part]}
        here = here[part]
        if not isinstance(here, dict):
            raise ConfigError(f"override {override!r}: {part!r} holds a value, not a section")
    here[parts[-1]] = _read_yaml(text, f"the value of override {override!r}")


# ---------------------------------------------------------------------------------------------------------------------
# errors
# ---------------------------------------------------------------------------------------------------------------------


def parse_config(values: Any, source: str) -> RunConfig:
    """Validate nested values; every mistake is named by its full key, with what is allowed there."""
    try:
        config = RunConfig.model_validate(values)
    except ValidationError as error:
        messages = [_explain(details) for details in error.errors()]
        raise ConfigError(f"{source}: " + "; ".join(dict.fromkeys(messages))) from error
    sections = {name: getattr(config, name) for name in RunConfig.model_fields if name != "run"}
    return config.model_copy(
        update={
            name: _with_seed(section, config.run.seed, name)
            for name, section in sections.items()
            if section is not None
        }
    )


def _explain(details: ErrorDetails) -> str:
    key, models = _locate(details["loc"])
    context: Mapping[str, Any] = details.get("ctx", {})
    given = details["input"]
    match details["type"]:
        case "extra_forbidden":
            return f"unknown key {key!r}{_suggest(key, models)}"
        case "missing":
            return f"{key} is required but not given"
        case "literal_error" | "enum":
            return f"{key} must be {context['expected']}, got {given!r}{_did_you_mean(given, context['expected'])}"
        case "union_tag_invalid" | "union_tag_not_found":
            tag = str(context["discriminator"]).strip("'")
            given = given.get(tag) if isinstance(given, dict) else given
            members = [model for parent in models for model in _models_in(_field_annotation(parent, key))]
            allowed = " or ".join(repr(name) for model in members for name in sorted(_tags(model) - {model.__name__}))
            return f"{key}.{tag} must be {allowed}, got {given!r}{_did_you_mean(given, allowed)}"
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"{key} must be a section of keys and values, got {given!r}"
        case "value_error":
            text = str(context["error"])
            return f"{key}: {text}" if key else text
        case _:
            if isinstance(given, dict):
                return f"{key}: {details['msg']}"
            message = details["msg"].removeprefix("Input ").rstrip(".")
            return (
                f"{key} {message}, got {given!r}"
                if message.startswith("should")
                else f"{key}: {message}, got {given!r}"
            )


def _locate(location: Sequence[int | str]) -> tuple[str, list[type[BaseModel]]]:
    """The dotted key of a location, and the models that could hold its last part.

    Pydantic puts the name of a union's member between the keys; those are left out.
    """
    models: list[type[BaseModel]] = [RunConfig]
    parent = models
    parts: list[str] = []
    for index, part in enumerate(location):
        last = index == len(location) - 1
        narrowed = [model for model in models if not last and part in _tags(model)]
        # A member's name may be that of a field too; before the fields of a union of several stands the member.
        if len(models) > 1 and narrowed:
            models = narrowed
            continue
        fields = [model.model_fields[part] for model in models if isinstance(part, str) and part in model.model_fields]
        if fields:
            parts.append(str(part))
            parent, models = models, [model for field in fields for model in _models_in(field.annotation)]
        elif narrowed:
            models = narrowed
        elif isinstance(part, int):
            parts.append(f"[{part}]")
        elif last or not models:
            parts.append(part)
            parent = models or parent
    return ".".join(parts).replace(".[", "["), parent


def _field_annotation(model: type[BaseModel], key: str) -> Any:
    field = model.model_fields.get(key.rpartition(".")[2].partition("[")[0])
    return None if field is None else field.annotation


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]


def _tags(model: type[BaseModel]) -> set[str]:
    """How pydantic may call a model within a union: its class name or the value of its discriminating literal."""
    literals = (get_args(field.annotation) for field in model.model_fields.values())
    return {model.__name__, *(values[0] for values in literals if len(values) == 1 and isinstance(values[0], str))}


def _suggest(key: str, models: Sequence[type[BaseModel]]) -> str:
    """Nearest known keys: first beside the wrong one, then anywhere under the same last name."""
    prefix, _, leaf = key.rpartition(".")
    siblings = sorted({name for model in models for name in model.model_fields})
    near = difflib.get_close_matches(leaf, siblings, n=1)
    if near:
        return f"; did you mean {f'{prefix}.{near[0]}' if prefix else near[0]!s}?"
    # Another member of the union may have this very key; that is not where it should go.
    elsewhere = [known for known in _all_keys(RunConfig) if known.rpartition(".")[2] == leaf and known != key]
    if elsewhere:
        return f"; did you mean {' or '.join(dict.fromkeys(elsewhere))}?"
    return f"; known keys here: {', '.join(siblings)}" if siblings else ""


def _all_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        for inner in _models_in(field.annotation):
            yield from _all_keys(inner, f"{prefix}{name}.")


def _did_you_mean(given: Any, expected: str) -> str:
    allowed = [word.strip(" ',") for word in expected.replace(" or ", ",").split(",")]
    near = difflib.get_close_matches(str(given), allowed, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
