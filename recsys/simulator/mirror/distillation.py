"""Which scenes and which decision processes are worth learning from (UserMirrorer, arXiv 2508.18142, phase 2).

A fixed reader turns each decision process k of a scene into p_k, probabilities of the options. Of a scene, in bits:

    total     H(mean_k p_k)                  how open the decision is over all that was written
    expected  mean_k H(p_k)                  how open it is after reading one of them
    gap       total - expected               how much the writers disagree (mutual information)

(The authors' code calls `expected` the model's and `gap` the data's uncertainty, the reverse of common usage.) A scene
is kept where at least one decision process led to what was taken; kept scenes count by what the student finds hard and
the teacher clear, D = expected(student) - expected(teacher), or by the gap of all. What a decision process leads to is
*drawn* from p_k, as in the paper; a reader that is too weak to follow what it reads can leave that to the writer. Knows
no prompts and no models.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field
from scipy.special import xlogy

from recsys.config import StrictConfig
from recsys.simulator.mirror.rationales import Rationale
from recsys.simulator.mirror.scenes import Scene

DoubleArray = npt.NDArray[np.float64]


class DistillConfig(StrictConfig):
    """What is learned from."""

    scenes: int = Field(default=10_000, ge=1)
    """Scenes that are kept at most; of each number of options in proportion."""
    by: Literal["difference", "gap", "random"] = "difference"
    """What scenes are ranked by: D, the gap of all decision processes, or nothing, which is the control."""
    behaviour: Literal["drawn", "concluded"] = "drawn"
    """What a decision process led to: a draw from what the reader made of it, or what its writer concluded, where it
    said so. The latter for small models, of whose draws hardly any has to do with what was read."""
    seed: int = 0
    """Of the drawn behaviours, and of the control."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """What was written about a scene, and where it led."""

    scene: Scene
    teacher: Sequence[Rationale]
    """Of the strong writer."""
    student: Sequence[Rationale]
    """Of the model that is to learn."""
    chances: DoubleArray
    """float64 [len(teacher) + len(student), S]: p_k, in that order."""

    @property
    def rationales(self) -> list[Rationale]:
        """All, the teacher's first."""
        return [*self.teacher, *self.student]


@dataclass(frozen=True, kw_only=True)
class Uncertainty:
    """Of one scene, in bits."""

    total: float
    expected: float

    @property
    def gap(self) -> float:
        """How much the decision processes disagree; never below 0."""
        return self.total - self.expected


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """A scene with what is to be learned from it."""

    scene: Scene
    chosen: Rationale
    """Led to what was taken, with the least doubt; of the teacher."""
    rejected: Rationale | None
    """Led to something else, with the least doubt; of either. None where all led to what was taken."""
    rejected_place: int
    """What it led to; -1 without one."""
    gap: float
    """How much more doubt the rejected one left than the chosen one, in bits; 0 without one."""


def entropy(chances: DoubleArray) -> DoubleArray:
    """float64 [...] in bits, of probabilities float64 [..., S]."""
    return np.asarray(-xlogy(chances, chances).sum(axis=-1) / np.log(2))


def uncertainty(chances: DoubleArray) -> Uncertainty:
    """Of probabilities float64 [K, S] after K decision processes."""
    return Uncertainty(total=float(entropy(chances.mean(axis=0))), expected=float(entropy(chances).mean()))


def lessons(evidence: Sequence[Evidence], config: DistillConfig) -> list[Lesson]:
    """The best scenes, in the order of `evidence`: those whose teacher led to what was taken at least once.

    A decision process that its own writer concluded otherwise is never the chosen one: it would be learned with a
    letter that contradicts its words.
    """
    found: list[tuple[float, int, Lesson]] = []
    for row, each in enumerate(evidence):
        random = np.random.default_rng([config.seed, row])
        lesson = _lesson(each, config, random)
        if lesson is not None:
            found.append((_rank(each, config, random), row, lesson))
    by_size: dict[int, list[tuple[float, int, Lesson]]] = defaultdict(list)
    for scored in found:
        by_size[len(scored[2].scene.options)].append(scored)
    share = min(1.0, config.scenes / max(1, len(found)))
    kept = [
        scored
        for group in by_size.values()
        for scored in sorted(group, key=lambda scored: (-scored[0], scored[1]))[: max(1, round(share * len(group)))]
    ]
    return [lesson for _, _, lesson in sorted(kept, key=lambda scored: scored[1])[: config.scenes]]


def _rank(evidence: Evidence, config: DistillConfig, random: np.random.Generator) -> float:
    if config.by == "random":
        return float(random.random())
    if config.by == "gap":
        return uncertainty(evidence.chances).gap
    teacher, student = evidence.chances[: len(evidence.teacher)], evidence.chances[len(evidence.teacher) :]
    # Where the student wrote nothing, nothing is known of what it finds hard: the most that can be.
    hard = float(entropy(student).mean()) if len(student) else float(np.log2(evidence.chances.shape[1]))
    return hard - float(entropy(teacher).mean())


def _lesson(evidence: Evidence, config: DistillConfig, random: np.random.Generator) -> Lesson | None:
    if not evidence.teacher:
        return None
    target = evidence.scene.chosen
    cumulated = evidence.chances.cumsum(axis=1)
    draws = random.random(len(cumulated)) * cumulated[:, -1]
    behaviours = (cumulated < draws[:, None]).sum(axis=1)
    rationales = evidence.rationales
    if config.behaviour == "concluded":
        behaviours = np.array(
            [
                drawn if each.concludes is None else each.concludes
                for drawn, each in zip(behaviours.tolist(), rationales, strict=True)
            ]
        )
    doubts = entropy(evidence.chances)
    right = [
        number
        for number in range(len(evidence.teacher))
        if behaviours[number] == target and rationales[number].concludes in (None, target)
    ]
    if not right:
        return None
    chosen = min(right, key=lambda number: (doubts[number], number))
    # One that argued for what was taken, and was misread, is no bad example.
    wrong = [
        number
        for number in range(len(rationales))
        if behaviours[number] != target and rationales[number].concludes != target
    ]
    if not wrong:
        return Lesson(scene=evidence.scene, chosen=rationales[chosen], rejected=None, rejected_place=-1, gap=0.0)
    rejected = min(wrong, key=lambda number: (doubts[number], number))
    concluded = rationales[rejected].concludes
    return Lesson(
        scene=evidence.scene,
        chosen=rationales[chosen],
        rejected=rationales[rejected],
        rejected_place=int(behaviours[rejected]) if concluded is None else concluded,
        gap=float(doubts[rejected] - doubts[chosen]),
    )
