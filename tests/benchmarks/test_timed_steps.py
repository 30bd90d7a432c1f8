"""`bench engines` and `bench scale`: what was killed is timed from its beginning, and what follows from the times."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_against_public_parts import load


def test_a_fit_that_was_killed_is_timed_from_its_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = load("engines")
    for stage in ("data", "encode", "tokenize"):
        (tmp_path / "local-0" / stage).mkdir(parents=True)
    (tmp_path / "torchrun-4" / "train.partial").mkdir(parents=True)

    def fit(run: Path, settings: list[str], *options: str) -> None:
        assert {path.name for path in run.iterdir()} == {"data", "encode", "tokenize"}
        assert options == ("--until", "train")
        epochs = next(int(each.removeprefix("fit.epochs=")) for each in settings if each.startswith("fit.epochs="))
        (run / "train").mkdir()
        facts = {"stage": "train", "seconds": 10 + 5 * epochs, "peak_memory_mib": 1, "finished_at": 0}
        (run / "train" / ".stage.json").write_text(json.dumps(facts))

    monkeypatch.setattr(bench, "_run", fit)
    assert bench._times(tmp_path, "torchrun", []) == {"epoch_seconds": 5.0, "other_seconds": 10.0}


def test_a_step_that_was_killed_begins_anew_and_one_that_is_done_is_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = load("scale")
    world, run = tmp_path / "world-300", tmp_path / "run-300"
    for folder in (world, run / "cache", run / "made" / "encode.partial", run / "made" / "evaluate"):
        folder.mkdir(parents=True)
    (world / "_SUCCESS").touch()
    report = {"protocol": {"num_train_interactions": 7}, "models": {"generator": {"recall@10": {"value": 0.5}}}}
    (run / "made" / "evaluate" / "report.json").write_text(json.dumps(report))
    done = {"seconds": 1.0, "cpu_seconds": 2.0, "peak_mib": 3}
    for step in ("data", "tokenize", "train", "evaluate", "bundle", "trie", "index", "load", "recommend"):
        (run / f"{step}.json").write_text(json.dumps(done))
    measured = []

    def measure(command: list[str], folder: Path) -> dict[str, float]:
        assert not (folder / "cache").exists()
        assert not (folder / "made" / "encode.partial").exists()
        measured.append(command[-1])
        return done

    monkeypatch.setattr(bench, "_measured", measure)
    row = bench._world(tmp_path, 300)
    assert measured == ["encode"]
    assert row["steps"]["encode"] == done
    assert (row["train_events"], row["recall@10"]) == (7, {"generator": 0.5})


def test_growth_is_that_of_the_two_largest_sizes() -> None:
    assert load("scale")._power([50.0, 3.0, 30.0], [10, 100, 1000]) == pytest.approx(1.0)
