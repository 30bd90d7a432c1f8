"""Whole-or-nothing writes: what is on disk after an error or a kill, and who cleans up."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from recsys.files import atomic_directory, atomic_path

HOST = re.sub(r"\W", "_", socket.gethostname())
KILLED_BETWEEN_RENAMES = """
import os, signal, sys
from pathlib import Path
from recsys.files import atomic_directory

rename = Path.rename
def deadly(self, target):
    if self.name.endswith(".tmp"):
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(self, target)
Path.rename = deadly
with atomic_directory(Path(sys.argv[1])) as target:
    (target / "content").write_text("newer")
"""


def write(path: Path, content: str) -> None:
    with atomic_directory(path) as target:
        (target / "content").write_text(content)


def test_a_directory_is_replaced_as_a_whole_and_nothing_else_is_left(tmp_path: Path) -> None:
    write(tmp_path / "x", "old")
    (tmp_path / "x" / "only in the old one").touch()
    write(tmp_path / "x", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["content"]


def test_a_kill_while_replacing_leaves_whole_directories_only(tmp_path: Path) -> None:
    write(tmp_path / "x", "old")
    process = subprocess.Popen([sys.executable, "-c", KILLED_BETWEEN_RENAMES, str(tmp_path / "x")])
    process.wait()
    assert {path.name: (path / "content").read_text() for path in tmp_path.iterdir()} == {
        f".x.{HOST}-{process.pid}.old": "old",
        f".x.{HOST}-{process.pid}.tmp": "newer",
    }
    write(tmp_path / "x", "newest")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_an_error_between_the_renames_puts_the_old_directory_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "x", "old")
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.name.endswith(".tmp"):
            raise OSError("disk is gone")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="disk is gone"):
        write(tmp_path / "x", "new")
    assert (tmp_path / "x" / "content").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_leftovers_of_processes_that_are_gone_are_collected_and_no_others(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    running = os.getppid()
    (tmp_path / f".x.{HOST}-{gone.pid}.tmp").mkdir()
    (tmp_path / f".file.{HOST}-{gone.pid}.tmp").touch()
    (tmp_path / f".x.{gone.pid}.tmp").mkdir()
    (tmp_path / ".x.elsewhere-2.tmp").mkdir()
    (tmp_path / ".x.elsewhere-2.tmp" / "that is written").touch()
    os.utime(tmp_path / ".x.elsewhere-2.tmp", (0, 0))  # whose files are newer than it is
    (tmp_path / ".x.elsewhere-1.old").mkdir()
    os.utime(tmp_path / ".x.elsewhere-1.old", (0, 0))
    kept = {
        f".x.{HOST}-{running}.tmp",
        f".x.y.{HOST}-{gone.pid}.tmp",
        ".x.elsewhere-1.tmp",
        ".x.elsewhere-2.tmp",
        ".x.notes.tmp",
    }
    for name in kept:
        (tmp_path / name).mkdir(exist_ok=True)
    write(tmp_path / "x", "new")
    with atomic_path(tmp_path / "file") as temporary:
        temporary.touch()
    assert {path.name for path in tmp_path.iterdir()} == {"x", "file", *kept}
