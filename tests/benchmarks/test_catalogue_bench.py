"""`bench catalogue` at a tiny size: every change comes about. No time is judged."""

from __future__ import annotations

from test_against_public_parts import load


def test_changes_come_about_at_any_size() -> None:
    measured = load("catalogue").main(["--sizes", "300", "--repeats", "2"])
    (row,) = measured["rows"]
    assert measured["largest"] is row
    assert row["items"] == 300
    assert min(row["add_ms"], row["bulk_1000_ms"]) > 0
    assert row["rss_after_changes_mib"] > 0
