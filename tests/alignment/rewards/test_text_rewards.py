"""BLEU against published values, references, and a rubric whose items fail when they should."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from recsys.alignment.rewards.bleu import smoothed_bleu
from recsys.alignment.rewards.reference_text import ReferenceTextReward
from recsys.alignment.rewards.rubric import RubricConfig, RubricReward
from recsys.alignment.rewards.texts import num_sentences, repeated_share
from recsys.errors import ConfigError, RewardError
from recsys.generator.groups import Groups
from tests.alignment.rewards.worlds import context, rollouts

CODES = [[0, 0], [0, 1], [1, 0], [1, 1]]
TITLES = ["Dr. Strangelove", "Alien", "Cheap Thrills", None]
LABELS = [["Comedy", "War"], ["Science Fiction", "Horror"], ["Comedy", "Horror"], ["Fiction"]]


def _rubric(config: RubricConfig | None = None) -> RubricReward:
    groups = Groups.from_labels(LABELS)
    names = list(dict.fromkeys(label for labels in LABELS for label in labels))
    world = context(CODES, titles=TITLES, categories=groups, category_names=names)
    return (config or RubricConfig()).build(world)


def _verdicts(text: str, item: int = 2, history: tuple[int, ...] = (0, 1)) -> dict[str, bool]:
    rubric = _rubric()
    return dict(rubric.verdicts(rubric.explanation(text, item, history)))


@pytest.mark.parametrize(
    ("candidate", "references", "value"),
    [  # what sacreBLEU 2.6 says of the same tokens, smoothed by add-k with k = 1
        ("the cat sat on mat", ["the cat sat on the mat"], 0.6511126026643229),
        (
            "a quick brown fox jumps over it",
            ["the quick brown fox jumps over the lazy dog", "a fast brown fox leaps over a dog"],
            0.6098235933075172,
        ),
        ("the the the the the the the", ["the cat is on the mat", "there is a cat on the mat"], 0.1920561263749893),
        ("good film", ["a good film"], 0.6065306597126336),
        ("same words in the same order", ["same words in the same order"], 1.0),
        ("nothing alike", ["a good film"], 0.0),
        ("", ["a good film"], 0.0),
    ],
)
def test_bleu_of_known_sentences(candidate: str, references: list[str], value: float):
    assert smoothed_bleu(candidate.split(), [text.split() for text in references]) == pytest.approx(value, abs=1e-12)


def test_bleu_needs_a_reference():
    with pytest.raises(ValueError, match="reference"):
        smoothed_bleu(["a"], [])


def test_reference_text_compares_with_the_items_that_came_next():
    texts = [["Alien", "alien!", "", "a film"], ["Alien", "", "", ""]]
    reward = ReferenceTextReward(["Dr. Strangelove", "Alien", "Cheap Thrills", ""])
    batch = rollouts([[0, 1, 2, -1], [0, 1, 2, 3]], [[1, 0], [-1, -1]], texts=texts)
    values = reward(batch)
    assert values[0, 0] == 1
    assert 0 < values[0, 1] < 1
    assert values[0, 2:].tolist() == [0, 0]
    assert values[1].tolist() == [0, 0, 0, 0]
    more = ReferenceTextReward(reward.item_texts, references=2)
    again = rollouts([[1]], [[1, 0]], texts=[["Dr. Strangelove"]])
    assert reward(again)[0, 0] == 0
    assert more(again)[0, 0] == 1


def test_texts_must_be_there_one_for_each_proposal():
    reward = ReferenceTextReward([""] * 4)
    with pytest.raises(RewardError, match="'reference_text' reads texts"):
        reward(rollouts([[0, 1]], [[1]]))
    with pytest.raises(RewardError, match="not one for each"):
        reward(rollouts([[0, 1]], [[1]], texts=[["only one"]]))


def test_sentences_and_repeated_runs():
    assert num_sentences("One. Two! Three?") == 3
    assert num_sentences("Version 2.0 is out") == 1
    assert num_sentences(" ... ") == 0
    assert repeated_share("a b c a b", 2) == 0.25
    assert repeated_share("a", 2) == 0


def test_a_good_explanation_keeps_every_principle():
    text = "You liked Dr. Strangelove, so this horror comedy may suit you."
    assert _verdicts(text) == {
        "true_attributes": True, "refers_to_history": True, "brief": True, "no_price": True
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("After Alien, a fine War film.", {"true_attributes"}),
        ("After Alien, a fine science fiction film.", set()),  # true of the history item that is named
        ("A fine science fiction comedy.", {"true_attributes", "refers_to_history"}),
        ("A horror comedy.", {"refers_to_history"}),
        ("It is for Aliens.", {"refers_to_history"}),
        ("You saw Alien. It scared you. So will this.", {"brief"}),
        ("After Alien, Cheap Thrills.", set()),  # a word of a title is no claim
        ("After Alien, a cheap thrill.", {"no_price"}),
        ("After Alien, only $4.99!", {"no_price"}),
        ("After Alien, now 20% off.", {"no_price"}),
        (" ?! ", {"true_attributes", "refers_to_history", "brief", "no_price"}),
    ],
)
def test_a_broken_principle_fails_alone(text: str, broken: set[str]):
    assert {name for name, kept in _verdicts(text).items() if not kept} == broken


def test_corrupting_the_attribute_makes_that_item_fail():
    rng = np.random.default_rng(0)
    names = [f"Kind{number}" for number in range(30)]
    labels = [rng.choice(names, 3, replace=False).tolist() for _ in range(50)]
    groups = Groups.from_labels(labels)
    seen = list(dict.fromkeys(label for row in labels for label in row))
    codes = [[item // 10, item % 10] for item in range(50)]
    world = context(codes, titles=[f"Title {i:02}" for i in range(50)], categories=groups, category_names=seen)
    rubric = RubricConfig().build(world)
    flipped = 0
    for item in range(1, 50):
        other = str(rng.choice([name for name in names if name not in labels[item] + labels[item - 1]]))
        text = f"As you liked Title {item - 1:02}, try this {{}} one."
        true = rubric.verdicts(rubric.explanation(text.format(labels[item][0]), item, [item - 1]))
        false = rubric.verdicts(rubric.explanation(text.format(other), item, [item - 1]))
        assert all(true.values())
        flipped += not false["true_attributes"]
        assert false["refers_to_history"]
    assert flipped / 49 >= 0.9


def test_the_reward_is_the_weighted_share_of_principles():
    config = RubricConfig.model_validate({"principles": {"brief": 3.0, "no_price": 1.0}})
    texts = [["Cheap. Very cheap. So cheap.", "A $5 film.", "Fine.", "Fine."]]
    values = _rubric(config)(rollouts([[0, 1, 2, -1]], [[0]], texts=texts))
    assert values.tolist() == [[0, 0.75, 1, 0]]


def test_a_wrong_rubric_is_refused():
    with pytest.raises(ValidationError, match="above 0"):
        RubricConfig.model_validate({"principles": {"brief": 0.0}})
    with pytest.raises(ValidationError, match="politeness"):
        RubricConfig.model_validate({"principles": {"politeness": 1.0}})
    with pytest.raises(ConfigError, match=r"rewards\.rubric needs titles"):
        RubricConfig().build(context(CODES))
