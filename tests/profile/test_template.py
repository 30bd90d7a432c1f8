from __future__ import annotations

import itertools

import polars as pl
from film_shop import ACTION, ROMANCE
from hypothesis import given
from hypothesis import strategies as st

from recsys.data import Catalog
from recsys.profile.attributes import ItemAttributes
from recsys.profile.profile import Profile
from recsys.profile.template import TemplateConfig, TemplateProfiler
from recsys.profile.wording import Wording

WORDING = Wording.load()


def profiler(attributes: ItemAttributes, **settings: float) -> TemplateProfiler:
    return TemplateProfiler(attributes, TemplateConfig.model_validate(settings), WORDING)


def texts(profile: Profile) -> list[str]:
    return [statement.text for statement in profile.statements]


def test_a_template_names_favourites_with_counts_and_events(attributes: ItemAttributes) -> None:
    profile = profiler(attributes).write([[0, 1, 5, 3]])[0].profile
    assert texts(profile) == [
        "Likes Action (3 of 4).",
        "Likes Crime (2 of 4).",
        "Likes Comedy (1 of 4).",
        "Likes Romance (1 of 4).",
        "Comes back to Tall Films (3 of 4).",
        "Prefers titles of the 1980s (3 of 4).",
    ]
    assert [(each.event, each.item_id) for each in profile.statements[1].evidence] == [(1, "f1"), (3, "f3")]
    assert {statement.source for statement in profile.statements} == {"template"}
    assert (profile.version, profile.upto) == (1, 4)


def test_limits_hold(attributes: ItemAttributes) -> None:
    profile = profiler(attributes, categories=1, brands=0, eras=0, evidence=2).write([[0, 1, 2, 3]])[0].profile
    assert texts(profile) == ["Likes Action (4 of 4)."]
    assert [each.event for each in profile.statements[0].evidence] == [2, 3]


@given(
    events=st.lists(st.integers(0, 9), max_size=25),
    cuts=st.lists(st.integers(0, 25), max_size=4),
    kept=st.sampled_from([2, 4, 60]),
)
def test_streaming_gives_the_profile_of_the_whole_history(
    attributes: ItemAttributes, events: list[int], cuts: list[int], kept: int
) -> None:
    writer = profiler(attributes, kept=kept)
    streamed = Profile()
    bounds = [0, *sorted(min(cut, len(events)) for cut in cuts), len(events)]
    for begin, end in itertools.pairwise(bounds):
        # Through its stored form, as the service keeps it.
        streamed = Profile.from_json(writer.update([streamed], [events[begin:end]])[0].profile.to_json())
    whole = writer.write([events])[0].profile
    assert streamed.model_copy(update={"version": 0}) == whole.model_copy(update={"version": 0})


def test_a_changed_taste_is_followed_within_two_updates(attributes: ItemAttributes) -> None:
    # AlignXplore check A2: the taste flips after 40 events, updates bring 10 events each.
    writer = profiler(attributes)
    profile = writer.write([ACTION * 10])[0].profile
    assert texts(profile)[0] == "Likes Action (40 of 40)."
    weights = []
    for _ in range(2):
        profile = writer.update([profile], [(ROMANCE * 3)[:10]])[0].profile
        weights.append({tally.attribute.name: tally.weight for tally in profile.tallies})
    assert texts(profile)[0] == "Likes Romance (20 of 60)."
    assert weights[0]["Action"] <= 0.5 * (1 - 0.5**4) / (1 - 0.5**0.1) + 1e-9  # half of what it was after 40
    assert weights[1]["Action"] < weights[1]["Romance"] / 2


def test_updates_read_the_profile_and_the_new_events_only(attributes: ItemAttributes) -> None:
    # AlignXplore check A1: four updates of 5 events after 100 events, against reading everything each time.
    writer = profiler(attributes)
    history = (ACTION * 25)[:100]
    streamed = writer.write([history])[0].profile
    streaming = full = 0
    for _ in range(4):
        new = [*ROMANCE, 8]
        history = history + new
        written = writer.update([streamed], [new])[0]
        streamed, streaming = written.profile, streaming + written.tokens_read
        full += writer.write([history])[0].tokens_read
    assert streaming <= 0.4 * full
    assert texts(streamed) == texts(writer.write([history])[0].profile)


def test_an_update_keeps_what_the_user_wrote_and_leaves_out_what_the_user_removed(attributes: ItemAttributes) -> None:
    writer = profiler(attributes)
    first = writer.write([[0, 1, 3]])[0].profile
    edited = first.edited([text for text in texts(first) if "Crime" not in text] + ["Short films only"])
    updated = writer.update([edited], [[1, 3]])[0].profile
    assert texts(updated)[0] == "Short films only"
    assert "Likes Action (5 of 5)." in texts(updated)
    assert not any("Crime" in text for text in texts(updated))


def test_what_the_user_removed_takes_no_place_of_what_may_be_said(attributes: ItemAttributes) -> None:
    writer = profiler(attributes, categories=1, brands=0, eras=0)
    first = writer.write([[0, 1, 2, 3]])[0].profile
    assert texts(first) == ["Likes Action (4 of 4)."]
    assert texts(writer.update([first.edited([])], [[1]])[0].profile) == ["Likes Crime (3 of 5)."]


def test_a_very_long_name_is_cut() -> None:
    values = {"item_id": ["a", "b"], "title": ["A", "B"], "categories": [["x" * 600], ["y"]]}
    long = ItemAttributes(Catalog(frame=pl.DataFrame(values)))
    profile = profiler(long).write([[0]])[0].profile
    assert [len(text) for text in texts(profile)] == [500]
    assert profile.edited(texts(profile)).dismissed == ()


def test_without_new_events_a_profile_stays_as_it_is(attributes: ItemAttributes) -> None:
    profile = profiler(attributes).write([[0]])[0].profile
    written = profiler(attributes).update([profile], [[]])[0]
    assert written.profile == profile
    assert written.tokens_read == 0


def test_very_old_meetings_are_forgotten(attributes: ItemAttributes) -> None:
    profile = profiler(attributes, half_life=1.0).write([[8, *[0] * 60]])[0].profile
    assert {tally.attribute.name for tally in profile.tallies} == {"Action", "1980s"}


def test_an_unknown_item_takes_its_place_and_says_nothing(attributes: ItemAttributes) -> None:
    profile = profiler(attributes, eras=0, brands=0).write([[-1, 8, -1]])[0].profile
    assert texts(profile) == ["Likes Sci-Fi (1 of 3)."]
    assert profile.upto == 3
    assert [each.event for each in profile.statements[0].evidence] == [1]
