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
    (tmp_path / "timed-torchrun-2" / "train.partial").mkdir(parents=True)

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
    left = [tmp_path / name for name in ("cache", "made/encode.partial", "lists", "made/train.partial")]
    for folder in left:
        folder.mkdir(parents=True)
    (tmp_path / "train.json").write_text('{"seconds": 7}')
    there: dict[str, list[str]] = {}

    def measured(command: list[str], run: Path) -> dict[str, int]:
        there[command[0]] = [folder.name for folder in left if folder.exists()]
        return {"seconds": 1}

    monkeypatch.setattr(bench, "_measured", measured)
    taken = {step: bench._kept(tmp_path, step, [step])["seconds"] for step in ("encode", "train", "recommend")}
    assert taken == {"encode": 1, "train": 7, "recommend": 1}
    assert there == {"encode": ["lists", "train.partial"], "recommend": ["train.partial"]}
    assert bench._kept(tmp_path, "encode", []) == {"seconds": 1}


def test_growth_is_that_of_the_two_largest_sizes() -> None:
    assert load("scale")._power([50.0, 3.0, 30.0], [10, 100, 1000]) == pytest.approx(1.0)
