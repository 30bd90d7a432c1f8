from __future__ import annotations

import json

import pytest

from recsys.errors import DataError
from recsys.profile.attributes import Attribute
from recsys.profile.profile import Evidence, Profile, Statement

CRIME = Attribute(kind="category", name="Crime")
SEEN = Statement(text="Likes Crime.", source="template", about=(CRIME,), evidence=(Evidence(event=1, item_id="b"),))
MADE_UP = Statement(text="Adores Horror.", source="generated", unsupported=(Attribute(kind="category", name="Horror"),))


def profile(*statements: Statement) -> Profile:
    return Profile(version=3, upto=2, statements=statements)


def test_a_profile_comes_back_from_json() -> None:
    whole = profile(SEEN, MADE_UP).edited(["Likes Crime.", "No musicals"])
    assert Profile.from_json(whole.to_json()) == whole


def test_text_is_what_the_statements_say_in_their_order() -> None:
    assert profile(SEEN, MADE_UP).text == "Likes Crime. Adores Horror."
    assert Profile().text == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 9}, "format"),
        ({"upto": -1}, "upto"),
        ({"upto": 1}, r"statements\[0\].evidence: event 1 lies beyond upto=1"),
        ({"mood": "good"}, "mood"),
        ({"statements": [{"text": "", "source": "edited"}]}, "statements.0.text"),
    ],
)
def test_what_is_no_profile_is_refused_by_field(change: dict[str, object], message: str) -> None:
    values = json.loads(profile(SEEN).to_json()) | change
    with pytest.raises(DataError, match=message):
        Profile.from_json(json.dumps(values))


def test_what_a_user_leaves_keeps_its_evidence_and_what_is_new_is_the_users() -> None:
    edited = profile(SEEN, MADE_UP).edited(["No   musicals", "Likes Crime."])
    assert [(each.text, each.source) for each in edited.statements] == [
        ("No musicals", "edited"),
        ("Likes Crime.", "template"),
    ]
    assert edited.statements[1].evidence == SEEN.evidence
    assert edited.version == 4
    assert edited.dismissed == ()


def test_a_name_with_odd_spaces_is_still_known_when_the_user_leaves_it() -> None:
    care = Attribute(kind="category", name="Skin  Care")
    said = Statement(text="Likes Skin  Care (1 of 2).", source="template", about=(care,))
    kept = profile(said).edited([said.text])
    assert (kept.statements, kept.dismissed) == ((said,), ())


def test_what_a_user_removes_is_not_said_again_and_what_the_user_wrote_stays() -> None:
    edited = profile(SEEN).edited(["No musicals"])
    assert edited.dismissed == (CRIME,)
    again = edited.rewritten(5, [SEEN, MADE_UP])
    assert [each.text for each in again.statements] == ["No musicals", "Adores Horror."]
    assert (again.version, again.upto, again.dismissed) == (5, 5, (CRIME,))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([" "], "has 0 characters"),
        (["x" * 501], "has 501 characters"),
        (["a", "a "], "stands there twice"),
        (list(map(str, range(51))), "there are 51, at most 50"),
    ],
)
def test_edits_have_limits(texts: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        profile(SEEN).edited(texts)


def test_only_machines_can_be_unfaithful() -> None:
    assert not profile(MADE_UP).is_faithful
    assert profile(SEEN).is_faithful
    assert profile(SEEN).edited(["Adores Horror."]).is_faithful
