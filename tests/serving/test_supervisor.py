"""The supervisor over processes that do little: how they start, die, hang, change and end."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
import pytest

from recsys.errors import ArtifactError, RecsysError
from serving.fleet import ModelChange
from serving.metrics import Metrics
from serving.models import ModelError
from serving.workers import child, rounds, supervisor
from serving.workers.channel import receive_now, send_now
from serving.workers.child import Main
from serving.workers.desired import DesiredModels
from serving.workers.member import FleetMember, parts_of
from serving.workers.supervisor import Supervisor

_fork = multiprocessing.get_context("fork")


class ToyModels:
    """As much of `serving.models.Models` as a change needs: names of models, and files that say what to do."""

    def __init__(self, directory: Path, name: str) -> None:
        self._directory, self._name = directory, name
        self._held = {"first"}
        self._hold("first")

    def _hold(self, version: str) -> None:
        self.active = version
        (self._directory / f"active-{self._name}").write_text(version)

    async def load(self, bundle: str) -> object:
        if (self._directory / f"{bundle}-fails-{self._name}").exists():
            raise ArtifactError(f"bundle: {bundle} is damaged")
        replaced = self._directory / f"{bundle}-replaced-{self._name}"
        version = replaced.read_text() if replaced.exists() else bundle
        self._held.add(version)
        return type("Loaded", (), {"version": version})

    def activate(self, version: str) -> None:
        if (self._directory / f"hangs-{self._name}").exists():
            (self._directory / f"hangs-{self._name}").unlink()
            time.sleep(60)
        if version == "nowhere":
            raise ModelError("no such model")
        self._hold(version)

    def unload(self, version: str) -> None:
        if version == self.active:
            raise ModelError("it is active")
        self._held.remove(version)
        (self._directory / f"unloaded-{self._name}").write_text(version)

    def resume(self, *, active: str, **_: object) -> None:
        assert active in self._held
        self._hold(active)


class Worker:
    """A worker that answers no requests: it does what files of its name say, and writes what it holds."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __call__(self, connection: socket.socket, name: str, models: DesiredModels | None) -> None:
        if (self._directory / f"fails-{name}").exists():
            send_now(connection, {"kind": "failed", "error": parts_of(ArtifactError("bundle: it is damaged"))})
            raise SystemExit(1)
        replaced = self._directory / f"first-replaced-{name}"
        version = replaced.read_text() if replaced.exists() else "first"
        send_now(connection, {"kind": "loaded", "shown": "toy", "model_version": version})
        if receive_now(connection) is not None:
            while (self._directory / f"waits-{name}").exists():
                (self._directory / f"waiting-{name}").touch()
                time.sleep(0.01)
            asyncio.run(self._serve(connection, name, models))

    async def _serve(self, connection: socket.socket, name: str, models: DesiredModels | None) -> None:
        ends = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ends.set)
        toy = ToyModels(self._directory, name)
        if models is not None:
            await models.bring_about(toy)
        member = FleetMember(connection, name, Metrics(None), toy, ends.set)
        await member.start()
        (self._directory / f"up-{name}").write_text(str(os.getpid()))
        while not ends.is_set():
            question = self._directory / f"ask-{name}"
            if question.exists():
                change = ModelChange.model_validate_json(question.read_text())
                asking = asyncio.ensure_future(member.change(change))
                await asyncio.sleep(0)
                question.unlink()  # it is on its way
                try:
                    await asking
                    answer = "done"
                except RecsysError as error:
                    answer = f"{type(error).__name__}: {error}"
                (self._directory / "answer").write_text(answer)
            await asyncio.sleep(0.01)
        if (self._directory / f"ends-slowly-{name}").exists():
            await asyncio.sleep(60)
        (self._directory / f"ended-{name}").touch()


class Running:
    """A supervisor in a process of its own."""

    def __init__(self, directory: Path, process: BaseProcess) -> None:
        self.directory = directory
        self.process = process

    def wait(self, done: Callable[[], object], within_s: float = 20) -> None:
        ends = time.monotonic() + within_s
        while not done():
            assert time.monotonic() < ends
            time.sleep(0.01)

    def pid(self, name: str) -> int:
        """Of a worker that is up."""
        file = self.directory / f"up-{name}"
        self.wait(lambda: file.exists() and file.read_text())
        return int(file.read_text())

    def kill(self, name: str) -> None:
        pid = self.pid(name)
        (self.directory / f"up-{name}").unlink()
        os.kill(pid, signal.SIGKILL)

    def ask(self, name: str, action: str, **further: object) -> str:
        self.put(name, action, **further)
        answer = self.directory / "answer"
        self.wait(lambda: answer.exists() and answer.read_text())
        return answer.read_text()

    def put(self, name: str, action: str, **further: object) -> None:
        """Let a worker ask for a change; the answer comes later."""
        (self.directory / "answer").unlink(missing_ok=True)
        question = ModelChange.model_validate({"action": action, **further}).model_dump_json()
        (self.directory / "question").write_text(question)
        (self.directory / "question").rename(self.directory / f"ask-{name}")
        self.wait(lambda: not (self.directory / f"ask-{name}").exists())

    def active(self, name: str) -> str:
        return (self.directory / f"active-{name}").read_text()


class NoProcesses:
    """In place of the system's processes: none can be had while there is a file."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def Process(self, **options: Any) -> BaseProcess:  # noqa: N802 - as multiprocessing calls it
        if self._file.exists():
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return _fork.Process(**options)


class BrokenServer:
    """A store that cannot be started."""

    def start_if_dead(self) -> None:
        raise FileNotFoundError(2, "No such file or directory", "lock")


def _supervise(directory: Path, num_workers: int, settings: dict[str, Any], helpers: dict[str, Main]) -> None:
    server = BrokenServer() if settings.pop("has_broken_server", False) else None
    for name, value in settings.items():
        setattr(next(each for each in (child, rounds, supervisor) if hasattr(each, name)), name, value)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        service = Supervisor(
            Worker(directory),
            num_workers,
            listener=listener,
            drain_s=0,
            server=server,
            before_serving=lambda: None,
            on_ready=lambda shown: (directory / "ready").write_text(shown),
            helpers=helpers,
        )
        try:
            service.run()
        except RecsysError as error:
            (directory / "error").write_text(f"{type(error).__name__}: {error}")
            raise SystemExit(1) from error
    (directory / "ended").touch()


Start = Callable[..., Running]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    running: list[Running] = []

    def start(num_workers: int = 2, helpers: dict[str, Main] | None = None, **settings: object) -> Running:
        arguments = (tmp_path, num_workers, {"_FIRST_PAUSE_S": 0.01, **settings}, helpers or {})
        process = _fork.Process(target=_supervise, args=arguments)
        process.start()
        running.append(Running(tmp_path, process))
        return running[-1]

    yield start
    for one in running:
        for orphan in psutil.Process(one.process.pid).children() if one.process.is_alive() else ():
            orphan.kill()
        one.process.kill()
        one.process.join()


def test_it_is_ready_once_all_are_and_ends_all_in_order(start: Start) -> None:
    running = start(helpers={"offline": Worker(Path())})
    running.wait((running.directory / "ready").exists)
    for name in ("0", "1"):
        running.pid(name)
    os.kill(running.process.pid, signal.SIGTERM)
    running.process.join(20)
    assert running.process.exitcode == 0
    assert {"ended", "ended-0", "ended-1"} <= {file.name for file in running.directory.iterdir()}


def test_who_cannot_start_at_first_ends_all_of_them(start: Start, tmp_path: Path) -> None:
    (tmp_path / "fails-1").touch()
    running = start()
    running.process.join(20)
    assert running.process.exitcode == 1
    assert (tmp_path / "error").read_text() == "ArtifactError: bundle: it is damaged"
    assert not (tmp_path / "ready").exists()
    assert not (tmp_path / "up-0").exists()


def test_who_dies_is_replaced_and_holds_what_the_others_do(start: Start, tmp_path: Path) -> None:
    running = start()
    first = running.pid("0")
    running.pid("1")
    assert running.ask("1", "load", bundle="new") == "done"
    assert running.ask("0", "activate", model_version="new") == "done"
    assert (running.active("0"), running.active("1")) == ("new", "new")
    running.kill("0")
    assert running.pid("0") != first
    running.wait(lambda: running.active("0") == "new")
    assert running.ask("0", "activate", model_version="nowhere") == "ModelError: no such model"


def test_a_bundle_that_one_worker_cannot_load_is_kept_by_none(start: Start, tmp_path: Path) -> None:
    (tmp_path / "new-fails-1").touch()
    running = start()
    for name in ("0", "1"):
        running.pid(name)
    assert running.ask("0", "load", bundle="new") == "ArtifactError: bundle: new is damaged"
    assert (tmp_path / "unloaded-0").read_text() == "new"
    assert not (tmp_path / "unloaded-1").exists()


def test_a_worker_that_hangs_in_a_change_is_replaced_and_the_answer_comes_after_it(
    start: Start, tmp_path: Path
) -> None:
    running = start(_CHANGE_S=3.0)
    for name in ("0", "1"):
        running.pid(name)
    running.ask("0", "load", bundle="new")
    hanging = running.pid("1")
    (tmp_path / "up-1").unlink()
    (tmp_path / "hangs-1").touch()
    assert running.ask("0", "activate", model_version="new") == "done"
    assert not psutil.pid_exists(hanging)
    assert running.pid("1") != hanging
    running.wait(lambda: running.active("1") == "new")


def test_who_gives_no_sign_of_life_is_replaced(start: Start, tmp_path: Path) -> None:
    running = start(_PING_S=0.05, _SILENT_S=3.0)
    hanging = running.pid("1")
    other = running.pid("0")
    (tmp_path / "up-1").unlink()
    os.kill(hanging, signal.SIGSTOP)
    assert running.pid("1") != hanging
    assert not psutil.pid_exists(hanging)
    assert running.pid("0") == other


def test_it_gives_up_when_no_worker_comes_up_any_more(start: Start, tmp_path: Path) -> None:
    running = start(_MOST_FAILURES=2)
    for name in ("0", "1"):
        running.pid(name)
    running.wait((tmp_path / "ready").exists)
    for name in ("0", "1"):
        (tmp_path / f"fails-{name}").touch()
        running.kill(name)
    running.process.join(20)
    assert running.process.exitcode == 1
    assert (tmp_path / "error").read_text().startswith("ConfigError: serve: no worker comes up any more")
    assert (tmp_path / "error").read_text().endswith("bundle: it is damaged")


def test_who_does_not_end_is_killed(start: Start, tmp_path: Path) -> None:
    running = start(_END_S=3.0)
    (tmp_path / "ends-slowly-0").touch()
    slow = running.pid("0")
    running.pid("1")
    os.kill(running.process.pid, signal.SIGTERM)
    running.process.join(20)
    assert running.process.exitcode == 0
    assert (tmp_path / "ended-1").exists()
    assert not psutil.pid_exists(slow)


def test_workers_end_when_the_supervisor_is_killed(start: Start, tmp_path: Path) -> None:
    running = start()
    workers = [psutil.Process(running.pid(name)) for name in ("0", "1")]
    running.process.kill()
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive
    assert (tmp_path / "ended-0").exists()


def test_a_bundle_that_is_replaced_while_workers_load_it_is_kept_by_none(start: Start, tmp_path: Path) -> None:
    (tmp_path / "new-replaced-1").write_text("newer")
    running = start()
    for name in ("0", "1"):
        running.pid(name)
    answer = "ArtifactError: bundle: it was replaced meanwhile, and is new and newer; try again"
    assert running.ask("0", "load", bundle="new") == answer
    assert (tmp_path / "unloaded-0").read_text() == "new"
    assert (tmp_path / "unloaded-1").read_text() == "newer"


def test_workers_that_found_different_models_do_not_begin_to_answer(start: Start, tmp_path: Path) -> None:
    (tmp_path / "first-replaced-1").write_text("second")
    running = start()
    running.process.join(20)
    assert running.process.exitcode == 1
    assert (tmp_path / "error").read_text().startswith("ArtifactError: bundle: it was model ")
    assert not (tmp_path / "ready").exists()


def test_the_first_model_may_go_and_come_again(start: Start, tmp_path: Path) -> None:
    running = start()
    before = running.pid("1")
    running.pid("0")
    running.ask("0", "load", bundle="new")
    running.ask("0", "activate", model_version="new")
    assert running.ask("0", "unload", model_version="first") == "done"
    assert running.ask("0", "load", bundle="first") == "done"
    assert running.ask("0", "activate", model_version="first") == "done"
    running.kill("1")
    assert running.pid("1") != before
    assert running.active("1") == "first"


def test_an_answer_for_a_worker_that_died_is_not_given_to_who_takes_its_place(start: Start, tmp_path: Path) -> None:
    running = start()
    for name in ("0", "1"):
        running.pid(name)
    (tmp_path / "waits-1").touch()
    running.kill("1")
    running.wait((tmp_path / "waiting-1").exists)
    running.put("0", "activate", model_version="nowhere")  # waits for worker 1
    running.kill("0")
    running.pid("0")
    running.put("0", "load", bundle="new")
    (tmp_path / "waits-1").unlink()
    running.wait((tmp_path / "answer").exists)
    assert (tmp_path / "answer").read_text() == "done"


def test_a_change_that_waits_when_the_service_ends_is_refused(start: Start, tmp_path: Path) -> None:
    running = start()
    for name in ("0", "1"):
        running.pid(name)
    (tmp_path / "waits-1").touch()
    running.kill("1")
    running.wait((tmp_path / "waiting-1").exists)
    running.put("0", "load", bundle="new")
    os.kill(running.process.pid, signal.SIGTERM)
    running.process.join(20)
    assert (tmp_path / "answer").read_text() == "ModelError: the service is ending"
    assert (tmp_path / "ended-0").exists()


def test_a_process_that_the_system_has_no_room_for_is_started_later(start: Start, tmp_path: Path) -> None:
    full = tmp_path / "full"
    running = start(_fork=NoProcesses(full), _LONGEST_PAUSE_S=0.05, _MOST_FAILURES=10_000)
    before = running.pid("1")
    other = running.pid("0")
    full.touch()
    running.kill("1")
    running.wait(lambda: not psutil.pid_exists(before))
    time.sleep(0.2)
    full.unlink()
    assert running.pid("1") != before
    assert running.pid("0") == other


def test_a_store_that_cannot_be_started_takes_no_worker_along(start: Start) -> None:
    running = start(has_broken_server=True)
    for name in ("0", "1"):
        running.pid(name)
    time.sleep(0.3)
    assert running.process.is_alive()
    assert running.ask("0", "load", bundle="new") == "done"
