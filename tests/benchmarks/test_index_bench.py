"""`bench index` at a tiny size: every kind finds what brute force finds. No time is judged."""

from __future__ import annotations

from test_against_public_parts import load


def test_every_kind_is_held_against_brute_force_at_each_share() -> None:
    rows = load("index").main(["--sizes", "1500", "--queries", "20"])["rows"]
    assert [row["kind"] for row in rows] == ["flat", "hnsw", "ivf_pq", "ivf_rabitq"]
    assert [row["is_chosen"] for row in rows] == [True, False, False, False]
    for row in rows:
        assert [search["permitted"] for search in row["searches"]] == [1.0, 0.2, 0.05]
        assert min(search["recall"] for search in row["searches"]) > (0.999 if row["kind"] == "flat" else 0.9)
    assert rows[0]["bytes_a_vector"] == 0 < rows[3]["bytes_a_vector"] < rows[1]["bytes_a_vector"]


def test_a_build_that_would_take_too_long_is_left_out_and_said(monkeypatch) -> None:
    bench = load("index")
    monkeypatch.setattr(bench, "_LONGEST_BUILD_S", 0.0)
    rows = bench.main(["--sizes", "400", "500", "--kinds", "hnsw", "--queries", "5"])["rows"]
    assert "searches" in rows[0]
    assert "searches" not in rows[1]
    assert "its build may take over" in rows[1]["left_out"]
