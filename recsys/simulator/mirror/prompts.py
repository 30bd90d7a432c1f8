"""Scenes in words, and the texts that a model is expected to answer with. Knows no models."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Literal

from recsys.profile.attributes import ItemAttributes
from recsys.profile.template import TemplateProfiler
from recsys.simulator.mirror.scenes import NOTHING, Scene
from recsys.simulator.mirror.wording import MirrorWording

Mode = Literal["direct", "reasoned"]


def letters(count: int) -> str:
    """Names of `count` options."""
    return string.ascii_uppercase[:count]


class ScenePrompts:
    """Puts scenes into words.

    Args:
        attributes: of the catalogue.
        wording: sentences.
        max_history: items of the history that are named, the most recent ones.
        max_categories: categories of an item that are named.
        profiler: writes what stands for the whole history before a scene; None: nothing does.
    """

    def __init__(
        self,
        attributes: ItemAttributes,
        wording: MirrorWording,
        *,
        max_history: int = 8,
        max_categories: int = 3,
        profiler: TemplateProfiler | None = None,
    ) -> None:
        self.attributes = attributes
        self.wording = wording
        self.max_history = max_history
        self._max_categories = max_categories
        self._profiler = profiler

    def item(self, item: int) -> str:
        """An item, or taking nothing, in words."""
        if item == NOTHING:
            return self.wording.nothing
        names = [each.name for each in self.attributes.of(item) if each.kind == "category"][: self._max_categories]
        title = self.attributes.titles[item] or self.attributes.item_ids[item]
        return f"{title} ({', '.join(names)})" if names else title

    def prompt(self, scene: Scene, mode: Mode) -> str:
        """What a model reads of `scene`; options in its order."""
        wording = self.wording
        memory = "" if self._profiler is None else self._profiler.write([scene.history])[0].profile.text
        lines = [
            wording.option.format(letter=letter, item=self.item(item))
            for letter, item in zip(letters(len(scene.options)), scene.options, strict=True)
        ]
        history = scene.history[-self.max_history :]
        return wording.scene.format(
            memory=wording.memory.format(profile=memory) if memory else "",
            history="\n".join(wording.event.format(item=self.item(item)) for item in history),
            options="\n".join(lines),
            question=wording.question.direct if mode == "direct" else wording.question.reasoned,
        )

    def answer(self, place: int, rationale: str = "") -> str:
        """The whole answer that takes the option at `place`."""
        return (
            f"{rationale}\n{self.cue} {letters(place + 1)[-1]}" if rationale else f"{self.cue} {letters(place + 1)[-1]}"
        )

    @property
    def cue(self) -> str:
        """What stands before the letter."""
        return self.wording.answer

    def stated(self, text: str, options: int) -> tuple[str, int | None]:
        """What stands before the answer in a written text, and the place that the answer names, if any."""
        before, _, after = text.partition(self.cue)
        letter = after.strip().strip("[").strip()[:1]
        place = letters(options).find(letter) if letter else -1
        return before.strip(), place if place >= 0 else None


def order_of(size: int, rotation: int) -> Sequence[int]:
    """Options moved on by `rotation` places: over all rotations, each stands at each place once."""
    return [(place + rotation) % size for place in range(size)]
