"""A machine that loses power keeps of a file what was synced, and perhaps nothing else: acknowledged events are there.

SIGKILL proves nothing of this, as the page cache outlives a process. Here a library between the server and the system
notes how long a file was when it was last synced, and the file is cut there before the next start.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from feature_store import Event, OnlineStore, StoreUnavailableError
from feature_store.connection import Connection

_SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static int noted(int file, const char *name) {
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    struct stat facts;
    char link[64], path[4096], line[4200];
    ssize_t length;
    int result, notes;
    fstat(file, &facts); /* before: what is written during the call may not be in it */
    result = real(file);
    if (result != 0 || !S_ISREG(facts.st_mode)) return result;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    length = readlink(link, path, sizeof path - 1);
    if (length < 0) return result;
    path[length] = 0;
    notes = open(getenv("SYNCED_NOTES"), O_WRONLY | O_APPEND | O_CREAT, 0600);
    length = snprintf(line, sizeof line, "%lld %s\n", (long long)facts.st_size, path);
    if (write(notes, line, length) != length) abort();
    close(notes);
    return result;
}

int fsync(int file) { return noted(file, "fsync"); }
int fdatasync(int file) { return noted(file, "fdatasync"); }
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    directory = tmp_path_factory.mktemp("shim")
    (directory / "shim.c").write_text(_SHIM)
    library = directory / "shim.so"
    command = [compiler, "-shared", "-fPIC", "-o", str(library), str(directory / "shim.c"), "-ldl"]
    subprocess.run(command, check=True, capture_output=True)
    return library


def _post_until_power_fails(directory: Path, make_event: Callable[..., Event], *, after: int) -> set[str]:
    """Append events from several threads, kill the server after so many, and return those that were acknowledged."""
    store = OnlineStore.embedded(directory)
    acknowledged: set[str] = set()
    power = threading.Event()
    process = int(store.connection.client.info("server")["process_id"])
    # What is refused at the end must not start the server again: the power is gone.
    store.connection.server = None

    def post(thread: int) -> None:
        number = 0
        while not power.is_set():
            event_id = f"{thread}-{number}"
            try:
                store.append_events([make_event(event_id, f"user{thread}", at=float(number))])
            except StoreUnavailableError:
                return
            acknowledged.add(event_id)
            number += 1
            if len(acknowledged) >= after and not power.is_set():
                power.set()
                os.kill(process, signal.SIGKILL)

    threads = [threading.Thread(target=post, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.close()
    return acknowledged


def _drop_what_was_not_synced(directory: Path, notes: Path) -> int:
    """Cut the append-only file at its synced length; how many bytes that were."""
    (log,) = directory.glob("appendonlydir/*.incr.aof")
    lengths = [line.split(" ", 1) for line in notes.read_text().splitlines()]
    synced = max((int(length) for length, path in lengths if path == str(log)), default=0)
    dropped = log.stat().st_size - synced
    os.truncate(log, synced)
    return dropped


@pytest.mark.parametrize("policy", ["always", "everysec"])
def test_acknowledged_events_outlive_the_loss_of_power(
    shim: Path,
    tmp_path: Path,
    make_event: Callable[..., Event],
    monkeypatch: pytest.MonkeyPatch,
    policy: str,
) -> None:
    start = subprocess.Popen
    notes = tmp_path / "notes"

    def start_watched(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        with_policy = [policy if argument == "always" else argument for argument in command]
        environment = os.environ | {"LD_PRELOAD": str(shim), "SYNCED_NOTES": str(notes)}
        return start(with_policy, env=environment, **options)

    with monkeypatch.context() as patch:
        patch.setattr("feature_store.embedded.subprocess.Popen", start_watched)
        if policy == "everysec":
            patch.setattr(Connection, "_waits_for_disk", lambda _: False)
        acknowledged = _post_until_power_fails(tmp_path / "store", make_event, after=60)
    dropped = _drop_what_was_not_synced(tmp_path / "store", notes)

    store = OnlineStore.embedded(tmp_path / "store")
    there = {event.event_id for thread in range(4) for event in store.user_events(f"user{thread}", 1000)}
    store.close()
    if policy == "always":
        assert acknowledged <= there
    else:
        # The control: the same loss takes events of a server that does not wait for the disk.
        assert dropped > 0
        assert acknowledged - there
