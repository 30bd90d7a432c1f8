"""The mix of tasks: what each example says, what an epoch holds, and what never stands in a prompt."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from pathlib import Path
from typing import get_args

import numpy as np
import polars as pl
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_shop import CATALOG, TEXTS, TRAIN, name_users

from recsys.data import Catalog, DataConfig, Interactions, Sequences, make_split
from recsys.generator.lm.config import ReasoningConfig, TaskMixConfig, TaskShare, TaskShares, TextConfig
from recsys.generator.lm.examples import Example, Items, UserTokens, item_indices
from recsys.generator.lm.reasoning import find_cases
from recsys.generator.lm.tasks import TASKS, TaskMix
from recsys.generator.lm.templates import TaskName
from recsys.generator.lm.texts import CatalogTexts, Preferences, TextTable

EPOCH_DIGEST = "ab5fe2204d7ebca8558230214061f4218d244df73912e76cd82ccebdb80e8037"
"""Of the first epoch of `make_mix()`, as it was before there were tokens of users."""
HISTORY_TASKS: tuple[TaskName, ...] = (
    "history_to_title",
    "history_to_description",
    "titles_to_item",
    "history_and_intention_to_item",
    "history_to_preference",
)


def make_mix(train: Sequences = TRAIN, *, seed: int = 7, **settings: object) -> TaskMix:
    return TaskMix(TaskMixConfig.model_validate(settings), CATALOG, train, TEXTS, seed=seed, users=name_users())


def test_every_task_has_a_share() -> None:
    assert tuple(TaskShares.model_fields) == TASKS == get_args(TaskName)


@pytest.mark.parametrize(
    ("task", "sample", "text", "prompt", "response", "without_history"),
    [
        ("title_to_item", 0, 0.0, ("Someone searches for: Red Pen\nThe item that fits:",), (Items((0,)),), None),
        ("description_to_item", 2, 0.0, ("Description: Sixty sheets\nItem:",), (Items((2,)),), None),
        (
            "both_to_item",
            3,
            0.0,
            ("Title: Oak Desk\nDescription: Made of oak\nItem:",),
            (Items((3,)),),
            None,
        ),
        ("item_to_title", 1, 0.0, ("Item:", Items((1,)), "\nTitle:"), (" Blue Ink",), None),
        ("item_to_description", 4, 0.0, ("Item:", Items((4,)), "\nDescription:"), (" A lamp",), None),
        (
            "item_to_both",
            0,
            0.0,
            ("Item:", Items((0,)), "\nTitle and description follow.\nTitle:"),
            (" Red Pen\nDescription: Writes red",),
            None,
        ),
        (
            "history_to_title",
            2,
            0.0,
            ("A user chose, oldest first:", Items((0, 1)), "\nTitle of the next item:"),
            (" Grey Pad",),
            ("A user chose, oldest first: (none)\nTitle of the next item:",),
        ),
        (
            "history_to_description",
            3,
            0.0,
            ("A user chose, oldest first:", Items((0, 1, 2)), "\nDescription of the next item:"),
            (" Made of oak",),
            ("A user chose, oldest first: (none)\nDescription of the next item:",),
        ),
        (
            "titles_to_item",
            2,
            0.0,
            ("A user chose, oldest first: Red Pen; Blue Ink\nNext item:",),
            (Items((2,)),),
            ("A user chose, oldest first: (none)\nNext item:",),
        ),
        (
            "intention_to_item",
            3,
            0.5,
            ("Someone searches for: furniture\nThe item that fits:",),
            (Items((3,)),),
            None,
        ),
        (
            "history_and_intention_to_item",
            5,
            0.0,
            (
                "A user chose, oldest first:",
                Items((4,)),
                "\nNow the user searches for: to close letters\nThe item that fits:",
            ),
            (Items((5,)),),
            ("A user chose, oldest first: (none)\nNow the user searches for: to close letters\nThe item that fits:",),
        ),
        (
            "history_to_preference",
            3,
            0.9,
            ("A user chose, oldest first:", Items((0, 1, 2)), "\nThe user's short-term preference:"),
            (" Now stocks up.",),
            ("A user chose, oldest first: (none)\nThe user's short-term preference:",),
        ),
        (
            "next_item",
            0,
            0.0,
            ("Items that one user chose, in order, oldest first:",),
            (Items((0, 1, 2, 3)),),
            None,
        ),
    ],
)
def test_examples_in_canonical_words(
    task: TaskName,
    sample: int,
    text: float,
    prompt: tuple[object, ...],
    response: tuple[object, ...],
    without_history: tuple[object, ...] | None,
) -> None:
    example = make_mix().write(task, sample, 0.0, text, held_out=False)
    assert example == Example(task=task, prompt=prompt, response=response, without_history=without_history)  # type: ignore[arg-type]


def test_what_lacks_the_text_is_no_sample() -> None:
    assert make_mix().num_samples == {
        "next_item": 3,
        "title_to_item": 5,
        "description_to_item": 4,
        "both_to_item": 3,
        "item_to_title": 5,
        "item_to_description": 4,
        "item_to_both": 3,
        "history_to_title": 4,
        "history_to_description": 2,  # items 2 and 3, not 1 and 5
        "titles_to_item": 3,  # the only item before place 5 has no title
        "intention_to_item": 3,
        "history_and_intention_to_item": 2,
        "history_to_preference": 1,
        "reasoning": 0,
        "user_to_preference": 0,
    }


def test_in_long_histories_every_item_is_a_target_once_and_prompts_hold_the_latest() -> None:
    train = Sequences.from_lists([[0, 1, 2, 3, 4, 5], [], [5, 4]])
    mix = make_mix(train, max_history=3)
    windows = [mix.write("next_item", number, 0.0, 0.0, held_out=False) for number in range(3)]
    instruction = "Items that one user chose, in order, oldest first:"
    assert [example.prompt for example in windows] == [
        (instruction,),
        (instruction, Items((2, 3))),
        (instruction,),
    ]
    assert [item_indices(example.response) for example in windows] == [[0, 1, 2, 3], [4, 5], [5, 4]]
    assert mix.write("history_to_description", 4, 0.0, 0.0, held_out=False).prompt[1] == Items((1, 2, 3))


def test_titles_and_descriptions_are_cut() -> None:
    mix = make_mix(max_title_words=1, max_description_words=2)
    assert mix.write("item_to_both", 3, 0.0, 0.0, held_out=False).response == (" Oak\nDescription: Made of",)


def test_items_take_the_numbers_of_the_training_sequences_where_some_are_held_out() -> None:
    # Without item 1: 2 is called 1, 3 is called 2, and so on.
    fitted = np.array([0, 2, 3, 4, 5])
    train = Sequences.from_lists([[0, 1, 2], [3, 4], [1]], users=[10, 11, 12])
    mix = TaskMix(TaskMixConfig(), CATALOG, train, TEXTS, seed=0, items=fitted)
    example = mix.write("titles_to_item", 2, 0.0, 0.0, held_out=False)
    assert example.prompt == ("A user chose, oldest first: Red Pen; Grey Pad\nNext item:",)
    assert example.response == (Items((2,)),)
    asked = mix.write("intention_to_item", 2, 0.0, 0.0, held_out=False)
    assert asked.prompt == ("Someone searches for: a place to work\nThe item that fits:",)
    for example in mix.epoch(0):
        assert max(item_indices(example.pieces), default=0) < 5
        assert "Blue Ink" not in str(example.pieces)
    with pytest.raises(ValueError, match="item 4 is not among the 4 items"):
        TaskMix(TaskMixConfig(), CATALOG, train, TEXTS, seed=0, items=fitted[:4])


def named(history: list[int]) -> UserTokens:
    return UserTokens(tuple(name_users().encode(Sequences.from_lists([history]))[0].tolist()))


def test_user_tokens_stand_at_the_head_of_prompts_about_a_user_and_only_there() -> None:
    plain, tokens = make_mix(), make_mix(user_tokens=True)
    for task in TASKS:
        for sample in plain.samples(task).tolist():
            before, after = (mix.write(task, sample, 0.4, 0.0, held_out=False) for mix in (plain, tokens))
            assert after.response == before.response
            assert after.without_history == before.without_history
            if task in HISTORY_TASKS:
                assert isinstance(before.prompt[0], str)
                assert after.prompt[1:] == ("\n" + before.prompt[0], *before.prompt[1:])
            else:
                assert after == before
    # The user of what stands before the target, not of the whole sequence.
    assert tokens.write("history_to_title", 2, 0.0, 0.0, held_out=False).prompt[0] == named([0, 1])


def test_a_window_names_its_user_by_what_stands_before_its_targets() -> None:
    mix = make_mix(user_tokens=True)
    for draw, cut in ((0.0, 0), (0.3, 1), (0.6, 2), (0.99, 3)):
        example = mix.write("next_item", 0, 0.0, draw, held_out=False)
        assert example.response == (Items(tuple(range(cut, 4))),)
        history = tuple(range(cut))
        instruction = mix.templates.next_item_instruction
        named_prompt = (named(list(history)), "\n" + instruction, Items(history))
        assert example.prompt == (named_prompt if cut else (instruction,))


def test_an_item_that_is_had_again_is_not_told_by_its_absence_from_the_name() -> None:
    """A window shows the item before it comes again, and so does the user's name, as in service."""
    mix = make_mix(Sequences.from_lists([[0, 1, 0, 2]], users=TRAIN.users[:1].tolist()), user_tokens=True)
    assert named([0, 1]) != named([1]), "or this would show nothing"
    window = mix.write("next_item", 0, 0.0, 0.6, held_out=False)
    assert window.prompt[0] == named([0, 1])
    assert window.response == (Items((0, 2)),)
    # Prompts that ask for one item do not show it, and are named by what they show.
    assert mix.write("history_to_title", 2, 0.0, 0.0, held_out=False).prompt[0] == named([1])


def test_the_tokens_of_a_user_are_taught_to_say_a_preference() -> None:
    assert make_mix().num_samples["user_to_preference"] == 0
    mix = make_mix(user_tokens=True)
    assert mix.samples("user_to_preference").tolist() == mix.samples("history_to_preference").tolist() == [3]
    example = mix.write("user_to_preference", 3, 0.0, 0.0, held_out=False)
    assert example.prompt == (named([0, 1, 2]), "\nThe overall preference of this user:")
    assert example.response == (" Writes a lot.",)


def test_settings_and_epochs_of_before_there_were_user_tokens_stay_as_they_were() -> None:
    assert "user_to_preference" not in TaskMixConfig().model_dump(mode="json")["shares"]
    less = TaskMixConfig.model_validate({"shares": {"user_to_preference": {"passes": 0}}})
    assert less.model_dump(mode="json")["shares"]["user_to_preference"] == {"passes": 0, "limit": None}
    assert hashlib.sha256(repr(list(make_mix().epoch(0))).encode()).hexdigest() == EPOCH_DIGEST
    with pytest.raises(ValueError, match="user_tokens: pass `users`"):
        TaskMix(TaskMixConfig(user_tokens=True), CATALOG, TRAIN, TEXTS, seed=0)


def test_an_epoch_follows_from_seed_and_number() -> None:
    first = list(make_mix().epoch(2))
    assert list(make_mix().epoch(2)) == first
    again = make_mix().epoch(2)
    assert [again[number] for number in reversed(range(len(first)))] == first[::-1]
    assert list(make_mix().epoch(3)) != first
    assert list(make_mix(seed=8).epoch(2)) != first


def test_phrasings_change_from_epoch_to_epoch_and_the_held_out_one_is_never_trained_on() -> None:
    mix = make_mix()
    for task in TASKS[:-2]:
        beginning = mix.templates.of(task).held_out.partition("{")[0].rstrip(" ")
        train = {str(example.prompt[0]) for epoch in range(8) for example in mix.epoch(epoch) if example.task == task}
        held_out = {str(example.prompt[0]) for example in mix.epoch(0, held_out=True) if example.task == task}
        assert len(train) > 2, task
        assert not any(prompt.startswith(beginning) for prompt in train)
        assert all(prompt.startswith(beginning) for prompt in held_out)


def test_held_out_phrasings_are_of_the_same_samples() -> None:
    mix = make_mix()
    for train, held_out in zip(mix.epoch(1), mix.epoch(1, held_out=True), strict=True):
        assert (train.task, train.response) == (held_out.task, held_out.response)


def test_shares_are_passes_and_a_limit() -> None:
    nothing = {task: {"passes": 0} for task in TASKS}
    shares = nothing | {
        "next_item": {"passes": 2.67},
        "item_to_title": {"passes": 0.6},
        "history_to_title": {"passes": 1, "limit": 3},
        "titles_to_item": {"passes": 0.01},
    }
    mix = make_mix(shares=shares)
    epoch = mix.epoch(0)
    assert epoch.counts == {"next_item": 8, "item_to_title": 3, "history_to_title": 3}
    assert len(epoch) == 14
    windows = Counter(epoch[int(number)].response for number in epoch.numbers("next_item"))
    assert sorted(windows.values()) == [2, 3, 3]
    tasks = [example.task for example in epoch]
    assert tasks != sorted(tasks, key=list(epoch.counts).index)
    assert epoch.numbers("item_to_title", "history_to_title").tolist() == [
        number for number, task in enumerate(tasks) if task != "next_item"
    ]
    drawn = {
        str(mix.epoch(number)[int(place)].response)
        for number in range(9)
        for place in mix.epoch(number).numbers("item_to_title")
    }
    assert len(drawn) == 5


def test_the_share_of_one_task_leaves_the_draws_of_the_others() -> None:
    titles = [example for example in make_mix().epoch(0) if example.task == "item_to_title"]
    more = make_mix(shares={"next_item": {"passes": 3}}).epoch(0)
    assert {example.pieces for example in more if example.task == "item_to_title"} == {e.pieces for e in titles}


def test_asymmetric_tasks_are_capped_and_reasoning_is_left_out_unless_asked_for() -> None:
    shares = TaskShares()
    for task in TASKS:
        share: TaskShare = getattr(shares, task)
        assert share.passes == (0 if task == "reasoning" else 1)
        assert share.limit == (16_000 if task in HISTORY_TASKS[:3] else None)


def test_own_wording(tmp_path: Path) -> None:
    own = {"item_to_title": {"response": " {title}!", "train": ["{item} is"], "held_out": "{item} means"}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(own))
    example = make_mix(templates=tmp_path / "own.yaml").write("item_to_title", 0, 0.5, 0.0, held_out=False)
    assert example.pieces == (Items((0,)), " is", " Red Pen!")


def as_interactions(histories: list[list[int]]) -> Interactions:
    rows = [(user, item, place) for user, history in enumerate(histories) for place, item in enumerate(history)]
    frame = pl.DataFrame(rows, schema={"user": pl.Int64, "item": pl.Int64, "position": pl.Int64}, orient="row")
    nothing = {"event_type": pl.lit("view"), "rating": pl.lit(None, pl.Float64), "timestamp": pl.lit(None, pl.Int64)}
    frame = frame.with_columns(**nothing).select("user", "item", "event_type", "rating", "timestamp", "position")
    users = [str(user) for user in range(len(histories))]
    return Interactions(frame=frame, user_ids=users, num_items=max(item for _, item, _ in rows) + 1)


HISTORIES = st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=9), min_size=1, max_size=5)


@settings(max_examples=25, deadline=None)
@given(histories=HISTORIES, max_history=st.integers(1, 6), epoch=st.integers(0, 3))
def test_no_target_stands_in_its_own_prompt(histories: list[list[int]], max_history: int, epoch: int) -> None:
    """Repeated items included: a history is shown without the item that follows it."""
    train = Sequences.from_lists(histories)
    wishes = {item: [f"wish {item}"] for item in range(6)}
    tastes = {user: Preferences(overall="Writes a lot.") for user in range(len(histories))}
    mix = TaskMix(TaskMixConfig(max_history=max_history), CATALOG, train, TextTable(wishes, tastes), seed=0)
    lasts = [history[-1] for history in histories if set(history[-1 - max_history : -1]) - {history[-1]}]
    assert mix.num_samples["history_to_preference"] == len(lasts)
    asked = [
        mix.write("history_to_preference", place, 0.0, 0.0, held_out=False)
        for place in mix.samples("history_to_preference").tolist()
    ]
    assert all(last not in item_indices(example.prompt) for last, example in zip(lasts, asked, strict=True))
    for example in mix.epoch(epoch):
        shown = item_indices(example.prompt)
        if example.task in HISTORY_TASKS:
            assert len(shown) <= max_history
        if example.task in ("history_to_title", "titles_to_item"):
            titles = [title for item in item_indices(example.response) if (title := CATALOG.titles[item])]
            written = " ".join(piece for piece in example.prompt if isinstance(piece, str))
            assert not any(title in written for title in titles)
        if example.task == "history_to_title":
            assert example.response[0] not in [f" {CATALOG.titles[item]}" for item in shown]
        if example.task == "history_and_intention_to_item":
            assert not set(shown) & set(item_indices(example.response))


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(3, 8), min_size=1, max_size=4), epoch=st.integers(0, 3))
def test_no_validation_or_test_item_of_a_user_stands_in_an_example(lengths: list[int], epoch: int) -> None:
    """G2 of the brief, by identity: every user has items that nobody else has."""
    ends = np.cumsum(lengths)
    full = [list(range(end - length, end)) for end, length in zip(ends, lengths, strict=True)]
    catalog = Catalog(
        frame=pl.DataFrame(
            {
                "item_id": [f"id {item}" for item in range(ends[-1])],
                "title": [f"Title {item}." for item in range(ends[-1])],
                "categories": [["even" if item % 2 == 0 else "odd"] for item in range(ends[-1])],
                "description": [f"About {item}." for item in range(ends[-1])],
            }
        )
    )
    split = make_split(as_interactions(full), DataConfig(source="movielens"))
    later = {item for history in full for item in history[-2:]}
    cases = find_cases(ReasoningConfig(min_history=1), split.train, 20, seed=0, rows=np.arange(catalog.num_items))
    assert not any(later & {*case.history, case.target} for case in cases)
    mix = TaskMix(TaskMixConfig(), catalog, split.train, CatalogTexts(catalog, TextConfig()), seed=0)
    for example in mix.epoch(epoch):
        if example.task == "next_item" or example.task in HISTORY_TASKS:
            assert not later & set(item_indices(example.pieces))
            written = " ".join(piece for piece in example.pieces if isinstance(piece, str))
            assert not any(re.search(rf"\b{item}\b", written) for item in later)
