"""A process's side of the connection to the supervisor: it asks for what concerns all, and does its part of it."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import structlog
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from recsys.errors import ArtifactError, RecsysError
from serving.fleet import EndingError, ModelChange
from serving.metrics import Metrics
from serving.models import ModelError, Models
from serving.workers.channel import LINE_LIMIT, Message, encode

_log = structlog.get_logger(__name__)


class FleetMember:
    """The fleet as one of its processes sees it; a `serving.fleet.Fleet`. For one event loop.

    Args:
        connection: to the supervisor.
        name: of the process, a label of its metrics.
        metrics: of the process.
        models: of the process; None where it answers nobody.
        on_orphaned: called when the supervisor is gone.
    """

    def __init__(
        self,
        connection: socket.socket,
        name: str,
        metrics: Metrics,
        models: Models | None,
        on_orphaned: Callable[[], None],
    ) -> None:
        self._connection = connection
        self._name = name
        self._metrics = metrics
        self._models = models
        self._on_orphaned = on_orphaned
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[str]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._writer: asyncio.StreamWriter | None = None
        self._is_orphaned = False

    async def start(self) -> None:
        """Tell the supervisor that this process is up, and do from now on what it says."""
        reader, self._writer = await asyncio.open_unix_connection(sock=self._connection, limit=LINE_LIMIT)
        self._spawn(self._listen(reader))
        self._send({"kind": "up"})

    async def change(self, change: ModelChange) -> None:
        """See `serving.fleet.Fleet`."""
        await self._ask({"what": "change", "change": change.model_dump()})

    async def render_metrics(self) -> bytes:
        """See `serving.fleet.Fleet`."""
        return (await self._ask({"what": "metrics"})).encode()

    async def collect_metrics(self) -> Iterable[Metric]:
        """See `serving.fleet.Fleet`."""
        text = await self._ask({"what": "metrics"})
        return await asyncio.to_thread(lambda: list(text_string_to_metric_families(text)))

    async def _ask(self, question: Message) -> str:
        if self._is_orphaned:
            raise _ending()
        number = next(self._numbers)
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        self._send({"kind": "ask", "number": number, **question})
        try:
            return await answer
        finally:
            del self._waiting[number]

    def _send(self, message: Message) -> None:
        assert self._writer is not None
        self._writer.write(encode(message))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        while line := await self._next(reader):
            message: Message = json.loads(line)
            if message["kind"] == "task":
                self._spawn(self._work(message))
            elif (answer := self._waiting.get(message["number"])) is not None and not answer.done():
                if message["error"] is None:
                    answer.set_result(message["value"])
                else:
                    answer.set_exception(error_of(*message["error"]))
        self._is_orphaned = True
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(_ending())
        self._on_orphaned()

    @staticmethod
    async def _next(reader: asyncio.StreamReader) -> bytes:
        try:
            return await reader.readline()
        except OSError:
            return b""

    async def _work(self, task: Message) -> None:
        """Do a part of something, and say how it went."""
        value, error = "", None
        try:
            if task["what"] == "ping":
                pass  # that this is reached is the answer
            elif task["what"] == "metrics":
                value = await asyncio.to_thread(lambda: self._metrics.render(self._name).decode())
            else:
                assert self._models is not None
                value = await ModelChange.model_validate(task["change"]).carry_out(self._models)
        except Exception as caught:  # the supervisor waits for an answer, whatever happens
            if not isinstance(caught, RecsysError):
                _log.exception("a task of the supervisor failed")
            error = parts_of(caught)
        self._send({"kind": "result", "number": task["number"], "value": value, "error": error})


def _ending() -> EndingError:
    return EndingError("the service is ending")


def parts_of(error: Exception) -> tuple[str, str]:
    """What goes over the connection of an error: its kind, and its message in one line."""
    text = " ".join(str(error).split()) or repr(error)
    if isinstance(error, ModelError | ArtifactError):
        return type(error).__name__, text
    return "RecsysError", text if isinstance(error, RecsysError) else repr(error)


def error_of(kind: str, text: str) -> RecsysError:
    """The error that `parts_of` took apart."""
    return {"ModelError": ModelError, "ArtifactError": ArtifactError}.get(kind, RecsysError)(text)
