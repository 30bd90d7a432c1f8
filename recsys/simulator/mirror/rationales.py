"""Who writes how a user came to decide: stimulus, knowledge, evaluation. No writer is told what was taken.

`RuleWriter` argues from metadata, offline. `TextRationales` asks any `TextWriter`: a model on this machine, or a chat
model behind an OpenAI-compatible URL. Both write several a scene, some of which argue for the wrong option: which are
of use is decided later (`distillation`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.special import softmax

from recsys.data.sequences import IntArray
from recsys.profile.attributes import Attribute
from recsys.profile.writers import TextWriter
from recsys.simulator.mirror.prompts import ScenePrompts
from recsys.simulator.mirror.scenes import NOTHING, Scene

_POPULAR_SHARE = 0.9


@dataclass(frozen=True, kw_only=True)
class Rationale:
    """A decision process without its decision."""

    text: str
    """Stimulus, knowledge, evaluation; without the letter."""
    concludes: int | None
    """The place that its writer went on to take, where it said so."""


class RationaleWriter(Protocol):
    """Writes decision processes."""

    def write(self, scenes: Sequence[Scene], draws: int, *, seed: int) -> list[list[Rationale]]:
        """At most `draws` different ones for each scene; none where nothing of use was written."""
        ...


class RuleWriter:
    """Decision processes from categories, decades and popularity: the offline substitute for a strong model.

    It takes options at random, those first that share more with the history, and says truly what they share.

    Args:
        prompts: names items and holds the sentences.
        item_counts: int64 [num_items], how often each is chosen.
        temperature: of the draw of options.
    """

    def __init__(self, prompts: ScenePrompts, item_counts: IntArray, *, temperature: float = 1.0) -> None:
        self._prompts = prompts
        self._factors = prompts.wording.factors
        self._counts = item_counts
        self._popular = float(np.quantile(item_counts, _POPULAR_SHARE))
        self._temperature = temperature

    def write(self, scenes: Sequence[Scene], draws: int, *, seed: int) -> list[list[Rationale]]:
        """See `RationaleWriter.write`."""
        return [self._write(scene, draws, np.random.default_rng([seed, row])) for row, scene in enumerate(scenes)]

    def _write(self, scene: Scene, draws: int, random: np.random.Generator) -> list[Rationale]:
        history = scene.history[-self._prompts.max_history :]
        met = Counter(attribute for item in history for attribute in self._telling(item))
        worth = np.array([self._worth(item, met, len(history)) for item in scene.options])
        # Gumbel keys: a draw without replacement, by the softmax of what the options are worth.
        keys = np.log(softmax(worth / self._temperature)) + random.gumbel(size=len(worth))
        return [
            Rationale(text=self._argue(scene.options[place], met, len(history)), concludes=int(place))
            for place in np.argsort(-keys)[:draws]
        ]

    def _worth(self, item: int, met: Counter[Attribute], total: int) -> float:
        if item == NOTHING or total == 0:
            return 0.0
        shared = sum(met[attribute] for attribute in self._telling(item)) / total
        return float(2 * shared + 0.2 * np.log1p(self._counts[item]))

    def _argue(self, item: int, met: Counter[Attribute], total: int) -> str:
        factors = self._factors
        if item == NOTHING:
            return self._prompts.wording.process.format(
                stimulus=factors.nothing,
                knowledge=factors.unknown.format(total=total),
                evaluation=factors.nothing,
                style="habitual",
            )
        attributes = self._telling(item)
        names = ", ".join(each.name for each in attributes[:3]) or self._prompts.attributes.titles[item]
        popular = self._counts[item] >= self._popular
        best = max(attributes, key=lambda each: met[each], default=None)
        known = best is not None and met[best] > 0
        verdict = factors.fits if known else factors.tempts
        return self._prompts.wording.process.format(
            stimulus=(factors.popular if popular else factors.stimulus).format(names=names),
            knowledge=factors.known.format(count=met[best], total=total, name=best.name)
            if best is not None and known
            else factors.unknown.format(total=total),
            evaluation=verdict.format(item=self._prompts.attributes.titles[item]),
            style=("logical" if known else "impulsive") if not popular else ("habitual" if known else "intuitive"),
        )

    def _telling(self, item: int) -> list[Attribute]:
        """Attributes that not everything has, categories first."""
        attributes = self._prompts.attributes
        return [each for each in attributes.of(item) if each not in attributes.commonplace]


class TextRationales:
    """Decision processes from a model that writes texts.

    Args:
        writer: answers prompts; its answers are to end with the letter that it takes.
        prompts: puts scenes into words.
        temperature: of the texts.
    """

    def __init__(self, writer: TextWriter, prompts: ScenePrompts, *, temperature: float = 1.0) -> None:
        self._writer = writer
        self._prompts = prompts
        self._temperature = temperature
        self.malformed = 0
        """Answers that did not begin as a decision process does, or named no option."""

    def write(self, scenes: Sequence[Scene], draws: int, *, seed: int) -> list[list[Rationale]]:
        """See `RationaleWriter.write`."""
        lead = self._prompts.wording.lead
        form = self._prompts.wording.process.format(stimulus="…", knowledge="…", evaluation="…", style="…")
        asked = [f"{self._prompts.prompt(scene, 'reasoned')}\n\n{form}\n{self._prompts.cue} …" for scene in scenes]
        found: list[dict[str, Rationale]] = [{} for _ in scenes]
        for draw in range(draws):
            texts = self._writer.write(asked, temperature=self._temperature, seed=seed + draw)
            for row, (scene, text) in enumerate(zip(scenes, texts, strict=True)):
                before, place = self._prompts.stated(text, len(scene.options))
                if place is None or not before.startswith(lead):
                    self.malformed += 1
                else:
                    found[row][before] = Rationale(text=before, concludes=place)
        return [list(rationales.values()) for rationales in found]
