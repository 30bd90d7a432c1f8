"""How well each step of a simulator foretells choices, beside models that read no words; and what it was fitted on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import softmax

from recsys.data import Sequences
from recsys.files import write_json
from recsys.profile.pairs import TextPair
from recsys.simulator.behaviour.fit import fit_choice_model
from recsys.simulator.behaviour.fitting import FitConfig
from recsys.simulator.behaviour.history import SATIATING
from recsys.simulator.behaviour.stress import Traits
from recsys.simulator.mirror.distillation import Evidence, Lesson, uncertainty
from recsys.simulator.mirror.prompts import Mode
from recsys.simulator.mirror.reader import OptionReader
from recsys.simulator.mirror.scenes import Scene
from recsys.simulator.mirror.scorecard import agreement, by_place, gain, score
from recsys.simulator.mirror.simulator import Read, read_scenes
from training.mirror_world import MirrorConfig, World, load_reader

DoubleArray = npt.NDArray[np.float64]


def facts(
    world: World, evidence: Sequence[Evidence], learned: Sequence[Lesson], pairs: Sequence[TextPair]
) -> dict[str, Any]:
    """What was written, and learned from it; entropies in bits."""
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


def judge(config: MirrorConfig, world: World, output: Path, arms: Mapping[str, Sequence[Path]]) -> dict[str, Any]:
    """A row for each model.

    Args:
        config: how choices are foretold.
        world: the scenes.
        output: what was read is kept there, and not read again.
        arms: steps of the fit by name, the untuned model first, as adapters one on top of the other. The last one is
            also shown another user's history.
    """
    scenes = world.test
    plain: dict[str, list[DoubleArray]] = {
        "random": [np.full(len(scene.options), 1 / len(scene.options)) for scene in scenes],
        "popularity": [_share(world.item_counts[list(scene.options)].astype(np.float64) + 1) for scene in scenes],
        "neighbours": [_share(np.exp(4 * _nearness(world, scene))) for scene in scenes],
        "choice model": _fast_choices(world, config.seed),
    }
    table: dict[str, Any] = {name: score(scenes, chances, config.seed) for name, chances in plain.items()}
    base: dict[Mode, list[DoubleArray]] = {}
    for arm, adapters in arms.items():
        cases: dict[str, tuple[Mode, list[Scene]]] = {mode: (mode, scenes) for mode in config.modes}
        if arm == list(arms)[-1]:
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
