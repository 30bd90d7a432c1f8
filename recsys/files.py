"""Whole-or-nothing writes and content hashes. A reader never sees a half-written file or directory."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_STALE_S = 86_400
"""What a process of another machine has not touched for so long, it has left."""


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_directory(path: Path) -> str:
    """Hex SHA-256 of the names and bytes of all files below `path`; what is hidden (`.git`, `.cache`) is left out."""
    files = {file.relative_to(path): file for file in path.rglob("*") if file.is_file()}
    visible = {name: file for name, file in files.items() if not any(part.startswith(".") for part in name.parts)}
    return sha256_json({name.as_posix(): sha256_file(file) for name, file in visible.items()})


def sha256_json(value: Any) -> str:
    """Hex SHA-256 of a JSON-able value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it takes the name `path` only if the block ends without error.

    A kill leaves `.NAME.HOST-PID.tmp` beside it; the next finished write of `path` removes that.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{_writer()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
        _remove_leftovers(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Like `atomic_path` for a directory; an existing `path` is replaced as a whole.

    What is found under `path` is always whole. Replacing takes two renames, the old one aside and the new one in. A
    kill between them leaves nothing under `path` and the old one, whole, in `.NAME.HOST-PID.old`; an error there puts
    it back. The next finished write of `path` removes what killed processes left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{_writer()}.tmp")
    aside = path.with_name(f".{path.name}.{_writer()}.old")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        if path.exists():
            shutil.rmtree(aside, ignore_errors=True)  # left by a killed process that had this one's number
            path.rename(aside)
        temporary.rename(path)
        # Only now: until the new one is in, an old one may be all there is.
        shutil.rmtree(aside, ignore_errors=True)
        _remove_leftovers(path)
    finally:
        if aside.exists() and not path.exists():
            aside.rename(path)
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_leftovers(path: Path) -> None:
    """Remove temporary files and directories that processes which are gone left beside `path`.

    Machines may share the directory, and each knows its own processes only: what others leave goes after a day.
    """
    name = re.compile(re.escape(f".{path.name}.") + r"(?:(\w+)-)?(\d+)\.(tmp|old)")
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*"):
        match = name.fullmatch(leftover.name)
        if match is None or _is_in_use(leftover, match[1], int(match[2])):
            continue
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def _writer() -> str:
    """Names this process among those of all machines."""
    return f"{_host()}-{os.getpid()}"


def _host() -> str:
    return re.sub(r"\W", "_", socket.gethostname())


def _is_in_use(leftover: Path, host: str | None, pid: int) -> bool:
    """Whether a process may still write it; names of earlier versions have no host."""
    if host in (None, _host()):
        return _is_running(pid)
    try:
        last = max(each.stat().st_mtime for each in (leftover, *leftover.rglob("*")))
    except FileNotFoundError:  # it is done
        return True
    return time.time() - last < _STALE_S


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # someone else's
        return True
    return True


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=False) + "\n")
