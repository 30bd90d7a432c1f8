"""Reasoning: which cases, reasons as text and back, histories without noise, and the examples made of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_shop import CATALOG, TEXTS, TRAIN, name_users

from recsys.data import Catalog, Sequences
from recsys.errors import ConfigError
from recsys.generator.lm.config import ReasoningConfig, TaskMixConfig
from recsys.generator.lm.examples import Example, Items, UserTokens, item_indices
from recsys.generator.lm.make import make_task_mix
from recsys.generator.lm.reasoning import (
    Case,
    Chain,
    Reasons,
    find_cases,
    relevant_items,
    rewrite_histories,
)
from recsys.generator.lm.tasks import TaskMix
from recsys.generator.lm.templates import PACKAGED, Templates

CHAIN = Chain(evidence="Pens and paper.", preference="Likes writing.", intent="Wants a desk.")
WORDING = Templates.load().reasoning
EVERY_ROW = np.arange(6)


def test_cases_are_the_latest_training_items_with_history_enough() -> None:
    train = Sequences.from_lists([[0, 1, 2, 3], [4, 5], [2], [], [5, 4, 5, 3, 5]], users=[10, 11, 12, 13, 14])
    config = ReasoningConfig(min_history=2, cases_per_user=2)
    assert find_cases(config, train, 20, seed=0, rows=EVERY_ROW) == [
        Case(place=2, user=10, history=(0, 1), target=2),
        Case(place=3, user=10, history=(0, 1, 2), target=3),
        Case(place=10, user=14, history=(5, 4, 5), target=3),
        Case(place=11, user=14, history=(4, 3), target=5),  # without the target, which the user has had
    ]
    assert [case.history for case in find_cases(config, train, 2, seed=0, rows=EVERY_ROW)][:2] == [(0, 1), (1, 2)]
    # In rows of the catalogue, where items of the training sequences are numbered otherwise.
    (case, *_) = find_cases(config, train, 20, seed=0, rows=EVERY_ROW + 3)
    assert (case.history, case.target) == ((3, 4), 5)


def test_cases_are_drawn_where_they_would_be_too_many() -> None:
    train = Sequences.from_lists([[0, 1, 2, 3, 4]] * 50)
    config = ReasoningConfig(max_cases=8)
    drawn = find_cases(config, train, 20, seed=1, rows=EVERY_ROW)
    assert len({case.user for case in drawn}) == 8
    assert drawn == find_cases(config, train, 20, seed=1, rows=EVERY_ROW)
    assert drawn != find_cases(config, train, 20, seed=2, rows=EVERY_ROW)
    assert len(find_cases(ReasoningConfig(max_cases=50), train, 20, seed=1, rows=EVERY_ROW)) == 50


def test_reasons_can_be_read_back() -> None:
    text = CHAIN.write(WORDING.steps)
    assert text == "Evidence: Pens and paper.\nPreference: Likes writing.\nIntent: Wants a desk."
    assert Chain.read(text, WORDING.steps) == CHAIN
    for damaged in (
        "",
        text[1:],
        text + "\nMore",
        text.replace("\nIntent", " Intent"),
        text.replace("Likes writing.", ""),
    ):
        assert Chain.read(damaged, WORDING.steps) is None


LINES = st.text(st.characters(categories=("L", "N", "P", "Zs")), min_size=1).map(str.strip).filter(bool)


@given(evidence=LINES, preference=LINES, intent=LINES)
def test_any_line_can_be_read_back_and_the_end_stands_nowhere_in_it(
    evidence: str, preference: str, intent: str
) -> None:
    chain = Chain(evidence=evidence, preference=preference, intent=intent)
    text = chain.write(WORDING.steps)
    assert Chain.read(text, WORDING.steps) == chain
    assert WORDING.end not in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"steps": "{evidence} {preference}\n{intent}"},
            "reasoning.steps: begin each reason but the first with a line",
        ),
        ({"steps": "{evidence}\nLikes {preference}\n"}, r"reasoning.steps: placeholder \{intent\} is missing"),
        ({"end": "Done."}, "reasoning.end: begin it with a line break"),
        ({"end": "\n"}, "reasoning.end: begin it with a line break"),
        ({"end": "\nIntent:"}, "reasoning.end: stands in reasoning.steps too"),
        ({"rewriting": "\nNothing"}, r"reasoning.rewriting: placeholder \{kept\} is missing"),
        ({"response": "\n{item}."}, r"reasoning.response: end it with \{item\}"),
        ({"stop": "x"}, r"unknown key reasoning.stop; the keys are .*steps, end, rewriting"),
    ],
)
def test_wording_that_could_not_be_read_back_is_an_error(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    own = yaml.safe_load(PACKAGED.read_text())["reasoning"] | change
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"reasoning": own}))
    with pytest.raises(ConfigError, match=message):
        Templates.load(tmp_path / "own.yaml")


def unit(*degrees: float) -> np.ndarray:
    radians = np.radians(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def test_relevant_items_are_nearer_to_a_reference_than_the_median() -> None:
    history = unit(0, 90, 10, 80, 45)
    assert relevant_items(history, unit(0), 1).tolist() == [0, 2]
    # Near the target, or near the preference.
    assert relevant_items(history, unit(0, 90), 1).tolist() == [0, 1, 2, 3]
    # Too few: the nearest others too, the later of equals.
    assert relevant_items(history, unit(0), 3).tolist() == [0, 2, 4]
    assert relevant_items(unit(50, 50, 50, 50), unit(0), 3).tolist() == [1, 2, 3]
    assert relevant_items(unit(10, 20), unit(0), 3).tolist() == [0, 1]


@settings(deadline=None)
@given(
    degrees=st.lists(st.floats(0, 360), min_size=1, max_size=9),
    about=st.lists(st.floats(0, 360), min_size=1, max_size=3),
)
def test_what_is_kept_is_what_the_rule_says(degrees: list[float], about: list[float]) -> None:
    history, references = unit(*degrees), unit(*about)
    kept = relevant_items(history, references, 3).tolist()
    cosines = history @ references.T
    above = {
        item
        for item in range(len(degrees))
        for reference in range(len(about))
        if cosines[item, reference] > np.median(cosines[:, reference])
    }
    assert above <= set(kept)
    assert len(kept) == min(len(degrees), max(3, len(above)))
    assert kept == sorted(kept)


def test_histories_are_rewritten_without_noise_copied_or_left_out() -> None:
    vectors = 5 * unit(0, 90, 10, 80, 45, 0)
    cases = [
        Case(place=7, user=0, history=(0, 1, 2, 3, 4), target=5),
        Case(place=9, user=0, history=(1, 2), target=5),
        Case(place=11, user=0, history=(3, 4, 2, 0), target=1),
    ]
    chains = [CHAIN, None, Chain(evidence="a", preference="Likes up. Likes flat.", intent="b")]

    def embed(sentences: list[str]) -> np.ndarray:
        return 2 * unit(*({"Likes writing.": 90.0, "Likes up.": 90.0, "Likes flat.": 0.0}[each] for each in sentences))

    def kept(rewriting: str, **arguments: object) -> dict[int, tuple[int, ...] | None]:
        config = ReasoningConfig.model_validate({"rewriting": rewriting, "min_kept": 1})
        reasons = rewrite_histories(config, cases, chains, **arguments)  # type: ignore[arg-type]
        assert [each.chain for each in reasons.values()] == [chains[0], chains[2]]
        return {place: each.kept for place, each in reasons.items()}

    assert kept("none") == {7: None, 11: None}
    assert kept("copy") == {7: (0, 1, 2, 3, 4), 11: (0, 1, 2, 3)}
    assert kept("denoised", vectors=vectors) == {7: (0, 2), 11: (0, 1)}
    assert kept("denoised", vectors=vectors, embed=embed) == {7: (0, 1, 2, 3), 11: (0, 1, 2, 3)}
    with pytest.raises(ValueError, match="denoised needs a vector an item; pass them, or use copy or none"):
        kept("denoised")
    with pytest.raises(ValueError, match="embed: has dimension 3, vectors have 2"):
        kept("denoised", vectors=vectors, embed=lambda texts: np.zeros((len(texts), 3), dtype=np.float32))


def make_mix(reasons: dict[int, Reasons], **settings: object) -> TaskMix:
    config = TaskMixConfig.model_validate({"shares": {"reasoning": {"passes": 1}}} | settings)
    return TaskMix(config, CATALOG, TRAIN, TEXTS, seed=0, reasons=reasons, users=name_users())


PROMPT = (
    "A user chose, oldest first:",
    Items((0, 1, 2)),
    "\nThink about what the user wants, then name the next item.\n",
)
TEXT = "Evidence: Pens and paper.\nPreference: Likes writing.\nIntent: Wants a desk."


def test_an_example_of_reasoning() -> None:
    example = make_mix({3: Reasons(chain=CHAIN, kept=(0, 2))}).write("reasoning", 3, 0.0, 0.0, held_out=False)
    assert example == Example(
        task="reasoning",
        prompt=PROMPT,
        response=(
            TEXT,
            "\nEnd of reasoning.",
            "\nWhat counts of the history:",
            Items((0, 2)),
            "\nNext item:",
            Items((3,)),
        ),
        without_history=(
            "A user chose, oldest first: (none)\nThink about what the user wants, then name the next item.\n",
        ),
    )
    plain = make_mix({3: Reasons(chain=CHAIN, kept=None)}, user_tokens=True)
    example = plain.write("reasoning", 3, 0.0, 0.0, held_out=False)
    user = UserTokens(tuple(name_users().encode(Sequences.from_lists([[0, 1, 2]]))[0].tolist()))
    assert example.prompt == (user, "\n" + PROMPT[0], *PROMPT[1:])
    assert example.response == (TEXT, "\nEnd of reasoning.", "\nNext item:", Items((3,)))


def test_what_is_given_to_a_model_that_has_finished_its_reasons_is_what_it_was_taught() -> None:
    for kept in (None, (0, 2)):
        example = make_mix({3: Reasons(chain=CHAIN, kept=kept)}).write("reasoning", 3, 0.0, 0.0, held_out=False)
        lead = WORDING.lead(None if kept is None else Items(kept))
        assert example.response == (TEXT, WORDING.end, *lead, Items((3,)))


def test_an_epoch_holds_the_explained_cases() -> None:
    epoch = make_mix({3: Reasons(chain=CHAIN, kept=None), 5: Reasons(chain=CHAIN, kept=None)}).epoch(0)
    assert epoch.counts["reasoning"] == 2
    assert sorted(item_indices(epoch[int(number)].response) for number in epoch.numbers("reasoning")) == [[3], [5]]


@pytest.mark.parametrize("rewriting", ["denoised", "copy", "none"])
def test_from_settings_to_a_mix(rewriting: str) -> None:
    """No target in its own prompt or among its rewritten history, and no item that is held out."""
    titles = [f"{color} {thing}" for color in ("Red", "Blue", "Grey") for thing in ("Pen", "Ink", "Pad")]
    catalog = Catalog(
        frame=pl.DataFrame(
            {
                "item_id": titles,
                "title": titles,
                "categories": [[title.split()[1] + "s"] for title in titles],
                "brand": [["Acme", "Bolt"][row % 2] for row in range(9)],
            }
        )
    )
    fitted = np.array([0, 1, 2, 3, 5, 6, 8])
    random = np.random.default_rng(0)
    train = Sequences.from_lists(random.integers(0, 7, size=(30, 8)))
    config = TaskMixConfig.model_validate(
        {
            "shares": {"reasoning": {"passes": 2}},
            "reasoning": {"rewriting": rewriting, "cases_per_user": 2},
        }
    )
    vectors = random.normal(size=(9, 4)).astype(np.float32)
    mix = make_task_mix(config, catalog, train, [], seed=0, items=fitted, vectors=vectors)
    epoch = mix.epoch(0)
    assert mix.num_samples["reasoning"] > 40
    assert epoch.counts["reasoning"] == 2 * mix.num_samples["reasoning"]
    for number in epoch.numbers("reasoning").tolist():
        example = epoch[number]
        history = item_indices(example.prompt)
        *kept, target = item_indices(example.response)
        assert target not in history
        assert len(history) >= 4
        assert {"denoised": 3 <= len(kept) <= len(history), "copy": kept == history, "none": kept == []}[rewriting]
        assert set(kept) <= set(history)
        title = titles[fitted[target]].lower()
        written = str(example.response[0]).lower()
        assert title not in written
        assert Chain.read(str(example.response[0]), WORDING.steps) is not None
        assert max([*history, target]) < 7
    assert make_task_mix(TaskMixConfig(), catalog, train, [], seed=0, items=fitted).num_samples["reasoning"] == 0
