"""`bench catalogue` at a tiny size: every change comes about. No time is judged."""

from __future__ import annotations

from test_against_public_parts import load


def test_changes_come_about_at_any_size() -> None:
    measured = load("catalogue").main(["--sizes", "300", "--repeats", "2"])
    (row,) = measured["rows"]
    assert measured["largest"] is row
    assert row["items"] == 300
    assert all(row[name] > 0 for name in row)
