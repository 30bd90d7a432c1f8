"""A language model that chooses from slates as users do: probabilities averaged over orders of the options.

Language models prefer some letters and places whatever stands there. Each scene is therefore read in several orders:
over all rotations every option stands at every place once, and the mean forgets the place. How far the orders disagree
is reported. A temperature, and a weight of taking nothing, are fitted on scenes that were held out.

Shapes: n scenes, S options, R orders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydantic import Field
from scipy.optimize import minimize
from scipy.special import softmax

from recsys.config import StrictConfig
from recsys.data.sequences import IntArray, Sequences
from recsys.errors import DataError
from recsys.generator.lm.reason import ReasonConfig
from recsys.progress import progress_bar
from recsys.simulator.mirror.prompts import Mode, order_of
from recsys.simulator.mirror.reader import OptionReader
from recsys.simulator.mirror.scenes import NOTHING, Scene

DoubleArray = npt.NDArray[np.float64]


class ReadingConfig(StrictConfig):
    """How scenes are read."""

    orders: int = Field(default=5, ge=1)
    """Rotations of the options, at most as many as there are options; each has a decision process of its own."""
    chains: ReasonConfig = ReasonConfig(chains=1, max_tokens=64, temperature=1.0, top_p=0.8)
    """How decision processes are drawn; `chains` is not used, there is one an order."""
    together: int = Field(default=8, ge=1)
    """Scenes whose decision processes are written at once."""
    seed: int = 0
    """Of the decision processes."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Read:
    """One scene as the model reads it."""

    by_order: DoubleArray
    """float64 [R, S]: the probability of each option, by the scene's own place, in each order."""
    at: IntArray
    """int64 [R, S]: at which place each option stood."""
    texts: tuple[str, ...]
    """Decision processes, one an order; none in the direct mode."""

    @property
    def chances(self) -> DoubleArray:
        """float64 [S]: the mean over the orders."""
        return np.asarray(self.by_order.mean(axis=0))

    @property
    def spread(self) -> float:
        """Standard deviation of an option's probability over the orders, averaged over the options; 0 for a model that
        place means nothing to."""
        return float(self.by_order.std(axis=0).mean())


def read_scenes(
    reader: OptionReader, scenes: Sequence[Scene], mode: Mode, config: ReadingConfig, label: str
) -> list[Read]:
    """Each scene in all its orders: `direct` reads the letters alone, which is quick; `reasoned` lets the model write a
    decision process first."""
    found: list[Read] = []
    with progress_bar(label, len(scenes)) as advance:
        for begin in range(0, len(scenes), config.together):
            block = scenes[begin : begin + config.together]
            orders = [
                [order_of(len(scene.options), rotation) for rotation in range(min(config.orders, len(scene.options)))]
                for scene in block
            ]
            groups = [
                [scene.in_order(order) for order in rotations] for scene, rotations in zip(block, orders, strict=True)
            ]
            if mode == "direct":
                chances = [chances for group in groups for chances in reader.direct(group)]
                texts: list[str] = []
            else:
                chances, texts = reader.reasoned(groups, config.chains, seed=config.seed + begin)
            first = 0
            for rotations in orders:
                last = first + len(rotations)
                # Option o stands where the order has it.
                at = np.argsort(np.array(rotations), axis=1)
                by_order = np.take_along_axis(np.stack(chances[first:last]), at, axis=1)
                found.append(Read(by_order=by_order, at=at, texts=tuple(texts[first:last])))
                first = last
            advance(len(block), "")
    return found


class Calibration(StrictConfig):
    """p(option) is proportional to its mean probability to the power 1 / temperature, times exp(`nothing`) for taking
    nothing."""

    temperature: float = Field(default=1.0, gt=0)
    nothing: float = 0.0

    def apply(self, scene: Scene, chances: DoubleArray) -> DoubleArray:
        """float64 [S] from float64 [S]."""
        offsets = np.where(np.array(scene.options) == NOTHING, self.nothing, 0.0)
        return np.asarray(softmax(np.log(np.maximum(chances, 1e-12)) / self.temperature + offsets))

    @classmethod
    def fit(cls, scenes: Sequence[Scene], chances: Sequence[DoubleArray]) -> Calibration:
        """The likeliest one, with a weak pull towards no change.

        Raises:
            DataError: there is no scene.
        """
        if not scenes:
            raise DataError("calibration: there is no scene to fit it on; hold some out")
        has_nothing = any(NOTHING in scene.options for scene in scenes)

        def loss(parameters: DoubleArray) -> float:
            guess = cls(temperature=float(np.exp(parameters[0])), nothing=float(parameters[1]) * has_nothing)
            logs = [
                np.log(max(guess.apply(scene, row)[scene.chosen], 1e-300))
                for scene, row in zip(scenes, chances, strict=True)
            ]
            return float(-np.mean(logs) + 0.01 * np.square(parameters).sum() / len(scenes))

        bounds = [(-3.0, 5.0), (-8.0, 8.0)]
        found = minimize(loss, np.zeros(2), method="L-BFGS-B", bounds=bounds).x
        return cls(temperature=float(np.exp(found[0])), nothing=float(found[1]) * has_nothing)


class MirrorSimulator:
    """Users who choose from slates.

    Args:
        reader: of the model that plays them.
        config: how scenes are read.
        calibration: what was fitted on held-out scenes.
        mode: see `read_scenes`.
        nothing: taking nothing is an option; else every slate is taken from.
    """

    def __init__(
        self,
        reader: OptionReader,
        config: ReadingConfig,
        calibration: Calibration | None = None,
        *,
        mode: Mode = "direct",
        nothing: bool = False,
    ) -> None:
        self._reader = reader
        self._config = config
        self._calibration = Calibration() if calibration is None else calibration
        self._mode: Mode = mode
        self._nothing = nothing

    def chances(self, histories: Sequences, items: IntArray) -> DoubleArray:
        """float64 [n, S]: probability of each place of slates int64 [n, S]; the rest is the chance of no choice.

        Args:
            histories: n histories, with their users.
            items: -1 = an empty place, which is never chosen.

        Raises:
            DataError: there is not one slate a history.
        """
        if items.ndim != 2 or len(items) != len(histories):
            raise DataError(f"slates: must be [n, S] for {len(histories)} histories, got {list(items.shape)}")
        nothing = (NOTHING,) if self._nothing else ()
        chances = np.zeros(items.shape)
        shown = [np.flatnonzero(row >= 0) for row in items]
        # Where there is one thing to do, nobody need be asked.
        asked = [row for row, places in enumerate(shown) if len(places) + len(nothing) > 1 and len(places)]
        scenes = [
            Scene(
                user=int(histories.users[row]),
                history=tuple(int(item) for item in histories[row]),
                options=(*(int(item) for item in items[row, shown[row]]), *nothing),
                chosen=0,
            )
            for row in asked
        ]
        for row, scene, read in zip(
            asked, scenes, read_scenes(self._reader, scenes, self._mode, self._config, "choices"), strict=True
        ):
            chances[row, shown[row]] = self._calibration.apply(scene, read.chances)[: len(shown[row])]
        for row, places in enumerate(shown):
            if len(places) == 1 and not nothing:
                chances[row, places] = 1.0
        return chances
