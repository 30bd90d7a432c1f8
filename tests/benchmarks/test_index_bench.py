"""`bench index` at a tiny size: every kind finds what brute force finds. No time is judged."""

from __future__ import annotations

import json

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


def test_shards_are_rows_of_their_own_beside_the_recorded_ones(monkeypatch, tmp_path) -> None:
    bench = load("index")
    recorded = [{"vectors": 1500, "kind": kind, "shards": 1, "old": True} for kind in ("flat", "hnsw", "ivf_rabitq")]
    (tmp_path / "index.json").write_text(json.dumps({"metrics": {"rows": recorded}}))
    monkeypatch.setattr(bench, "_RESULTS", tmp_path / "index.json")
    arguments = ["--sizes", "1500", "--kinds", "flat", "ivf_rabitq", "--shards", "2", "1", "--queries", "5", "--add"]
    rows = bench.main(arguments)["rows"]
    assert [(row["kind"], row["shards"], "old" in row) for row in rows] == [
        ("flat", 1, False),
        ("hnsw", 1, True),
        ("ivf_rabitq", 1, False),
        ("ivf_rabitq", 2, False),
    ]
    assert rows[2]["searches"][0]["recall"] == rows[3]["searches"][0]["recall"]
