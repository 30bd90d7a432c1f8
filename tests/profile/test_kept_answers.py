from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from recsys.errors import ArtifactError
from recsys.kept_answers import KeptAnswers
from recsys.profile.cases import Case
from recsys.profile.kept import KeptJudge, KeptWriter
from recsys.profile.utility import FloatArray

CASE = Case(user=7, compressed=(0, 1), recent=(2,), candidates=np.array([[3, 4, 5]]))


class Counted:
    """A writer and a judge that count how often they are asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.prompts: list[str] = []

    def write(self, prompts: Sequence[str], *, temperature: float, seed: int) -> list[str]:
        self.asked += 1
        self.prompts += prompts
        return [f"{prompt} {temperature} {seed}" for prompt in prompts]

    def log_probs(self, case: Case, texts: Sequence[str]) -> FloatArray:
        self.asked += 1
        return np.log(np.full((len(texts), *case.candidates.shape), 1 / 3))

    def count_tokens(self, text: str) -> int:
        return len(text.split())


def test_what_was_answered_before_a_kill_is_not_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "kept" / "answers.jsonl"
    before, after = Counted(), Counted()
    wrote = KeptWriter(before, KeptAnswers(path, ""), "m").write(["a", "b"], temperature=0.5, seed=1)
    judged = KeptJudge(before, KeptAnswers(path, ""), "m").log_probs(CASE, ["", "likes a"])
    with path.open("a") as file:
        file.write('\n{"key": "cut sho')  # a kill in the midst of a line
    answers = KeptAnswers(path, "")
    writer, judge = KeptWriter(after, answers, "m"), KeptJudge(after, answers, "m")
    assert writer.write(["a", "b"], temperature=0.5, seed=1) == wrote == ["a 0.5 1", "b 0.5 1"]
    np.testing.assert_array_equal(judge.log_probs(CASE, ["", "likes a"]), judged)
    assert (before.asked, after.asked) == (2, 0)
    assert writer.count_tokens("a b") == judge.count_tokens("a b") == 2


def test_any_other_question_is_asked(tmp_path: Path) -> None:
    counted, answers = Counted(), KeptAnswers(tmp_path / "answers.jsonl", "")
    writer = KeptWriter(counted, answers, "m")
    writer.write(["a"], temperature=0.5, seed=1)
    writer.write(["b"], temperature=0.5, seed=1)
    writer.write(["a"], temperature=0.6, seed=1)
    writer.write(["a"], temperature=0.5, seed=2)
    KeptWriter(counted, answers, "tuned").write(["a"], temperature=0.5, seed=1)
    assert counted.asked == 5


def test_without_draws_each_prompt_is_kept_for_itself(tmp_path: Path) -> None:
    counted = Counted()
    writer = KeptWriter(counted, KeptAnswers(tmp_path / "answers.jsonl", ""), "m")
    writer.write(["a", "b"], temperature=0.0, seed=1)
    assert writer.write(["b", "c", "a"], temperature=0.0, seed=1) == ["b 0.0 1", "c 0.0 1", "a 0.0 1"]
    assert counted.prompts == ["a", "b", "c"]


def test_a_file_that_cannot_be_read_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"cannot be read: .*; remove it"):
        KeptAnswers(tmp_path, "remove it")
