from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from film_tags import TAG_CONFIG, Films

from recsys.profile.intents.build import build_table
from recsys.profile.intents.config import IntentConfig, InterestConfig
from recsys.profile.intents.language import LanguageExplainer, LanguageMiner
from recsys.profile.intents.rubric import Claim, ExplanationRubric

FILMS = Films()
HISTORY = [0, 3, 5, -1, 10]


class Says:
    """A language model that says the same to every prompt of a kind."""

    def __init__(self, answer: Any, explanation: str = "") -> None:
        self.answer = answer if isinstance(answer, str) else json.dumps(answer)
        self.explanation = explanation
        self.prompts: list[str] = []

    def write(self, prompts: Sequence[str], *, temperature: float, seed: int) -> list[str]:
        self.prompts += prompts
        return [self.explanation if prompt.startswith("Somebody") else self.answer for prompt in prompts]

    def count_tokens(self, text: str) -> int:
        return len(text.split())


def miner(writer: Says) -> LanguageMiner:
    return LanguageMiner(writer, FILMS.vocabulary, FILMS.parts, FILMS.attributes, InterestConfig())


def test_interests_come_with_tags_of_the_catalogue_and_events_that_bear_them_out() -> None:
    said = [
        {"interest": " Robots and\n space. ", "events": [0, 1, 4, 99, "2"], "tags": ["1980s sci-fi", "zeppelins", 7]},
        {"interest": "Love stories.", "events": [4], "tags": ["Romance", "romances", "Tall Films Comedy"]},
    ]
    asked = miner(Says(said))
    first, second = asked.mine([HISTORY])[0]
    assert (first.text, [tag.name for tag in first.tags]) == ("Robots and space.", ["1980s Sci-Fi"])
    assert [(each.event, each.item_id) for each in first.evidence] == [(0, "f0"), (1, "f3")]
    assert [tag.name for tag in second.tags] == ["Romance"]
    assert first.weight > second.weight
    assert +asked.counts == {"kept": 2, "unknown": 2, "repeated": 1, "invalid": 1}


@pytest.mark.parametrize(
    ("answer", "counts"),
    [
        ("no list", {"malformed": 1}),
        ('{"interest": "x"}', {"malformed": 1}),
        ([3, "x"], {}),
        ([{"interest": "Westerns.", "events": [4], "tags": ["Tall Films Western"]}], {"kept": 1, "unsupported": 1}),
        ([{"interest": "Love.", "events": "all", "tags": "Romance"}], {"unsupported": 1}),
        ([{"events": [4], "tags": ["Romance"]}], {"kept": 1, "unsupported": 1}),
        ([{"interest": "Love.", "events": [3, -1, True], "tags": ["Romance"]}], {"kept": 1, "unsupported": 1}),
    ],
)
def test_what_nothing_bears_out_is_dropped_and_counted(answer: Any, counts: dict[str, int]) -> None:
    asked = miner(Says(answer))
    assert asked.mine([HISTORY]) == [[]]
    assert +asked.counts == counts


def test_the_model_reads_titles_and_parts_and_is_not_asked_about_nothing() -> None:
    writer = Says([])
    assert miner(writer).mine([[], HISTORY, [-1]]) == [[], [], []]
    (prompt,) = writer.prompts
    assert "0. Star Harbor 0 (Tall Films, Sci-Fi, 1980s, star harbor)\n" in prompt
    assert "\n4. Tears (Romance, 1990s)\n" in prompt


def test_an_explanation_is_asked_for_with_the_facts_and_judged_like_any_other() -> None:
    tag = FILMS.vocabulary.parse("1980s Sci-Fi")
    assert tag is not None
    claim = Claim(tag=tag, item=FILMS.subjects.of(3), history=None)
    writer = Says([], "  Because it is\n1980s Sci-Fi with Comedy. ")
    (text,) = LanguageExplainer(writer, "tiny").explain([claim])
    assert text == "Because it is 1980s Sci-Fi with Comedy."
    assert "Star Harbor 3 (Sci-Fi, Action, Tall Films, 1980s)" in writer.prompts[0]
    assert ExplanationRubric(FILMS.attributes).broken(text, claim) == ["factual"]


def test_a_table_by_a_language_model_holds_what_passed_and_says_what_did_not() -> None:
    said = [{"interest": "Space.", "events": [0], "tags": ["1980s Sci-Fi", "zeppelins"]}]
    writer = Says(said, "Because it is 1980s Sci-Fi with Action.")
    table = build_table(FILMS.catalog, [[0, 3]], IntentConfig(tags=TAG_CONFIG), writer, "tiny")
    assert table.explainer == "tiny"
    assert sorted(table.texts) == [("1980s Sci-Fi", "f3"), ("1980s Sci-Fi", "f4")]  # the others have no Action
    assert table.metrics["kept"] == {"relevant": 1.0, "factual": 0.4, "clear": 1.0, "safe": 1.0}
    assert table.metrics["said"] == {"kept": 1, "unknown": 1}
