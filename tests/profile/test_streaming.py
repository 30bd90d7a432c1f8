from __future__ import annotations

import numpy as np
import pytest
from film_shop import ACTION, ROMANCE

from recsys.errors import DataError
from recsys.profile.attributes import Attribute, ItemAttributes
from recsys.profile.profile import Profile, Statement
from recsys.profile.streaming import Drifter, StreamConfig, anew, drifters, half_life, old_taste, streamed
from recsys.profile.template import TemplateConfig, TemplateProfiler
from recsys.profile.wording import Wording

STREAM = StreamConfig(first=4, updates=2, events=2)
HISTORIES = [[*ACTION, *ROMANCE], [*ROMANCE, *ACTION]]


def words(text: str) -> int:
    return len(text.split())


def test_a_template_that_goes_on_says_what_one_made_anew_says_and_reads_less(attributes: ItemAttributes) -> None:
    profiler = TemplateProfiler(attributes, TemplateConfig(), Wording.load())
    first = [written.profile for written in profiler.write([items[:4] for items in HISTORIES])]
    on, again = streamed(profiler, first, HISTORIES, STREAM, words), anew(profiler, HISTORIES, STREAM, words)
    assert [[each.text for each in step] for step in on.profiles] == [
        [each.text for each in step] for step in again.profiles
    ]
    assert [profile.upto for profile in on.profiles[-1]] == [8, 8]
    # By hand: anew reads 6 and then 8 items, a stream 2 and 2 and the profile before.
    said = [sum(words(profile.text) for profile in column) for column in zip(*again.profiles, strict=True)]
    assert on.tokens_written == again.tokens_written == said
    texts = [profiler.write([items[:length]])[0].tokens_read for items in HISTORIES for length in (6, 8)]
    assert again.tokens_read == [texts[0] + texts[1], texts[2] + texts[3]]
    assert again.tokens == np.mean(again.tokens_read) + np.mean(said)
    assert on.tokens_read[0] == (
        words(first[0].text)
        + words(on.profiles[0][0].text)
        + sum(profiler.write([[item]])[0].tokens_read for item in ROMANCE)
    )


def test_made_up_users_leave_one_category_for_another(attributes: ItemAttributes) -> None:
    stream = StreamConfig(first=3, updates=1, events=3)
    counts = np.array([5, 1, 2, 3, 4, 1, 1, 2, 9, 0])
    users = drifters(attributes, counts, 6, stream, seed=0)
    assert users == drifters(attributes, counts, 6, stream, seed=0)
    assert {(user.old.name, user.new.name) for user in users} == {("Action", "Romance"), ("Romance", "Action")}
    for user in users:
        assert all(user.old in attributes.of(item) and user.new not in attributes.of(item) for item in user.history[:3])
        assert all(user.new in attributes.of(item) and user.old not in attributes.of(item) for item in user.history[3:])
        assert len(set(user.history)) == 6
    with pytest.raises(DataError, match="no two categories have 9 and 3 items of their own; shorten the stream"):
        drifters(attributes, counts, 1, StreamConfig(first=9, updates=1, events=3), seed=0)


def test_an_old_taste_leads_until_the_new_one_is_named_first(attributes: ItemAttributes) -> None:
    old, new = Attribute(kind="category", name="Action"), Attribute(kind="category", name="Romance")
    user = Drifter(old=old, new=new, history=())
    texts = ["Likes action.", "Likes action and romance.", "Likes romance, once action.", "Likes romance."]
    profiles = [Profile(upto=1, statements=(Statement(text=text, source="generated"),)) for text in texts]
    found = old_taste(attributes, [user] * 4, profiles)
    assert found == {"named": 0.75, "leads": 0.5}


def test_a_half_life_counts_updates() -> None:
    assert half_life([0.8, 0.5, 0.4, 0.1]) == 2
    assert half_life([0.8, 0.5, 0.5]) is None
    assert half_life([0.0, 0.0]) is None
