"""A teacher behind a URL: any chat model that speaks OpenAI's protocol explains cases.

An answer that is malformed or names the target is dropped and counted. Knows nothing of how the reasons are put to the
student.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

from recsys.generator.lm.chat_client import ChatClient
from recsys.generator.lm.config import ChatTeacherConfig
from recsys.generator.lm.reasoning import Case, Chain
from recsys.generator.lm.teacher import names_target
from recsys.generator.lm.templates import REASONS
from recsys.generator.lm.texts import first_words

# The fourth key gives the model a place to name the item, so that the first three stay free of it (GREAM cuts its
# fourth step likewise).
_SYSTEM = (
    "You explain what people choose. You read what one person chose so far, oldest first, and what the person chose "
    "next. Reason from the history alone, as though you did not know the next item, towards it. Never write its title "
    "or parts of it. Answer with one JSON object and nothing else. Its keys: "
    '"evidence": the patterns in the history that matter; '
    '"preference": what this person likes, to judge by them; '
    '"intent": what kind of thing the person is after now, and why; '
    '"recommendation": the next item. One or two short sentences each, in plain words.'
)


class ChatTeacher:
    """Reasons from a chat model."""

    def __init__(
        self,
        config: ChatTeacherConfig,
        titles: Sequence[str],
        descriptions: Sequence[str],
        *,
        max_words: int,
    ) -> None:
        """Read the answers that are there already.

        Args:
            config: the model and how to ask it.
            titles: by row of the catalogue; items without one are left out of a history.
            descriptions: by row of the catalogue; empty where there is none.
            max_words: words of a step.

        Raises:
            ConfigError: the environment variable of the key is not set.
            ArtifactError: the file of answers cannot be read.
        """
        self._config = config
        self._titles = titles
        self._descriptions = descriptions
        self._max_words = max_words
        self._client = ChatClient(config, "reasoning.chat")
        self.counts: Counter[str] = self._client.counts
        """Cases by what became of them: `explained`, `malformed`, `leaking`, `untitled` (nothing to ask), `failed` (no
        answer after all attempts); and `requested`, how many were not in the file."""

    def explain(self, cases: Sequence[Case]) -> list[Chain | None]:
        """The reasons for each case.

        Raises:
            ChatError: the server refuses, or too many requests fail in a row, or all do.
        """
        chains: list[Chain | None] = [None] * len(cases)
        titled = [number for number, case in enumerate(cases) if self._known(case) and self._titles[case.target]]
        if len(titled) < len(cases):
            self.counts["untitled"] += len(cases) - len(titled)
        answers = self._client.ask(
            [self._messages(cases[number]) for number in titled], f"reasons from {self._config.model}"
        )
        for number, answer in zip(titled, answers, strict=True):
            if answer is not None:
                fate, chains[number] = self._judge(cases[number], answer)
                self.counts[fate] += 1
        return chains

    def _known(self, case: Case) -> list[int]:
        return [item for item in case.history if self._titles[item]]

    def _judge(self, case: Case, answer: str) -> tuple[str, Chain | None]:
        chain = self._parse(answer)
        if chain is None:
            return "malformed", None
        if names_target(chain, self._titles[case.target], (self._titles[item] for item in self._known(case))):
            return "leaking", None
        return "explained", chain

    def _messages(self, case: Case) -> list[dict[str, str]]:
        lines = [f"{number}. {self._described(item)}" for number, item in enumerate(self._known(case), start=1)]
        asked = "\n".join(["History:", *lines, f"Next item: {self._described(case.target)}"])
        return [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": asked}]

    def _described(self, item: int) -> str:
        text = first_words(self._descriptions[item], self._config.max_description_words)
        return f"{self._titles[item]} ({text})" if text else self._titles[item]

    def _parse(self, answer: str) -> Chain | None:
        # Models like to put a fence, or a line of their own, around it.
        begin, end = answer.find("{"), answer.rfind("}")
        try:
            values = json.loads(answer[begin : end + 1])
        except ValueError:
            return None
        texts = {reason: values.get(reason) for reason in REASONS} if isinstance(values, dict) else {}
        cut = {reason: first_words(text, self._max_words) for reason, text in texts.items() if isinstance(text, str)}
        return Chain(**cut) if len(cut) == len(REASONS) and all(cut.values()) else None
