from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from film_shop import ACTION, ROMANCE
from tiny_lm import save_tiny_lm

from recsys.data import Catalog
from recsys.data.sequences import Sequences
from recsys.profile.attributes import ItemAttributes
from recsys.profile.cases import CaseConfig, make_cases
from recsys.profile.generated import LanguageProfiler, explorers
from recsys.profile.profile import Profile
from recsys.profile.wording import Wording
from recsys.profile.writers import LocalWriter

WORDING = Wording.load()


class Parrot:
    """Says `text`, and remembers what it was asked."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.prompts: list[str] = []
        self.temperatures: list[float] = []

    def write(self, prompts: Sequence[str], *, temperature: float, seed: int) -> list[str]:
        self.prompts += prompts
        self.temperatures.append(temperature)
        return [self.text] * len(prompts)

    def count_tokens(self, text: str) -> int:
        return len(text.split())


def test_a_text_becomes_statements_with_the_events_that_bear_them_out(attributes: ItemAttributes) -> None:
    writer = Parrot("1. Likes crime, above all Fast Rain.\n- A fan of horror and romance! A calm soul.")
    profile = LanguageProfiler(writer, attributes, WORDING).write([[0, 1, 8, 3]])[0].profile
    crime, horror, calm = profile.statements
    assert crime.text == "Likes crime, above all Fast Rain."
    assert [(each.event, each.item_id) for each in crime.evidence] == [(1, "f1"), (3, "f3")]
    assert {each.name for each in crime.about} == {"Crime", "Fast Rain"}
    assert [each.name for each in horror.unsupported] == ["Romance"]  # the shop knows no horror: not a name of it
    assert calm.text == "A calm soul."
    assert (calm.evidence, calm.unsupported) == ((), ())
    assert not profile.is_faithful
    assert {each.source for each in profile.statements} == {"generated"}


def test_a_prompt_names_the_newest_events_and_their_attributes(attributes: ItemAttributes) -> None:
    writer = Parrot("Likes action.")
    profiler = LanguageProfiler(writer, attributes, WORDING, style="guide", max_events=2)
    written = profiler.write([[8, 0, 1]])[0]
    assert "- Red Dawn (Action, 1980s)\n- Fast Rain (Action, Crime, Tall Films, 1980s)\n" in writer.prompts[0]
    assert "Moon Garden" not in writer.prompts[0]
    assert [each.event for each in written.profile.statements[0].evidence] == [1, 2]
    assert written.tokens_read == len(writer.prompts[0].split())


def test_an_update_reads_the_last_profile_and_the_new_events_only(attributes: ItemAttributes) -> None:
    writer = Parrot("Likes action and crime. Now romance.")
    profiler = LanguageProfiler(writer, attributes, WORDING)
    first = profiler.write([ACTION])[0].profile
    assert [each.name for each in first.statements[1].unsupported] == ["Romance"]
    second = profiler.update([first], [ROMANCE])[0].profile
    assert first.text in writer.prompts[1]
    assert "Soft Letters" in writer.prompts[1]
    assert not any(attributes.titles[item] in writer.prompts[1] for item in ACTION)
    # What the earlier profile was supported by goes on to count.
    assert second.is_faithful
    assert second.statements[0].evidence == first.statements[0].evidence
    assert [each.event for each in second.statements[1].evidence] == [4, 5, 6, 7]
    assert (second.version, second.upto) == (2, 8)


def test_an_update_takes_fewer_tokens_than_reading_everything_again(attributes: ItemAttributes) -> None:
    # AlignXplore check A1, its share of tokens, over four updates of 5 events after 60.
    profiler = LanguageProfiler(Parrot("Likes action."), attributes, WORDING, max_events=1000)
    history = ACTION * 15
    profile = profiler.write([history])[0].profile
    streaming = full = 0
    for _ in range(4):
        history = history + ROMANCE
        written = profiler.update([profile], [ROMANCE])[0]
        profile, streaming = written.profile, streaming + written.tokens_read
        full += profiler.write([history])[0].tokens_read
    assert streaming <= 0.4 * full


def test_edits_survive_and_silence_changes_nothing(attributes: ItemAttributes) -> None:
    profiler = LanguageProfiler(Parrot("Likes action. Adores crime."), attributes, WORDING)
    edited = profiler.write([ACTION])[0].profile.edited(["Likes action.", "Only short ones."])
    again = profiler.update([edited], [[0]])[0].profile
    assert [each.text for each in again.statements] == ["Only short ones.", "Likes action."]
    silent = LanguageProfiler(Parrot(""), attributes, WORDING).update([again], [[1]])[0].profile
    assert silent.statements == again.statements
    assert silent.upto == 6
    assert profiler.update([again], [[]])[0].profile == again


def test_no_prompt_names_a_held_out_item() -> None:
    # LettinGo check L2: titles are ids here, so that the items of a prompt can be read off it.
    catalog = Catalog(
        frame=pl.DataFrame(
            {"item_id": [str(item) for item in range(60)], "title": [f"zq{item}zq" for item in range(60)]}
        ).with_columns(pl.lit([], dtype=pl.List(pl.String)).alias("categories"))
    )
    random = np.random.default_rng(0)
    histories = Sequences.from_lists([random.choice(60, 25, replace=False) for _ in range(20)])
    cases = make_cases(histories, np.ones(60, dtype=np.int64), CaseConfig(negatives=10))
    writer = Parrot("Likes things.")
    profiler = LanguageProfiler(writer, ItemAttributes(catalog), WORDING)
    profiler.write([case.compressed for case in cases])
    assert len(writer.prompts) == 20
    for case, prompt in zip(cases, writer.prompts, strict=True):
        items = {int(item) for item in re.findall(r"zq(\d+)zq", prompt)}
        assert items == set(case.compressed)
        assert not items & {*case.recent, *case.targets}


def test_explorers_are_all_ways_to_ask(attributes: ItemAttributes) -> None:
    one, two = Parrot("Likes action."), Parrot("Likes crime.")
    pool = explorers([one, two], attributes, WORDING, (0.7, 1.2))
    texts = [profiler.write([[0, 1]])[0].profile.text for profiler in pool]
    assert texts == ["Likes action."] * 4 + ["Likes crime."] * 4
    assert one.temperatures == [0.7, 1.2, 0.7, 1.2]
    assert len({prompt.splitlines()[0] for prompt in one.prompts}) == 2


def test_the_first_style_of_a_wording_is_the_default(attributes: ItemAttributes) -> None:
    writer = Parrot("Likes action.")
    own = WORDING.model_copy(update={"styles": {"mine": "In my words: {history}", "other": "{history}"}})
    LanguageProfiler(writer, attributes, own).write([[0]])
    assert writer.prompts[0].startswith("In my words: - Red Dawn")


def test_an_unknown_style_is_refused(attributes: ItemAttributes) -> None:
    with pytest.raises(ValueError, match="style must be one of summary, guide, got 'loud'"):
        LanguageProfiler(Parrot(""), attributes, WORDING, style="loud")


def test_histories_without_titles_are_not_asked_about() -> None:
    frame = pl.DataFrame(
        {"item_id": ["a"], "title": [None], "categories": [["X"]]}, schema_overrides={"title": pl.String}
    )
    writer = Parrot("Likes X.")
    written = LanguageProfiler(writer, ItemAttributes(Catalog(frame=frame)), WORDING).write([[0]])[0]
    assert writer.prompts == []
    assert written.profile == Profile(version=1, upto=1)


def test_a_local_model_writes_and_repeats_itself_under_one_seed(tmp_path: Path) -> None:
    writer = LocalWriter(str(save_tiny_lm(tmp_path / "lm")), max_tokens=6, batch_size=2)
    prompts = ["the quick", "fox", "lazy dog jumps"]
    drawn = writer.write(prompts, temperature=1.0, seed=3)
    assert drawn == writer.write(prompts, temperature=1.0, seed=3)
    assert drawn != writer.write(prompts, temperature=1.0, seed=4)
    greedy = writer.write(prompts, temperature=0.0, seed=0)
    # Padding changes nothing: alone each prompt gets the same text.
    assert greedy == [writer.write([prompt], temperature=0.0, seed=0)[0] for prompt in prompts]
    assert writer.count_tokens("title title") > writer.count_tokens("title") > 0


def test_in_half_precision_a_model_writes_nearly_what_it_would_write(tmp_path: Path) -> None:
    lm = str(save_tiny_lm(tmp_path / "lm"))
    exact, half = LocalWriter(lm, max_tokens=1), LocalWriter(lm, max_tokens=1, precision=torch.bfloat16)
    prompts = ["the quick", "lazy dog jumps", "fox", "items that one user chose", "title"]
    one, other = (writer.write(prompts, temperature=0.0, seed=0) for writer in (exact, half))
    assert sum(first == second for first, second in zip(one, other, strict=True)) >= 4
