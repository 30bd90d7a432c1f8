"""Requests that come at the same time share one call of the model. Knows no recommendations and no HTTP.

Nothing waits for company: a request that finds a worker idle is run at once, with whatever else has come in the same
turn of the event loop. While all workers are busy the next batch collects, so batches grow with the load by themselves;
their size ends where sharing saves no more (`CostModel.largest_useful`), unless many more wait than that, and where the
first of them would miss its deadline. A worker is a thread; the event loop never blocks.

Who cannot be answered in time is told so before it costs any model time: at the door, by what those before it and it
itself will take, and again when its turn comes.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, Literal, Protocol, TypeVar

import structlog

from serving.cost import CostModel

Q = TypeVar("Q")
R = TypeVar("R")

_STALLED = 10
"""Times its expected duration after which a batch is taken to hang."""
_STALLED_S = 2.0
"""And at least so many seconds."""

_OVERRUN = 3
"""Times its expected duration, beside what a busy machine may add, after which the model is to blame."""
_OVERRUN_S = 0.1

_log = structlog.get_logger(__name__)


class OverloadedError(Exception):
    """More requests wait than can be answered in time; `retry_after_s` says when that may be otherwise."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(f"too many requests wait; retry in {retry_after_s:.2f} s")
        self.retry_after_s = retry_after_s


Lateness = Literal["too_near", "waited", "ran", "overran"]
"""How far a request came by its deadline: it was too near from the beginning; its turn did not come; the model was at
work; the model was at work for far longer than it ever takes, which is said to one request of a batch."""


class OutOfTimeError(Exception):
    """The deadline came, or would come, before the answer."""

    def __init__(self, lateness: Lateness) -> None:
        super().__init__("no time is left for the answer")
        self.lateness = lateness


class StalledError(Exception):
    """Every worker hangs in a call that should have ended long ago."""


class BatchObserver(Protocol):
    """Is told what becomes of requests."""

    def queue_changed(self, stage: str, depth: int) -> None:
        """So many requests wait now."""

    def batch_ran(self, stage: str, size: int, seconds: float, waited_s: Sequence[float]) -> None:
        """A batch ended; each of its requests had waited before."""

    def dropped(self, stage: str, reason: str) -> None:
        """A request got no model time: `overloaded`, `expired` or `stalled`."""


@dataclass(eq=False)
class _Waiting(Generic[Q, R]):
    query: Q
    key: Hashable
    deadline: float
    joined: float
    answer: asyncio.Future[R]
    batch: _Running | None = None


@dataclass(eq=False)
class _Running:
    size: int
    started: float
    expected_s: float
    overruns_s: float
    stalls_s: float
    is_blamed: bool = False

    def lateness(self, now: float) -> Lateness:
        """Of one of its requests. One slow batch is one sign, however many waited for it."""
        if self.is_blamed or now - self.started <= self.overruns_s:
            return "ran"
        self.is_blamed = True
        return "overran"


@dataclass(frozen=True, kw_only=True)
class Timed(Generic[R]):
    """An answer, and how long it took."""

    result: R
    waited_s: float
    """Until its batch began."""
    ran_s: float
    """The batch."""
    batch_size: int


@dataclass(eq=False)
class Batcher(Generic[Q, R]):
    """Runs queries in batches.

    Args:
        stage: name for metrics and logs.
        run: answers a batch in a thread; an answer, or what went wrong with it, for each query. If it raises, each
            query is run alone, so that one which cannot be answered does not fail the others.
        workers: batches that run at a time.
        max_batch: queries of a batch.
        max_waiting: queries that wait; more are refused.
        observer: of metrics.
        patience_s: what any batch may take, however little time the ones before it took.
        clock: monotonic seconds, as deadlines are.
    """

    stage: str
    run: Callable[[Sequence[Q]], Sequence[R | Exception]]
    workers: int
    max_batch: int
    max_waiting: int
    observer: BatchObserver
    patience_s: float = 0.0
    clock: Callable[[], float] = time.monotonic
    cost: CostModel = field(default_factory=CostModel)

    def __post_init__(self) -> None:
        self._queue: deque[_Waiting[Q, Timed[R]]] = deque()
        self._running: set[_Running] = set()
        self._threads = ThreadPoolExecutor(self.workers, thread_name_prefix=f"model-{self.stage}")
        self._is_scheduled = False
        self._is_closed = False

    @property
    def depth(self) -> int:
        """Queries that wait."""
        return len(self._queue)

    @property
    def num_running(self) -> int:
        """Queries that the model is at work on."""
        return sum(running.size for running in self._running)

    @property
    def is_stalled(self) -> bool:
        """Whether every worker hangs."""
        now = self.clock()
        return len(self._running) == self.workers and all(
            now - running.started > running.stalls_s for running in self._running
        )

    def alone_s(self) -> float:
        """Seconds that a query takes which finds nobody before it."""
        return self.cost.seconds(1, self.clock())

    def wait_s(self, ahead: int) -> float:
        """Seconds until a query is answered that has `ahead` others before it; its batch is the larger for them."""
        now = self.clock()
        size = self._largest(ahead)
        busy = 0.0
        if len(self._running) == self.workers:
            busy = min(max(0.0, running.started + running.expected_s - now) for running in self._running)
        full, beside = divmod(ahead, size)
        return busy + full * self.cost.seconds(size, now) / self.workers + self.cost.seconds(beside + 1, now)

    def _largest(self, waiting: int) -> int:
        """The size of a batch, at most, when so many wait.

        A long line waits for the throughput, not for the first batch: half of it at once makes nobody behind wait
        longer, and shows what larger batches cost, which small ones never do.
        """
        return min(self.max_batch, max(self.cost.largest_useful(self.max_batch), waiting // 2))

    async def submit(self, query: Q, *, key: Hashable, deadline: float) -> Timed[R]:
        """The answer to `query`, from a batch with others of the same `key`.

        Raises:
            OverloadedError: too many wait, or those before it leave no time until `deadline`.
            OutOfTimeError: there is too little time even if nobody was before it, or the deadline came.
            StalledError: no worker will be free: all hang, or were told to end.
            Exception: what `run` gave or raised for it.
        """
        now = self.clock()
        slack, alone = deadline - now, self.alone_s()
        if self.is_stalled or self._is_closed:
            self.observer.dropped(self.stage, "stalled")
            raise StalledError(f"the {self.stage} hangs, or has ended")
        if slack < alone:
            self.observer.dropped(self.stage, "expired")
            raise OutOfTimeError("too_near")
        wait = self.wait_s(len(self._queue)) if self._queue or len(self._running) == self.workers else 0.0
        if len(self._queue) >= self.max_waiting or wait > slack:
            self.observer.dropped(self.stage, "overloaded")
            raise OverloadedError(wait)
        waiting: _Waiting[Q, Timed[R]] = _Waiting(query, key, deadline, now, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        self._schedule()
        try:
            async with asyncio.timeout(slack) as limit:
                return await waiting.answer
        except TimeoutError:
            if not limit.expired():
                raise
            if waiting.batch is not None:
                raise OutOfTimeError(waiting.batch.lateness(self.clock())) from None
            self.observer.dropped(self.stage, "expired")
            raise OutOfTimeError("waited") from None

    def close(self) -> None:
        """Let the threads end once they are idle; what runs is answered first, and nothing else is taken."""
        self._is_closed = True
        self._threads.shutdown(wait=False)

    def _schedule(self) -> None:
        # At the end of this turn of the loop: what else arrived in it then shares the batch, at no cost in time.
        if not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._is_scheduled = False
        while len(self._running) < self.workers and (batch := self._take()):
            self._start(batch)
        self.observer.queue_changed(self.stage, len(self._queue))

    def _take(self) -> list[_Waiting[Q, Timed[R]]]:
        """The next batch: the first in line that can still be answered, and those of its key that fit its time."""
        now = self.clock()
        limit = self._largest(len(self._queue))
        batch: list[_Waiting[Q, Timed[R]]] = []
        passed: list[_Waiting[Q, Timed[R]]] = []
        slack = float("inf")
        while self._queue and len(batch) < limit:
            waiting = self._queue.popleft()
            left = waiting.deadline - now
            if waiting.answer.done():
                continue  # its client has gone, or its time was up
            if left < self.cost.seconds(1, now):
                self.observer.dropped(self.stage, "expired")
                waiting.answer.set_exception(OutOfTimeError("waited"))
                continue
            if batch and waiting.key != batch[0].key:
                passed.append(waiting)
                continue
            if batch and self.cost.seconds(len(batch) + 1, now) > min(slack, left):
                passed.append(waiting)
                break
            slack = min(slack, left)
            batch.append(waiting)
        self._queue.extendleft(reversed(passed))
        return batch

    def _start(self, batch: list[_Waiting[Q, Timed[R]]]) -> None:
        now = self.clock()
        # To judge a batch, all that is known counts: a model that was idle for long is no faster for it.
        known_s = self.cost.last_seconds(len(batch))
        running = _Running(
            size=len(batch),
            started=now,
            expected_s=self.cost.seconds(len(batch), now),
            overruns_s=max(self.patience_s, _OVERRUN * known_s + _OVERRUN_S),
            stalls_s=max(self.patience_s, _STALLED_S, _STALLED * known_s),
        )
        for waiting in batch:
            waiting.batch = running
        self._running.add(running)
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(self._threads, self._answers, [waiting.query for waiting in batch])
        work.add_done_callback(lambda done: self._finish(batch, running, done))

    def _answers(self, queries: Sequence[Q]) -> Sequence[R | Exception]:
        try:
            return self.run(queries)
        except Exception as error:
            if len(queries) == 1:
                return [error]
            _log.warning("a batch failed, running its requests one by one", stage=self.stage, error=repr(error))
        return [answer for query in queries for answer in self._answers([query])]

    def _finish(
        self,
        batch: list[_Waiting[Q, Timed[R]]],
        running: _Running,
        done: asyncio.Future[Sequence[R | Exception]],
    ) -> None:
        now = self.clock()
        self._running.discard(running)
        seconds = now - running.started
        failure = done.exception() if not done.cancelled() else RuntimeError("the service stops")
        answers: Sequence[R | BaseException] = [failure] * len(batch) if failure is not None else done.result()
        if not all(isinstance(answer, BaseException) for answer in answers):
            self.cost.observe(len(batch), seconds, now)
        waited = [running.started - waiting.joined for waiting in batch]
        self.observer.batch_ran(self.stage, len(batch), seconds, waited)
        for waiting, answer, wait in zip(batch, answers, waited, strict=True):
            if waiting.answer.done():
                continue  # too late
            if isinstance(answer, BaseException):
                waiting.answer.set_exception(answer)
            else:
                waiting.answer.set_result(Timed(result=answer, waited_s=wait, ran_s=seconds, batch_size=len(batch)))
        self._dispatch()
