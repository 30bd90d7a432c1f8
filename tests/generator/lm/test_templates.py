"""The wording of tasks: packaged phrasings, a user's own, and what errors say."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import yaml

from recsys.errors import ConfigError
from recsys.generator.lm.examples import Items
from recsys.generator.lm.templates import PACKAGED, PLACEHOLDERS, TaskName, Templates, render

TASKS = get_args(TaskName)


def write(folder: Path, **tasks: object) -> Path:
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump(tasks))
    return path


def test_every_task_has_five_phrasings_and_one_held_out_all_different() -> None:
    templates = Templates.load()
    assert set(PLACEHOLDERS) == set(TASKS) == set(Templates.model_fields)
    for task in TASKS:
        wording = templates.of(task)
        phrasings = [*wording.train, wording.held_out]
        assert len(wording.train) >= 5
        assert len(set(phrasings)) == len(phrasings), task


def test_words_of_a_response_begin_with_a_blank_after_a_prompt_that_ends_with_none() -> None:
    templates = Templates.load()
    for task in TASKS:
        wording = templates.of(task)
        assert not any(phrasing.endswith(" ") for phrasing in (*wording.train, wording.held_out)), task
        if not PLACEHOLDERS[task][1] & {"item", "items"}:
            assert wording.response.startswith(" "), task


def test_rendering_joins_text_and_drops_the_blank_before_items() -> None:
    pieces = render("Had {history} and wants {query}; now", {"history": Items((3, 1)), "query": "a {brace}"})
    assert pieces == ("Had", Items((3, 1)), " and wants a {brace}; now")
    assert render("{item}", {"item": Items((2,))}) == (Items((2,)),)
    assert render("Had: {history}.", {"history": "(none)"}) == ("Had: (none).",)


def test_what_is_asked_of_a_served_model_is_the_canonical_phrasing() -> None:
    templates = Templates.load()
    assert templates.next_item_instruction == templates.next_item.train[0]
    expected = templates.intention_to_item.train[0].replace("{query}", "blue glue")
    assert templates.search_prompt("blue glue") == (expected,)
    # People type titles into the same box.
    assert templates.intention_to_item.train[0].replace("query", "title") in templates.title_to_item.train


def test_own_wording_takes_the_place_of_the_packaged_one_task_by_task(tmp_path: Path) -> None:
    own = {"response": "{item}", "train": ["Who is {title}?"], "held_out": "Is there {title}?"}
    templates = Templates.load(write(tmp_path, title_to_item=own))
    assert templates.title_to_item.train == ("Who is {title}?",)
    assert templates.item_to_title == Templates.load().item_to_title


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": ["Who is {titel}?"]}, r"title_to_item.train\[0\]: unknown placeholder \{titel\}.*\{title\}"),
        ({"train": ["{title}", "Who?"]}, r"title_to_item.train\[1\]: placeholder \{title\} is missing"),
        ({"held_out": "{title} {title}"}, r"title_to_item.held_out: placeholder \{title\} stands there 2 times"),
        ({"held_out": "{title:>9}"}, r"title_to_item.held_out: a placeholder takes no format"),
        ({"held_out": "{title"}, r"title_to_item.held_out: .*brace"),
        ({"response": "{title}"}, r"title_to_item.response: unknown placeholder \{title\}"),
        ({"held_out": "Which {title}?"}, r"title_to_item.held_out: is one of title_to_item.train too"),
        ({"train": []}, r"title_to_item.train: "),
        ({"test": "{title}"}, r"unknown key title_to_item.test; the keys are response"),
    ],
)
def test_errors_name_the_task_and_the_placeholder(tmp_path: Path, change: dict[str, object], message: str) -> None:
    own = {"response": "{item}", "train": ["Which {title}?"], "held_out": "What {title}?"} | change
    with pytest.raises(ConfigError, match=message) as caught:
        Templates.load(write(tmp_path, title_to_item=own))
    assert "\n" not in str(caught.value)


def test_unknown_tasks_and_unreadable_files_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown key titel_to_item; the keys are next_item"):
        Templates.load(write(tmp_path, titel_to_item={}))
    with pytest.raises(ConfigError, match="cannot be read"):
        Templates.load(tmp_path / "missing.yaml")
    (tmp_path / "list.yaml").write_text("[1]")
    with pytest.raises(ConfigError, match="expected keys"):
        Templates.load(tmp_path / "list.yaml")
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="malformed YAML"):
        Templates.load(tmp_path / "broken.yaml")


def test_the_packaged_file_holds_every_task_itself() -> None:
    assert list(yaml.safe_load(PACKAGED.read_text())) == list(TASKS)


def test_wordings_that_were_saved_before_there_were_user_tokens_are_read() -> None:
    saved = Templates.load().model_dump(mode="json")
    del saved["user_to_preference"]
    assert Templates.model_validate(saved) == Templates.load()
