"""Aligns a language model with how users choose: evidence, supervised fit, DPO, and how each step foretells choices.

The order of UserMirrorer (arXiv 2508.18142): teacher and student write decision processes, the untuned student reads
what they lead to, the best are learned (SFT), then preferred to the worst (DPO). Each step is kept in the output, so
that a run that was killed goes on where it was. Users of the fit are others than those that are foretold.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from recsys.errors import ConfigError
from recsys.extras import require_extra
from recsys.files import write_json
from recsys.generator.lm.backbone import load_causal_lm
from recsys.generator.lm.reason import ReasonConfig
from recsys.profile.pairs import TextPair
from recsys.profile.writers import ChatWriter, chat_prompt
from recsys.progress import progress_bar
from recsys.simulator.mirror.distillation import Evidence, Lesson, lessons
from recsys.simulator.mirror.prompts import ScenePrompts
from recsys.simulator.mirror.rationales import Rationale, RationaleWriter, RuleWriter, TextRationales
from recsys.simulator.mirror.reader import OptionReader
from recsys.simulator.mirror.scenes import Scene
from training.mirror_report import facts, judge
from training.mirror_world import MirrorConfig, World, load_reader, make_world
from training.profile_tuning import adapter_config, fit_adapter, trainer_arguments, tune_writer

BASE, SFT, DPO = "base", "sft", "sft_dpo"
SFT_ADAPTER, DPO_ADAPTER = "sft", "dpo"
"""Directories of the adapters below the output; the second goes on top of the first."""
_CONFIG, _EVIDENCE, _REPORT = "config.json", "evidence.jsonl", "report.json"


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
    if not (output / DPO_ADAPTER).is_dir():
        require_extra("trl", needed_by="mirror")
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
            mixed=config.precision == "bfloat16",
            section="mirror.dpo",
        )
    report = {
        "facts": facts(world, evidence, learned, pairs),
        "rows": judge(config, world, output, arm_adapters(output)),
    }
    write_json(output / _REPORT, report)
    return report


def arm_adapters(output: Path) -> dict[str, list[Path]]:
    """The adapters of each step, by its name."""
    sft, dpo = output / SFT_ADAPTER, output / DPO_ADAPTER
    return {BASE: [], SFT: [sft], DPO: [sft, dpo]}


def _claim(output: Path, config: MirrorConfig) -> None:
    output.mkdir(parents=True, exist_ok=True)
    # Further ways of reading take nothing back.
    path, values = output / _CONFIG, config.model_dump(mode="json", exclude={"modes"})
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
    # Imported here: it is an extra, and takes seconds.
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

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
        mixed=config.precision == "bfloat16",
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
