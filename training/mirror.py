"""Aligns a language model with how users choose: evidence, supervised fit, DPO, and how each step foretells choices.

The order of UserMirrorer (arXiv 2508.18142): teacher and student write decision processes, the untuned student reads
what they lead to, the best are learned (SFT), then preferred to the worst (DPO). Each step is kept in the output, so
that a run that was killed goes on where it was. Users of the fit are others than those that are foretold.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError
from scipy.special import softmax

from recsys.config import StrictConfig, read_yaml
from recsys.data import Catalog, DataConfig, Sequences, load_dataset
from recsys.encoder.collaborative import cooccurrence_embeddings, unit_rows
from recsys.errors import ConfigError, DataError
from recsys.files import write_json
from recsys.generator.lm.backbone import Backbone, load_causal_lm
from recsys.generator.lm.config import ChatTeacherConfig
from recsys.generator.lm.reason import ReasonConfig
from recsys.profile.attributes import ItemAttributes
from recsys.profile.pairs import TextPair
from recsys.profile.template import TemplateConfig, TemplateProfiler
from recsys.profile.wording import Wording
from recsys.profile.writers import ChatWriter, chat_prompt
from recsys.progress import progress_bar
from recsys.simulator.behaviour.fit import fit_choice_model
from recsys.simulator.behaviour.fitting import FitConfig
from recsys.simulator.behaviour.history import SATIATING
from recsys.simulator.behaviour.logged_sessions import LoggedSessions
from recsys.simulator.behaviour.stress import Traits
from recsys.simulator.mirror.distillation import DistillConfig, Evidence, Lesson, lessons, uncertainty
from recsys.simulator.mirror.prompts import Mode, ScenePrompts
from recsys.simulator.mirror.rationales import Rationale, RationaleWriter, RuleWriter, TextRationales
from recsys.simulator.mirror.reader import OptionReader
from recsys.simulator.mirror.scenes import Scene, SceneConfig, interaction_scenes
from recsys.simulator.mirror.scorecard import agreement, by_place, gain, score
from recsys.simulator.mirror.simulator import Read, ReadingConfig, read_scenes
from recsys.simulator.mirror.wording import MirrorWording
from training.profile_tuning import TuneConfig, adapter_config, fit_adapter, trainer_arguments, tune_writer

DoubleArray = npt.NDArray[np.float64]

BASE, SFT, DPO = "base", "sft", "sft_dpo"
SFT_ADAPTER, DPO_ADAPTER = "sft", "dpo"
"""Directories of the adapters below the output; the second goes on top of the first."""
_CONFIG, _EVIDENCE, _REPORT = "config.json", "evidence.jsonl", "report.json"


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


def make_mirror(config: MirrorConfig, output: Path) -> dict[str, Any]:
    """Fit and judge a simulator; adapters and `report.json` go into `output`.

    Args:
        config: what to do.
        output: a directory; steps that it holds are not made again.

    Returns:
        The report.

    Raises:
        ConfigError: `output` holds another configuration's steps, TRL is missing, or nothing can be learned.
        DataError: there are too few users.
        AssetError: there is no such model, or its tokenizer cuts letters.
        ChatError: the teacher does not answer.
    """
    _claim(output, config)
    world = make_world(config)
    evidence = _evidence(config, world, output / _EVIDENCE)
    learned = lessons(evidence, config.distill)
    if not learned:
        raise ConfigError(
            f"mirror: in none of {len(evidence)} scenes a decision process of the teacher led to what was taken; raise "
            "train_users or teacher_draws"
        )
    pairs = [pair for lesson in learned if (pair := _pair(world.prompts, lesson)) is not None]
    if not pairs:
        raise ConfigError("mirror: no scene has a decision process that led elsewhere; raise teacher_draws")
    if not (output / SFT_ADAPTER).is_dir():
        _supervise(config, world, learned, output / SFT_ADAPTER)
    if not (output / DPO_ADAPTER).is_dir():
        tune_writer(
            config.model,
            pairs,
            config.dpo,
            output / DPO_ADAPTER,
            start=[output / SFT_ADAPTER],
            checkpoint_steps=config.checkpoint_steps,
            bf16=config.precision == "bfloat16",
            section="mirror.dpo",
        )
    report = {
        "facts": _facts(world, evidence, learned, pairs),
        "rows": _judge(config, world, output),
    }
    write_json(output / _REPORT, report)
    return report


def arm_adapters(output: Path) -> dict[str, list[Path]]:
    """The adapters of each step, by its name."""
    sft, dpo = output / SFT_ADAPTER, output / DPO_ADAPTER
    return {BASE: [], SFT: [sft], DPO: [sft, dpo]}


def load_reader(config: MirrorConfig, prompts: ScenePrompts, adapters: Sequence[Path]) -> OptionReader:
    """The model with adapters, ready to read scenes.

    Raises:
        AssetError: there is no such model, or its tokenizer cuts letters.
        ArtifactError: an adapter cannot be read.
    """
    import torch

    model, tokenizer = load_causal_lm(config.model, field="mirror.model", adapters=adapters)
    backbone = Backbone(model, tokenizer).to("cuda" if torch.cuda.is_available() else "cpu")
    return OptionReader(backbone.to(getattr(torch, config.precision)), prompts)


def _claim(output: Path, config: MirrorConfig) -> None:
    output.mkdir(parents=True, exist_ok=True)
    path, values = output / _CONFIG, config.model_dump(mode="json")
    if path.exists() and json.loads(path.read_text()) != values:
        raise ConfigError(f"mirror: {output} was begun with other settings; name another directory, or delete it")
    write_json(path, values)


# ---- evidence ------------------------------------------------------------------------------------------------------


def _evidence(config: MirrorConfig, world: World, path: Path) -> list[Evidence]:
    """What was written about each training scene; kept line by line."""
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    if len(lines) < len(world.train):
        # A kill can cut a block short.
        whole = len(lines) // config.reading.together * config.reading.together
        path.write_text("".join(f"{line}\n" for line in lines[:whole]))
        _gather(config, world, whole, path)
        lines = path.read_text().splitlines()
    known = [json.loads(line) for line in lines]
    return [
        Evidence(
            scene=scene,
            teacher=[Rationale(**each) for each in row["teacher"]],
            student=[Rationale(**each) for each in row["student"]],
            chances=np.array(row["chances"]).reshape(-1, len(scene.options)),
        )
        for scene, row in zip(world.train, known, strict=True)
    ]


def _gather(config: MirrorConfig, world: World, begin: int, path: Path) -> None:
    teacher = _teacher(config, world)
    # A reader's draws and a teacher's cache are by block, so a run that goes on begins with a block.
    reader = load_reader(config, world.prompts, [])
    chains = config.reading.chains.model_copy(update={"temperature": 1.0, "top_p": 0.9})
    size = config.reading.together
    with progress_bar("decision processes", len(world.train)) as advance, path.open("a") as file:
        advance(begin, "")
        for first in range(begin, len(world.train), size):
            block = world.train[first : first + size]
            taught = teacher.write(block, config.teacher_draws, seed=config.seed + first)
            own = _own(reader, block, config.student_draws, chains, seed=config.seed + first)
            for scene, strong, weak in zip(block, taught, own, strict=True):
                written = [*strong, *weak]
                chances = reader.weigh(scene, [each.text for each in written]) if written else np.zeros((0, 0))
                row = {
                    "teacher": [asdict(each) for each in strong],
                    "student": [asdict(each) for each in weak],
                    "chances": chances.tolist(),
                }
                file.write(f"{json.dumps(row)}\n")
            file.flush()
            advance(len(block), "")


def _teacher(config: MirrorConfig, world: World) -> RationaleWriter:
    if config.chat is None:
        return RuleWriter(world.prompts, world.item_counts, temperature=config.teacher_temperature)
    writer = ChatWriter(config.chat, "mirror.chat", label=None)
    return TextRationales(writer, world.prompts, temperature=config.teacher_temperature)


def _own(
    reader: OptionReader, scenes: Sequence[Scene], draws: int, chains: ReasonConfig, *, seed: int
) -> list[list[Rationale]]:
    """Different decision processes that the model writes itself."""
    if draws == 0:
        return [[] for _ in scenes]
    _, texts = reader.reasoned([[scene] * draws for scene in scenes], chains, seed=seed)
    return [
        [Rationale(text=text, concludes=None) for text in dict.fromkeys(texts[row * draws : (row + 1) * draws])]
        for row in range(len(scenes))
    ]


# ---- fit -----------------------------------------------------------------------------------------------------------


def _answers(config: MirrorConfig, world: World, learned: Sequence[Lesson]) -> list[tuple[str, str]]:
    """Scenes and the answers to them, in random order: decision process and letter, or the letter alone."""
    prompts = world.prompts
    random = np.random.default_rng([config.seed, 2])
    rows = [
        (prompts.prompt(lesson.scene, "reasoned"), prompts.answer(lesson.scene.chosen, lesson.chosen.text))
        for lesson in learned
    ]
    for scene in world.train:
        if random.random() < config.sft.direct_share:
            rows.append((prompts.prompt(scene, "direct"), prompts.answer(scene.chosen)))
    return [rows[row] for row in random.permutation(len(rows))]


def _supervise(config: MirrorConfig, world: World, learned: Sequence[Lesson], output: Path) -> None:
    try:
        # Imported here: it is an extra, and takes seconds.
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer
    except ImportError as error:
        raise ConfigError(f"mirror: needs TRL ({error}); install it with `pip install 'recsys[trl]'`") from error
    model, tokenizer = load_causal_lm(config.model, field="mirror.model")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    settings = config.sft
    rows: list[dict[str, Any]] = []
    for prompt, answer in _answers(config, world, learned):
        rendered = chat_prompt(tokenizer, prompt)
        # Cut into tokens apart, as a reader cuts them.
        asked = tokenizer(rendered, add_special_tokens=False)["input_ids"]
        said = [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        if len(asked) + len(said) <= settings.max_tokens:
            rows.append({"input_ids": asked + said, "completion_mask": [0] * len(asked) + [1] * len(said)})
    if not rows:
        raise ConfigError(f"mirror: sft.max_tokens={settings.max_tokens} is less than any scene takes; raise it")
    arguments = trainer_arguments(
        output,
        learning_rate=settings.learning_rate,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        max_tokens=settings.max_tokens,
        seed=config.seed,
        checkpoint_steps=config.checkpoint_steps,
        bf16=config.precision == "bfloat16",
    ) | {"lr_scheduler_type": "cosine", "warmup_steps": settings.warmup_steps, "completion_only_loss": True}
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(**arguments),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=adapter_config(settings.rank),
    )
    fit_adapter(trainer, output)


def _pair(prompts: ScenePrompts, lesson: Lesson) -> TextPair | None:
    if lesson.rejected is None:
        return None
    return TextPair(
        user=lesson.scene.user,
        prompt=prompts.prompt(lesson.scene, "reasoned"),
        chosen=prompts.answer(lesson.scene.chosen, lesson.chosen.text),
        rejected=prompts.answer(lesson.rejected_place, lesson.rejected.text),
        gap=lesson.gap,
    )


def _facts(
    world: World, evidence: Sequence[Evidence], learned: Sequence[Lesson], pairs: Sequence[TextPair]
) -> dict[str, Any]:
    taught = [each.chances[: len(each.teacher)] for each in evidence if each.teacher]
    own = [each.chances[len(each.teacher) :] for each in evidence if each.student]
    followed = [
        float(row[rationale.concludes])
        for each in evidence
        for rationale, row in zip(each.rationales, each.chances, strict=True)
        if rationale.concludes is not None
    ]
    return {
        "train_scenes": len(world.train),
        "test_scenes": len(world.test),
        "lessons": len(learned),
        "pairs": len(pairs),
        "teacher_entropy": float(np.mean([uncertainty(chances).expected for chances in taught])),
        "student_entropy": float(np.mean([uncertainty(chances).expected for chances in own])) if own else None,
        "gap": float(np.mean([uncertainty(each.chances).gap for each in evidence if len(each.chances)])),
        "reader_follows_teacher": float(np.mean(followed)) if followed else None,
        "example": {
            "prompt": world.prompts.prompt(learned[0].scene, "reasoned"),
            "chosen": world.prompts.answer(learned[0].scene.chosen, learned[0].chosen.text),
        },
    }


# ---- judgement -----------------------------------------------------------------------------------------------------


def _judge(config: MirrorConfig, world: World, output: Path) -> dict[str, Any]:
    scenes = world.test
    plain: dict[str, list[DoubleArray]] = {
        "random": [np.full(len(scene.options), 1 / len(scene.options)) for scene in scenes],
        "popularity": [_share(world.item_counts[list(scene.options)].astype(np.float64) + 1) for scene in scenes],
        "neighbours": [_share(np.exp(4 * _nearness(world, scene))) for scene in scenes],
        "choice model": _fast_choices(world, config.seed),
    }
    table: dict[str, Any] = {name: score(scenes, chances, config.seed) for name, chances in plain.items()}
    base: dict[Mode, list[DoubleArray]] = {}
    for arm, adapters in arm_adapters(output).items():
        cases: dict[str, tuple[Mode, list[Scene]]] = {mode: (mode, scenes) for mode in config.modes}
        if arm == DPO:
            # The control: what is known of the user is another one's.
            cases["other history"] = (config.modes[0], _exchanged(scenes))
        reader: OptionReader | None = None
        for name, (mode, asked) in cases.items():
            path = output / f"reads-{arm}-{name.replace(' ', '-')}.json"
            if not path.exists():
                reader = reader or load_reader(config, world.prompts, adapters)
                _keep(path, read_scenes(reader, asked, mode, config.reading, f"choices: {arm}, {name}"))
            reads = _kept(path)
            chances = [each.chances for each in reads]
            base.setdefault(mode, chances)
            table[f"{arm} {name}"] = {
                **score(scenes, chances, config.seed),
                "accuracy_minus_base": gain(scenes, chances, base[mode], config.seed),
                "accuracy_minus_popularity": gain(scenes, chances, plain["popularity"], config.seed),
                "agrees_with_choice_model": agreement(chances, plain["choice model"]),
                "place": by_place(scenes, reads),
                "example": reads[0].texts[0] if reads[0].texts else None,
            }
    return table


def _exchanged(scenes: Sequence[Scene]) -> list[Scene]:
    """Each scene with the history of the next one."""
    return [
        replace(scene, history=other.history) for scene, other in zip(scenes, [*scenes[1:], scenes[0]], strict=True)
    ]


def _fast_choices(world: World, seed: int) -> list[DoubleArray]:
    """What the choice model that is not a language model says, fitted on all users but those that are foretold."""
    model = fit_choice_model(world.catalog, world.known, FitConfig(seed=seed))
    histories = Sequences.from_lists([scene.history for scene in world.test])
    slates = np.array([scene.options for scene in world.test])
    recent = np.full((len(slates), SATIATING), -1, dtype=np.int64)
    utilities = model.utilities(model.remember(histories), recent, slates, Traits.ordinary(len(slates)))
    return list(softmax(utilities.astype(np.float64) / model.parameters.temperature, axis=1))


def _nearness(world: World, scene: Scene) -> DoubleArray:
    recent = world.vectors[list(scene.history[-10:])].mean(axis=0)
    return np.asarray(world.vectors[list(scene.options)] @ recent, dtype=np.float64)


def _share(weights: DoubleArray) -> DoubleArray:
    return np.asarray(weights / weights.sum(), dtype=np.float64)


def _keep(path: Path, reads: Sequence[Read]) -> None:
    write_json(
        path,
        [{"by_order": each.by_order.tolist(), "at": each.at.tolist(), "texts": list(each.texts)} for each in reads],
    )


def _kept(path: Path) -> list[Read]:
    return [
        Read(by_order=np.array(row["by_order"]), at=np.array(row["at"]), texts=tuple(row["texts"]))
        for row in json.loads(path.read_text())
    ]


def summary(report: Mapping[str, Any]) -> list[str]:
    """The rows as lines of text."""
    lines = [f"{'row':<20}{'accuracy':>24}{'log-loss, calibrated':>26}{'spread':>8}"]
    for name, row in report["rows"].items():
        cells = [
            f"{row[metric]['value']:.3f} [{row[metric]['low']:.3f}, {row[metric]['high']:.3f}]"
            for metric in ("accuracy", "log_loss_calibrated")
        ]
        spread = f"{row['place']['spread']:.3f}" if "place" in row else ""
        lines.append(f"{name:<20}{cells[0]:>24}{cells[1]:>26}{spread:>8}")
    return lines
