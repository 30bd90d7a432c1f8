"""`bench seeding` at a small size: both ways fill the store, and readers meanwhile find whole histories. No time is
judged."""

from __future__ import annotations

import pytest
from test_against_public_parts import load


def test_both_ways_fill_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feature_store.seeds._USERS_AT_ONCE", 200)
    found = load("seeding").main(["--users", "3000", "--items", "3", "--rounds", "1", "--smoke"])
    assert found["users"] == 3000
    for way in ("a_script_a_user", "a_script_a_shard"):
        assert found[way]["users_per_second"] == found[way]["rounds"][0]["users_per_second"] > 0
    assert found["readers"]["filling_ms"]["p50"] > 0
    assert found["smoke"]
