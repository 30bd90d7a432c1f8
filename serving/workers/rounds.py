"""What concerns all processes: changes of the models, one at a time, and the metrics of all together.

A change goes to every worker, and is answered when all of them have made it: all or none.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import structlog

from serving.fleet import ModelChange
from serving.metrics import merge
from serving.workers.channel import Message
from serving.workers.child import Child
from serving.workers.desired import DesiredModels

_METRICS_S = 2.0
"""A process that has not told its metrics by then is left out of this answer."""
_CHANGE_S = 30.0
"""A worker that has not made a change by then hangs, and is replaced."""
LOAD_S = 900.0
"""The same of loading a bundle, and of a start."""

_ENDING = ("ModelError", "the service is ending")

_log = structlog.get_logger(__name__)


@dataclass(eq=False)
class _Round:
    """A task that several processes are at."""

    asker: Child
    number: int
    """Of the question; -1: who asked has died."""
    until: float
    change: ModelChange | None
    """None of metrics."""
    at_work: set[Child]
    values: dict[str, str] = field(default_factory=dict)
    errors: dict[Child, tuple[str, str]] = field(default_factory=dict)
    reason: tuple[str, str] | None = None
    """Why it takes a change back, which is the answer; None of what was asked for."""


class Rounds:
    """Tasks that several processes are at, and changes that wait for their turn.

    Args:
        workers: who take part in changes.
        send: gives a process a message.
        render: the supervisor's own metrics.
    """

    def __init__(
        self, workers: Sequence[Child], *, send: Callable[[Child, Message], None], render: Callable[[], str]
    ) -> None:
        self._workers = workers
        self._send = send
        self._render = render
        self.models: DesiredModels | None = None
        """What the changes so far have led to; None before the first worker has loaded its model."""
        self._changes: deque[tuple[Child, int, ModelChange]] = deque()
        self._rounds: dict[int, _Round] = {}
        self._num_rounds = 0
        self._changing: int | None = None
        self._is_ending = False

    @property
    def is_changing(self) -> bool:
        """Whether a change is on its way, so that no worker may start."""
        return self._changing is not None

    def want_change(self, asker: Child, number: int, change: ModelChange) -> None:
        """Make a change when it is its turn, and answer the question of this number."""
        if self._is_ending:
            self._answer(asker, number, "", _ENDING)
        else:
            self._changes.append((asker, number, change))

    def want_metrics(self, asker: Child, number: int, of: Sequence[Child]) -> None:
        """Gather the metrics of processes, and answer the question of this number."""
        tasks: dict[Child, Message] = {each: {"what": "metrics"} for each in of}
        self._begin(asker, number, tasks, _METRICS_S)

    def take_result(self, child: Child, message: Message) -> None:
        """What a process says of its part in a task."""
        found = self._rounds.get(message["number"])
        if found is not None and child in found.at_work:
            found.at_work.discard(child)
            if message["error"] is None:
                found.values[child.name] = message["value"]
            else:
                found.errors[child] = tuple(message["error"])

    def forget(self, child: Child) -> None:
        """Wait no more for a process that has died, and answer it nothing."""
        for found in self._rounds.values():
            found.at_work.discard(child)
            found.errors.pop(child, None)
            if found.asker is child:
                found.number = -1  # who takes its place counts its own questions from 0
        self._changes = deque(each for each in self._changes if each[0] is not child)

    def refuse_changes(self) -> None:
        """The service is ending: what waits for its turn is refused, and what comes later."""
        self._is_ending = True
        for asker, waiting, _ in self._changes:
            self._answer(asker, waiting, "", _ENDING)

    def begin_change(self) -> None:
        """Begin the next change, unless one is on its way or a worker is starting."""
        is_starting = any(child.state in ("loading", "loaded") for child in self._workers)
        if self.is_changing or is_starting or not self._changes:
            return
        asker, number, change = self._changes.popleft()
        limit_s = LOAD_S if change.action == "load" else _CHANGE_S
        task = {"what": "change", "change": change.model_dump()}
        tasks = dict.fromkeys(up(self._workers), task)
        self._changing = self._begin(asker, number, tasks, limit_s, change)

    def _begin(
        self,
        asker: Child,
        number: int,
        tasks: Mapping[Child, Message],
        limit_s: float,
        change: ModelChange | None = None,
        reason: tuple[str, str] | None = None,
    ) -> int:
        self._num_rounds += 1
        until = time.monotonic() + limit_s
        self._rounds[self._num_rounds] = _Round(asker, number, until, change, set(tasks), reason=reason)
        for child, task in tasks.items():
            self._send(child, {"kind": "task", "number": self._num_rounds, **task})
        return self._num_rounds

    def end_due(self) -> None:
        """Answer what all have done, or what has taken too long."""
        now = time.monotonic()
        for number, found in list(self._rounds.items()):
            if found.at_work and now < found.until:
                continue
            if found.at_work and found.change is not None:
                for child in found.at_work:
                    _log.error("a worker does not make a change, it is replaced", process=child.name)
                    child.kill()
                continue  # the dead are taken out, and then it ends
            del self._rounds[number]
            if found.change is None:
                texts = [self._render(), *found.values.values()]
                self._answer(found.asker, found.number, merge(texts), None)
            else:
                self._end_change(found, found.change)

    def _end_change(self, found: _Round, change: ModelChange) -> None:
        self._changing = None
        versions = sorted(set(found.values.values()))
        error = found.reason or next(iter(found.errors.values()), None)
        if error is None and len(versions) > 1:
            error = ("ArtifactError", f"bundle: it was replaced meanwhile, and is {' and '.join(versions)}; try again")
        if found.reason is None and error is not None and change.action == "load" and versions:
            self._take_back(found, change, error)
            return
        for child in found.errors if found.values or found.reason else ():
            _log.error("a worker differs from the others, it is replaced", process=child.name)
            child.kill()
        if found.reason is None and versions:
            assert self.models is not None
            self.models.note(change, versions[0])
            error = None
        elif error is None:
            error = ("ModelError", "every worker died meanwhile; look at the log, and try again")
        self._answer(found.asker, found.number, versions[0] if versions else "", error)

    def _take_back(self, found: _Round, change: ModelChange, reason: tuple[str, str]) -> None:
        """All or none: those who could load a bundle forget it again."""
        tasks = {}
        for child in up(self._workers):
            if child.name in found.values:
                undo = ModelChange(action="unload", model_version=found.values[child.name])
                tasks[child] = {"what": "change", "change": undo.model_dump()}
        self._changing = self._begin(found.asker, found.number, tasks, _CHANGE_S, change, reason)

    def _answer(self, asker: Child, number: int, value: str, error: tuple[str, str] | None) -> None:
        if number >= 0:
            self._send(asker, {"kind": "answer", "number": number, "value": value, "error": error})


def up(children: Sequence[Child]) -> list[Child]:
    """Those that answer, or do their work."""
    return [child for child in children if child.state == "up"]
