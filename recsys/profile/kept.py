"""Writers and judges whose answers are kept in a file: after a kill, what was answered is not asked again.

Answers are found by the whole question. A file belongs to one catalogue.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import islice

import numpy as np

from recsys.files import sha256_json
from recsys.kept_answers import KeptAnswers
from recsys.profile.cases import Case
from recsys.profile.utility import FloatArray, Judge
from recsys.profile.writers import TextWriter


class KeptWriter:
    """A `TextWriter` whose texts are kept once a call has all of them.

    Args:
        writer: asked where the file has no answer.
        answers: the file.
        name: tells the writer from others of the same file.
    """

    def __init__(self, writer: TextWriter, answers: KeptAnswers, name: str) -> None:
        self._writer = writer
        self._answers = answers
        self._name = name

    def count_tokens(self, text: str) -> int:
        """See `TextWriter.count_tokens`."""
        return self._writer.count_tokens(text)

    def write(self, prompts: Sequence[str], *, temperature: float, seed: int) -> list[str]:
        """See `TextWriter.write`."""
        if temperature > 0:
            # Draws depend on the prompts beside a prompt.
            return self._asked([list(prompts)], temperature, seed)[0]
        return [text for (text,) in self._asked([[prompt] for prompt in prompts], temperature, seed)]

    def _asked(self, groups: Sequence[list[str]], temperature: float, seed: int) -> list[list[str]]:
        """The texts of each group of prompts; the groups without an answer are asked about in one call."""
        keys = [sha256_json([self._name, group, temperature, seed]) for group in groups]
        missing = [number for number, key in enumerate(keys) if self._answers.get(key) is None]
        prompts = [prompt for number in missing for prompt in groups[number]]
        texts = iter(self._writer.write(prompts, temperature=temperature, seed=seed) if prompts else [])
        for number in missing:
            self._answers.add(keys[number], json.dumps(list(islice(texts, len(groups[number])))))
        return [json.loads(self._answers.get(key) or "") for key in keys]


class KeptJudge:
    """A `Judge` whose probabilities are kept, case by case.

    Args:
        judge: asked where the file has no answer.
        answers: the file.
        name: tells the judge from others of the same file.
    """

    def __init__(self, judge: Judge, answers: KeptAnswers, name: str) -> None:
        self._judge = judge
        self._answers = answers
        self._name = name

    def count_tokens(self, text: str) -> int:
        """See `Judge.count_tokens`."""
        return self._judge.count_tokens(text)

    def log_probs(self, case: Case, texts: Sequence[str]) -> FloatArray:
        """See `Judge.log_probs`."""
        key = sha256_json([self._name, list(case.recent), case.candidates.tolist(), list(texts)])
        kept = self._answers.get(key)
        if kept is None:
            kept = json.dumps(self._judge.log_probs(case, texts).tolist())
            self._answers.add(key, kept)
        return np.array(json.loads(kept), dtype=np.float64)
