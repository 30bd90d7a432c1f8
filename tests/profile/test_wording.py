from __future__ import annotations

from pathlib import Path

import pytest

from recsys.errors import ConfigError
from recsys.profile.wording import Wording


def test_a_file_changes_the_keys_that_it_has(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("styles: {brief: 'Chose: {history}. Taste:'}")
    wording = Wording.load(path)
    assert dict(wording.styles) == {"brief": "Chose: {history}. Taste:"}
    assert wording.update == Wording.load().update


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("styles: {a: 'no history'}", r"styles.a: must have the placeholders \{history\}"),
        ("update: '{profile} {events} {events}'", "update: must have the placeholders"),
        ("update: '{profile'", "update: .*braces"),
        ("moods: 1", "moods"),
        ("[1]", "expected keys"),
        ("a: [", "malformed YAML"),
    ],
)
def test_bad_wording_is_refused_by_key(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        Wording.load(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        Wording.load(tmp_path / "missing.yaml")
