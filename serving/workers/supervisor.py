"""Starts the processes of a service, replaces those that die, and brings what concerns all of them to each.

It answers no requests and has no threads, so that it can fork at any time: libraries are loaded once, before the first
fork, and their memory is shared; models are loaded by each worker, whose weights are maps of the bundle's files, which
the operating system keeps once for all.

A change of the models goes to every worker, and is answered when all of them have made it. Workers start in the state
that the changes before have led to; while one starts, changes wait, and while a change is on its way, starts do. So
there is never a worker that answers with another model than the others.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Protocol

import structlog

from feature_store import StoreError
from recsys.errors import ConfigError
from serving.fleet import ModelChange
from serving.workers.channel import LINE_LIMIT, Channel, Message
from serving.workers.child import Child, Main
from serving.workers.counts import ProcessMetrics
from serving.workers.desired import DesiredModels
from serving.workers.member import error_of
from serving.workers.rounds import LOAD_S, Rounds, up

_TURN_S = 0.1
_END_S = 30.0
"""How long a process may take to end, beside the time to drain."""
_PING_S = 5.0
"""Between two signs of life that each process is asked for."""
_SILENT_S = 60.0
"""A process that has given none for so long hangs, and is replaced."""
_STEADY_S = 30.0
"""A process that was up for so long did not fail at its start."""
_MOST_FAILURES = 5
"""Starts in a row that may fail while no worker is up."""

_log = structlog.get_logger(__name__)
_fork = multiprocessing.get_context("fork")


class Attended(Protocol):
    """A server that the supervisor keeps alive."""

    def start_if_dead(self) -> None:
        """Start it unless it lives, and return at once."""


class Supervisor:
    """The processes of one service.

    Args:
        worker: what each of the workers does.
        num_workers: how many.
        listener: the port, which the workers answer; closed when they are told to end.
        drain_s: how long they go on after SIGTERM.
        server: kept alive; None where the store runs elsewhere.
        before_serving: called once, when the workers have loaded their models and before they answer.
        on_ready: told what is served, once they answer.
        helpers: further processes by name, which start when the workers answer, and end after them.
    """

    def __init__(
        self,
        worker: Main,
        num_workers: int,
        *,
        listener: socket.socket,
        drain_s: float,
        server: Attended | None,
        before_serving: Callable[[], None],
        on_ready: Callable[[str], None],
        helpers: dict[str, Main],
    ) -> None:
        self._workers = [Child(str(number), worker, answers=True) for number in range(num_workers)]
        self._helpers = [Child(name, main, answers=False) for name, main in helpers.items()]
        self._listener = listener
        self._drain_s = drain_s
        self._server = server
        self._before_serving = before_serving
        self._on_ready: Callable[[str], None] | None = on_ready
        self._selector = selectors.DefaultSelector()
        self._signals: list[int] = []
        self._is_serving = False
        self._pinged_at = 0.0
        self._server_starts_at = 0.0
        self._metrics = ProcessMetrics(lambda: len(up(self._workers)))
        self._rounds = Rounds(self._workers, send=self._send, render=self._metrics.render)

    def run(self) -> None:
        """Keep the service going until SIGTERM or SIGINT, and end it.

        Raises:
            RecsysError: a process could not start; they all have ended.
        """
        before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        # What is loaded now stays for good. Left out of collections, its pages stay shared with the processes.
        gc.collect()
        gc.freeze()
        try:
            while not self._signals:
                self._turn()
            self._end(self._signals.pop(0))
        finally:
            for child in self._children:
                child.kill()
            for number, handler in before.items():
                signal.signal(number, handler)
            self._selector.close()

    @property
    def _children(self) -> list[Child]:
        return [*self._workers, *self._helpers]

    def _note(self, number: int, _: FrameType | None) -> None:
        self._signals.append(number)

    # ---------------------------------------------------------------- a turn

    def _turn(self) -> None:
        self._listen()
        self._ping()
        self._bury()
        self._rounds.end_due()
        self._attend_server()
        self._open()
        self._rounds.begin_change()
        if not self._rounds.is_changing:
            self._start_those_due()

    def _listen(self) -> None:
        for key, _ in self._selector.select(_TURN_S):
            child: Child = key.data
            if child.channel is None:
                continue
            child.channel.flush()
            messages, is_open = child.channel.receive()
            for message in messages:
                self._take(child, message)
            if not is_open:
                self._selector.unregister(child.channel.connection)
                child.channel.connection.close()
                child.channel = None
            else:
                self._watch(child)

    def _watch(self, child: Child) -> None:
        assert child.channel is not None
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if child.channel.unsent else 0)
        self._selector.modify(child.channel.connection, events, child)

    def _send(self, child: Child, message: Message) -> None:
        if child.channel is None:
            return
        child.channel.send(message)
        if child.channel.unsent > LINE_LIMIT:
            _log.error("a process reads nothing, it is replaced", process=child.name)
            child.kill()
            return
        self._watch(child)

    def _take(self, child: Child, message: Message) -> None:
        child.asked_at = None
        match message["kind"]:
            case "loaded":
                self._note_loaded(child, message["model_version"], message["shown"])
            case "up":
                child.move("up")
            case "failed":
                child.error = tuple(message["error"])
            case "ask" if message["what"] == "change":
                self._rounds.want_change(child, message["number"], ModelChange.model_validate(message["change"]))
            case "ask":
                self._rounds.want_metrics(child, message["number"], up(self._children))
            case "result":
                self._rounds.take_result(child, message)

    def _note_loaded(self, child: Child, version: str, shown: str) -> None:
        models = self._rounds.models
        if models is None:
            models = self._rounds.models = DesiredModels(first=version, active=version)
        if version == models.first:
            child.shown = shown
            child.move("loaded")
            return
        text = (
            f"bundle: it was model {models.first} when the service started, and is {version} now; start the "
            "service anew to serve it, or load a changed bundle under another name"
        )
        child.error = ("ArtifactError", text)
        child.kill()

    # ---------------------------------------------------------------- lives and deaths

    def _ping(self) -> None:
        now = time.monotonic()
        if now - self._pinged_at < _PING_S:
            return
        self._pinged_at = now
        for child in up(self._children):
            if child.asked_at is None:
                child.asked_at = now
                self._send(child, {"kind": "task", "number": 0, "what": "ping"})
            elif now - child.asked_at > _SILENT_S:
                _log.error("a process gives no sign of life, it is replaced", process=child.name)
                child.kill()

    def _start_those_due(self) -> None:
        now = time.monotonic()
        for child in [*self._workers, *(self._helpers if self._is_serving else ())]:
            if child.state == "down" and child.starts_at <= now:
                self._start(child)

    def _start(self, child: Child) -> None:
        try:
            self._fork(child)
        except OSError as error:  # the system has no memory, processes or files left: it may have some later
            text = f"serve: cannot start a process: {error}"
            if self._on_ready is not None:
                raise ConfigError(text) from error
            child.process, child.error = None, ("ConfigError", text)
            _log.error("a process cannot be started, trying again", process=child.name, error=str(error))
            child.put_off()

    def _fork(self, child: Child) -> None:
        ours, its = socket.socketpair()
        inherited = [other.channel.connection for other in self._children if other.channel is not None]
        child.error = child.asked_at = None
        # A signal between the fork and its own handlers would be noted in a list that nobody reads there.
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
        try:
            child.process = _fork.Process(
                target=self._be, args=(child, its, [ours, *inherited]), name=f"recsys-{child.name}"
            )
            child.process.start()
        except OSError:
            ours.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))
            its.close()
        child.channel = Channel(ours)
        self._selector.register(ours, selectors.EVENT_READ, child)
        child.move("loading")

    def _be(self, child: Child, its: socket.socket, others: list[socket.socket]) -> None:
        """Become the process of `child`."""
        os.setpgrp()  # Ctrl-C in a terminal is for the supervisor, which ends the others in order
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))
        self._selector.close()
        for other in others:
            other.close()
        if not child.answers:
            self._listener.close()
        structlog.contextvars.bind_contextvars(process=child.name)
        with contextlib.suppress(OSError):  # what `ps` and `top` call it, where there is a /proc
            Path("/proc/self/comm").write_text(f"recsys-{child.name}")
        child.main(its, child.name, self._rounds.models)

    def _bury(self) -> None:
        now = time.monotonic()
        for child in self._children:
            starts = child.state in ("loading", "loaded") and self._is_serving
            if starts and now - child.changed_at > LOAD_S:
                _log.error("a process does not come up, it is replaced", process=child.name)
                child.kill()
            if child.process is None or child.process.exitcode is None:
                continue
            code = child.process.exitcode
            self._drain(child)
            self._forget(child)
            was_steady = child.state == "up" and now - child.changed_at > _STEADY_S
            child.move("down")
            if child.answers and self._on_ready is not None:
                unknown = ("RecsysError", f"serve: a worker ended by itself, with {code}; the log may say why")
                raise error_of(*(child.error or unknown))
            if was_steady:
                child.failures, child.starts_at = 0, now
            else:
                child.put_off()
            self._metrics.count_restart(child.name)
            _log.error(
                "a process died, it is replaced",
                process=child.name,
                exit_code=code,
                error=None if child.error is None else child.error[1],
                pause_s=round(max(0.0, child.starts_at - now), 2),
            )
        if self._workers and all(child.state == "down" and child.failures >= _MOST_FAILURES for child in self._workers):
            last = max(self._workers, key=lambda child: child.changed_at)
            reason = "it died" if last.error is None else last.error[1]
            raise ConfigError(f"serve: no worker comes up any more, after {last.failures} tries of each: {reason}")

    def _drain(self, child: Child) -> None:
        """Take what a dead process has said at last."""
        if child.channel is not None:
            for message in child.channel.receive()[0]:
                self._take(child, message)

    def _forget(self, child: Child) -> None:
        if child.channel is not None:
            self._selector.unregister(child.channel.connection)
            child.channel.connection.close()
            child.channel = None
        if child.process is not None:
            child.process.join()
            child.process = None
        self._rounds.forget(child)

    def _attend_server(self) -> None:
        if self._server is None or not self._is_serving or time.monotonic() < self._server_starts_at:
            return
        try:
            self._server.start_if_dead()
        except (StoreError, OSError) as error:  # also a directory that is gone, or a full disk: the workers go on
            _log.error("the store does not start, trying again", error=str(error))
            self._server_starts_at = time.monotonic() + 1.0

    def _open(self) -> None:
        """Let those who are ready answer; the first time, all at once."""
        if not self._is_serving:
            if any(child.state != "loaded" for child in self._workers):
                return
            self._before_serving()
            self._is_serving = True
        for child in self._workers:
            if child.state == "loaded":
                self._send(child, {"kind": "go"})
                child.move("loading")
        if self._on_ready is not None and all(child.state == "up" for child in self._workers):
            self._on_ready(self._workers[0].shown)
            self._on_ready = None

    # ---------------------------------------------------------------- the end

    def _end(self, number: int) -> None:
        """End the workers, then the helpers; a second signal cuts short what the first left time for."""
        self._rounds.refuse_changes()
        # From now on nobody is started: connections that no worker takes any more are refused, not kept waiting.
        self._listener.close()
        self._end_those(self._workers, number, self._drain_s + _END_S)
        self._end_those(self._helpers, signal.SIGTERM, _END_S)

    def _end_those(self, children: Sequence[Child], number: int, within_s: float) -> None:
        until = time.monotonic() + within_s
        self._tell(children, number)
        while alive := [child for child in children if child.is_alive]:
            self._listen()
            self._rounds.end_due()
            self._attend_server()
            if self._signals:
                self._tell(alive, self._signals.pop(0))
            if time.monotonic() > until:
                for child in alive:
                    _log.error("a process does not end, it is killed", process=child.name)
                    child.kill()

    @staticmethod
    def _tell(children: Sequence[Child], number: int) -> None:
        for child in children:
            if child.is_alive and child.process is not None and child.process.pid is not None:
                os.kill(child.process.pid, number)
