"""The stage engine on toy stages: what runs, what is skipped, what is kept after an interruption."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from training.pipeline import RunLockedError, Stage, Workspace, finished_key, run_lock, run_stages


class Calls:
    """Toy stages `a -> b -> c` that record who ran; each writes the number of its settings plus those it reads."""

    def __init__(self, **settings: int) -> None:
        self.ran: list[str] = []
        self.settings = {"a": 1, "b": 2, "c": 3, **settings}
        self.fail_in: str | None = None

    def stages(self) -> list[Stage]:
        return [self._stage("a"), self._stage("b", "a"), self._stage("c", "b")]

    def _stage(self, name: str, *inputs: str) -> Stage:
        def build(workspace: Workspace) -> None:
            self.ran.append(name)
            total = self.settings[name] + sum(int((workspace.inputs[i] / "n").read_text()) for i in inputs)
            (workspace.output / "n").write_text(str(total))
            (workspace.resume / "seen").write_text(name)
            if self.fail_in == name:
                raise RuntimeError("interrupted")

        return Stage(name=name, version=1, inputs=inputs, settings=self.settings[name], build=build)


def run(directory: Path, **settings: int) -> list[str]:
    calls = Calls(**settings)
    run_stages(directory, calls.stages())
    return calls.ran


def test_second_run_does_nothing(tmp_path: Path) -> None:
    assert run(tmp_path) == ["a", "b", "c"]
    assert run(tmp_path) == []
    assert (tmp_path / "c" / "n").read_text() == "6"
    assert not list(tmp_path.glob("*.partial"))


def test_changed_setting_reruns_its_stage_and_later_ones_only(tmp_path: Path) -> None:
    run(tmp_path)
    assert run(tmp_path, b=10) == ["b", "c"]
    assert (tmp_path / "c" / "n").read_text() == "14"


def test_same_outcome_of_a_redone_stage_leaves_later_stages_alone(tmp_path: Path) -> None:
    run(tmp_path)
    calls = Calls()
    changed = calls.stages()
    changed[0] = Stage(name="a", version=2, inputs=(), settings=1, build=changed[0].build)
    run_stages(tmp_path, changed)
    assert calls.ran == ["a"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_text("longer than before"),
        lambda path: (path.parent / ".stage.json").write_text("{"),
    ],
    ids=["file gone", "file cut or grown", "marker damaged"],
)
def test_damaged_result_is_redone(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    run(tmp_path)
    damage(tmp_path / "b" / "n")
    assert finished_key(tmp_path, "b") is None
    assert run(tmp_path) == ["b"]


def test_interrupted_stage_leaves_no_result_and_finds_its_own_work_again(tmp_path: Path) -> None:
    calls = Calls()
    calls.fail_in = "b"
    with pytest.raises(RuntimeError, match="interrupted"):
        run_stages(tmp_path, calls.stages())
    assert not (tmp_path / "b").exists()
    kept = tmp_path / "b.partial" / "resume" / "seen"
    assert kept.read_text() == "b"

    seen_by_second_attempt: list[bool] = []
    stages = Calls().stages()

    def build(workspace: Workspace) -> None:
        seen_by_second_attempt.append((workspace.resume / "seen").exists())
        assert not list(workspace.output.iterdir()), "a half-written result must not be built upon"
        (workspace.output / "n").write_text("3")

    stages[1] = Stage(name="b", version=1, inputs=("a",), settings=2, build=build)
    run_stages(tmp_path, stages)
    assert seen_by_second_attempt == [True]
    assert (tmp_path / "c" / "n").read_text() == "6"


def test_work_kept_under_another_configuration_is_thrown_away(tmp_path: Path) -> None:
    calls = Calls()
    calls.fail_in = "b"
    with pytest.raises(RuntimeError):
        run_stages(tmp_path, calls.stages())

    found: list[Path] = []
    stages = Calls().stages()

    def build(workspace: Workspace) -> None:
        found.extend(workspace.resume.iterdir())
        (workspace.output / "n").write_text("0")

    stages[1] = Stage(name="b", version=1, inputs=("a",), settings=99, build=build)
    run_stages(tmp_path, stages)
    assert found == []


def test_marker_names_settings_and_files(tmp_path: Path) -> None:
    run(tmp_path)
    marker = json.loads((tmp_path / "b" / ".stage.json").read_text())
    assert marker["settings"] == 2
    assert marker["files"]["n"]["bytes"] == 1


def test_only_one_process_writes_a_run_and_a_killed_one_gives_it_free(tmp_path: Path) -> None:
    holder = (
        "import sys, time; from pathlib import Path; from training.pipeline import run_lock\n"
        "with run_lock(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", holder, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(RunLockedError, match=f"process {process.pid}"), run_lock(tmp_path):
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    with run_lock(tmp_path):
        pass
