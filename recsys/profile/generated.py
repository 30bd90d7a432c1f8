"""Profiles by a language model: prompts from histories, texts to statements, and many different ones of one user.

LettinGo (arXiv 2506.18309) explores with several models, a prompt that asks for no format, and high temperature; what
differs is what preference pairs are made of. AlignXplore (arXiv 2505.18071) goes on from the last profile and the new
events alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from recsys.profile.attributes import ItemAttributes
from recsys.profile.faithfulness import EvidenceFinder
from recsys.profile.profile import Profile
from recsys.profile.profiler import Profiler, Written
from recsys.profile.wording import Wording
from recsys.profile.writers import TextWriter


class LanguageProfiler:
    """One way to ask one model.

    Args:
        writer: writes the texts.
        attributes: of the catalogue.
        wording: the prompts.
        style: name of the prompt in `wording.styles`; the first of them when None.
        temperature: of the draws; 0 for the likeliest text.
        max_events: events that a prompt names, the newest.
        seed: of the draws.

    Raises:
        ValueError: there is no such style.
    """

    def __init__(
        self,
        writer: TextWriter,
        attributes: ItemAttributes,
        wording: Wording,
        *,
        style: str | None = None,
        temperature: float = 0.0,
        max_events: int = 30,
        seed: int = 0,
    ) -> None:
        style = next(iter(wording.styles)) if style is None else style
        if style not in wording.styles:
            raise ValueError(f"style must be one of {', '.join(wording.styles)}, got {style!r}")
        self._writer = writer
        self._attributes = attributes
        self._wording = wording
        self._style = style
        self._temperature = temperature
        self._max_events = max_events
        self._seed = seed
        self._evidence = EvidenceFinder(attributes)

    def write(self, histories: Sequence[Sequence[int]]) -> list[Written]:
        """See `Profiler.write`. Of long histories the newest events are read; a history without titles gets none."""
        return self._written([Profile()] * len(histories), histories)

    def update(self, profiles: Sequence[Profile], events: Sequence[Sequence[int]]) -> list[Written]:
        """See `Profiler.update`."""
        return self._written(profiles, events)

    def prompt(self, profile: Profile, events: Sequence[int]) -> str:
        """What the model is asked; empty when no event has a title."""
        lines = "\n".join(filter(None, map(self._line, self._newest(events))))
        if not lines:
            return ""
        if not profile.text:
            return self._wording.styles[self._style].format(history=lines)
        return self._wording.update.format(profile=profile.text, events=lines)

    def _written(self, profiles: Sequence[Profile], events: Sequence[Sequence[int]]) -> list[Written]:
        prompts = [self.prompt(profile, new) for profile, new in zip(profiles, events, strict=True)]
        asked = [row for row, prompt in enumerate(prompts) if prompt]
        texts = dict.fromkeys(range(len(prompts)), "")
        answers = self._writer.write([prompts[row] for row in asked], temperature=self._temperature, seed=self._seed)
        texts.update(zip(asked, answers, strict=True))
        return [
            self._rewritten(profile, new, texts[row], prompts[row])
            for row, (profile, new) in enumerate(zip(profiles, events, strict=True))
        ]

    def _rewritten(self, profile: Profile, events: Sequence[int], text: str, prompt: str) -> Written:
        if len(events) == 0:
            return Written(profile=profile, tokens_read=0)
        upto = profile.upto + len(events)
        read = self._newest(events)
        # A model that says nothing leaves what was said.
        statements = (
            self._evidence.statements(text, upto - len(read), read, profile)
            if text
            else [each for each in profile.statements if each.source != "edited"]
        )
        return Written(
            profile=profile.rewritten(upto, statements), tokens_read=self._writer.count_tokens(prompt) if prompt else 0
        )

    def _newest(self, events: Sequence[int]) -> Sequence[int]:
        return events[-self._max_events :]

    def _line(self, item: int) -> str:
        title = self._attributes.titles[item]
        names = ", ".join(attribute.name for attribute in self._attributes.of(item))
        return f"- {title} ({names})" if title and names else f"- {title}" if title else ""


def explorers(
    writers: Sequence[TextWriter],
    attributes: ItemAttributes,
    wording: Wording,
    temperatures: Sequence[float],
    *,
    max_events: int = 30,
    seed: int = 0,
) -> list[Profiler]:
    """One profiler for each writer, style and temperature: together they give the N profiles of a user."""
    ways = [(writer, style, heat) for writer in writers for style in wording.styles for heat in temperatures]
    return [
        LanguageProfiler(
            writer,
            attributes,
            wording,
            style=style,
            temperature=heat,
            max_events=max_events,
            seed=seed + number,
        )
        for number, (writer, style, heat) in enumerate(ways)
    ]
