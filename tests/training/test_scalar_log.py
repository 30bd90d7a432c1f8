"""Scalars on disk: complete, and without what a killed fit had logged after its last checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training.scalars import ScalarLog


def lines(run_dir: Path) -> list[tuple[str, float, int]]:
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [(record["tag"], record["value"], record["step"]) for record in records]


def tensorboard(run_dir: Path, tag: str) -> list[tuple[float, int]]:
    accumulator = EventAccumulator(str(run_dir / "tensorboard"))
    accumulator.Reload()
    return [(event.value, event.step) for event in accumulator.Scalars(tag)]


def test_scalars_are_written_to_both_places(tmp_path: Path) -> None:
    with ScalarLog(tmp_path) as log:
        log("loss", 2.0, 0)
        log("loss", 1.0, 1)
        log("ndcg", 0.5, 2)
    assert lines(tmp_path) == [("loss", 2.0, 0), ("loss", 1.0, 1), ("ndcg", 0.5, 2)]
    assert tensorboard(tmp_path, "loss") == [(2.0, 0), (1.0, 1)]


def test_a_fit_that_goes_on_overwrites_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    with ScalarLog(tmp_path) as log:
        for step in range(4):
            log("loss", float(step), step)
            if step % 2:
                log("ndcg", 0.25, step + 1)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"tag": "lo')  # killed within a line

    with ScalarLog(tmp_path) as log:  # the checkpoint was made after step 1
        log("loss", 20.0, 2)
    assert lines(tmp_path) == [("loss", 0.0, 0), ("loss", 1.0, 1), ("ndcg", 0.25, 2), ("loss", 20.0, 2)]
    assert tensorboard(tmp_path, "loss") == [(0.0, 0), (1.0, 1), (20.0, 2)]
    assert tensorboard(tmp_path, "ndcg") == [(0.25, 2)]


def test_nothing_logged_leaves_earlier_scalars_alone(tmp_path: Path) -> None:
    with ScalarLog(tmp_path) as log:
        log("loss", 1.0, 0)
    with ScalarLog(tmp_path):
        pass
    assert lines(tmp_path) == [("loss", 1.0, 0)]
